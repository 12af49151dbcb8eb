"""Stored features of texts, as a tower that does not change gives them: computed once, read at every drawing.

    folder/text_features.npy      float32 [N, C], mapped into memory
    folder/text_features.json     what they were computed by (a fingerprint), and the hash of each row's text
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole, write_text

FEATURES, INDEX = "text_features.npy", "text_features.json"


def text_hash(text: str) -> str:
    """128 bits of the text, so that the index holds no report."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class TextFeatures:
    """The features in a folder; opened when the first text is asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [T, C]. Raises UserError for a text that has no row."""
        try:
            rows = [self._rows[text_hash(text)] for text in texts]
        except KeyError as error:
            raise UserError(f"{self.folder / FEATURES} has no row for a text that was drawn: the data sets or the options "
                            "in config.data are not those it was made with. Remove it to make it anew.") from error
        return np.asarray(self._features[rows])

    def serves(self, fingerprint: str, texts: Iterable[str]) -> bool:
        """Whether the folder holds features of all `texts` by what the fingerprint names."""
        try:
            known = json.loads((self.folder / INDEX).read_text())
            whole = len(np.load(self.folder / FEATURES, mmap_mode="r")) == len(known["texts"])
        except (OSError, ValueError, KeyError):
            return False
        return whole and known["fingerprint"] == fingerprint and {*map(text_hash, texts)} <= {*known["texts"]}

    @functools.cached_property
    def _features(self) -> np.ndarray:
        return np.load(self.folder / FEATURES, mmap_mode="r")

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        texts = json.loads((self.folder / INDEX).read_text())["texts"]
        return {text: row for row, text in enumerate(texts)}


def write(folder: str | Path, fingerprint: str, texts: Sequence[str], parts: Iterable[np.ndarray]) -> None:
    """Stores the features of `texts`, which come in `parts` [n, C]; what a stop leaves behind is not taken for them."""
    folder = Path(folder)
    features, row = None, 0
    with whole(folder / FEATURES) as partial:
        for part in parts:
            if features is None:
                features = np.lib.format.open_memmap(partial, "w+", np.float32, (len(texts), part.shape[1]))
            features[row:row + len(part)] = part
            row += len(part)
        features.flush()
        # An index belongs to the features beside it: without one there are none.
        (folder / INDEX).unlink(missing_ok=True)
    index = {"fingerprint": fingerprint, "texts": [text_hash(text) for text in texts]}
    write_text(folder / INDEX, json.dumps(index))
