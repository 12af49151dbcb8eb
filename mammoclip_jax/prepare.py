"""Files and tables -> data set folder.

Example:
    python -m mammoclip_jax.prepare --source=mias --root=data/mias --out=prepared/mias --geometry=fit --height=512 \
        --width=320 --workers=2
"""

import inspect
import os
import time
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.data import sources
from mammoclip_jax.data.build import build
from mammoclip_jax.data.identity import private_folder
from mammoclip_jax.data.intensity import POLICIES
from mammoclip_jax.data.render import CROPS, GEOMETRIES, Preprocessing
from mammoclip_jax.data.shards import CODECS
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_options


def prepare(source: str, root, out, *, shards: int = 0, workers: int | None = None, codec: str = "zstd",
            max_quarantined: float = 0.2, vocab_size: int = 4096, options: dict | None = None, **preprocessing) -> dict:
    """Prepares a data set; on a finished folder it only checks that the parameters are the same.

    Args:
        source: name of an adapter in data/sources.
        root: folder of its files ("" where the adapter needs none).
        out: the data set folder.
        workers: processes; None for one a core.
        options: options of the adapter.
        preprocessing: fields of `Preprocessing`: geometry, height, width, intensity, bits, crop.

    Returns:
        images, studies, patients, boxes, texts, images_in, quarantined, reasons, splits, up_to_date.

    Raises:
        UserError: anything the caller can mend.
    """
    read = sources.reader(source)
    check_options(read, options or {}, f"data source {source!r}")
    check_options(Preprocessing, preprocessing, "prepare")
    if root and not Path(root).is_dir():
        raise UserError(f"--root={root} is no folder. Give the folder of the files of {source}.")
    table = read(root, **(options or {}))
    provenance = {"source": source, "options": {key: str(value) for key, value in (options or {}).items()},
                  "version": _version()}
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    return build(table, root, out, preprocessing=Preprocessing(**preprocessing), shards=shards, workers=workers,
                 codec=codec, max_quarantined=max_quarantined, vocab_size=vocab_size, provenance=provenance)
