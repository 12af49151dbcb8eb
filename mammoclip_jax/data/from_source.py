"""A data set folder from a source: adapter, names out of texts, pixels, shards."""

import inspect
import os
from collections.abc import Sequence

from mammoclip_jax.data import sources
from mammoclip_jax.data.build import build
from mammoclip_jax.data.leave_out import flags_of
from mammoclip_jax.data.manifest import SourceTable
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.store.codecs import DEFAULT_CODEC, known
from mammoclip_jax.names import check_options
from mammoclip_jax.provenance import version


def prepare(
    source: str,
    root,
    out,
    *,
    shards: int = 0,
    workers: int | None = None,
    codec: str = DEFAULT_CODEC,
    max_quarantined: float = 0.2,
    vocab_size: int = 4096,
    options: dict | None = None,
    key: str = "",
    runner: str = "",
    runner_options: Sequence[str] = (),
    header_identities: bool = True,
    recogniser: str = "",
    leave_out: Sequence[str] | None = None,
    **preprocessing,
) -> dict:
    """Prepares a data set; on a folder that is up to date it changes nothing.

    Args:
        source: name of an adapter in data/sources.
        root: folder of its files ("" where the adapter needs none).
        out: the data set folder.
        workers: processes; None for one a core.
        options: options of the adapter.
        key, runner, runner_options: see `build`.
        header_identities: take what the DICOM headers of an exam say of people and places out of its texts.
        recogniser: folder of a model that finds names in texts after the rules (data/text/recognise.py).
        leave_out: flags (data/leave_out.py) of images that do not become part of the set; None: those of the source.
        preprocessing: fields of `Preprocessing`: geometry, height, width, intensity, bits, crop, ...

    Returns:
        The counts of `build`: images, studies, patients, boxes, texts, images_in, quarantined, ...

    Raises:
        UserError: anything the caller can mend.
    """
    table = read(source, root, options, leave_out)
    check_options(Preprocessing, preprocessing, "prepare")
    provenance = {
        "source": source,
        "options": {name: str(value) for name, value in (options or {}).items()},
        "version": version("mammoclip_jax"),
    }
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    return build(
        table,
        root,
        out,
        preprocessing=Preprocessing(**preprocessing),
        shards=shards,
        workers=workers,
        codec=codec,
        max_quarantined=max_quarantined,
        vocab_size=vocab_size,
        provenance=provenance,
        key=key,
        runner=runner,
        runner_options=runner_options,
        headers=header_identities,
        recogniser=recogniser,
    )


def check_arguments(source: str, root, *, out=None, options: dict | None = None, **others) -> None:
    """Raises UserError where `prepare` would not take these arguments, of which it needs no file to know."""
    del root, out
    own = inspect.signature(prepare).parameters
    preprocessing = {name: value for name, value in others.items() if name not in own}
    check_options(sources.reader(source), options or {}, f"data source {source!r}")
    check_options(Preprocessing, preprocessing, "prepare")
    Preprocessing(**preprocessing)
    known(others.get("codec", DEFAULT_CODEC))
    flags_of(others.get("leave_out") or ())


def read(source: str, root, options: dict | None = None, leave_out: Sequence[str] | None = None) -> SourceTable:
    """The table of a source, with other flags to leave out than its own unless None.

    Raises:
        UserError: an unknown source, option or flag.
    """
    flags_out = None if leave_out is None else flags_of(leave_out)
    reader = sources.reader(source)
    check_options(reader, options or {}, f"data source {source!r}")
    table = reader(root, **(options or {}))
    return table if flags_out is None else table._replace(leave_out=flags_out)
