"""Grain's reading processes are forked from one that has imported what they need, and read what one process would."""

import os
import sys

import grain
import numpy as np
import pytest
from absl import flags

from mammoclip_jax.benchmarks import growth
from mammoclip_jax.data.batches.image_text import Options, train_dataset
from mammoclip_jax.data.text.tokenizer import Tokenize, train_wordpiece


class Asked(growth._Images):
    """Instead of an image: its number, whether this process has imported jax, and which started it."""

    def read(self, row: int) -> np.ndarray:
        return np.array([[row, "jax" in sys.modules, os.getppid(), os.getpid()]])


@pytest.mark.skipif(sys.platform != "linux", reason="no processes are forked elsewhere")
def test_processes_read_their_slices_without_jax():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for its own
    data = growth._dataset(80, "train")
    data = Asked(data.path, data.info, data.index)
    tokenize = Tokenize(train_wordpiece(growth.texts(50), 200))
    stream = train_dataset([data], tokenize, Options(text_length=8), batch_size=1, seed=0, read_threads=0)
    expected = iter(stream)
    found = iter(stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=2)))
    servers, readers = set(), set()
    for _ in range(4):
        ours, theirs = next(expected), next(found)
        assert set(ours) == set(theirs)
        for key in set(ours) - {"image"}:
            np.testing.assert_array_equal(ours[key], theirs[key])
        row, has_jax, server, reader = theirs["image"][0, 0, 0].tolist()
        assert row == ours["image"][0, 0, 0, 0] and not has_jax
        servers.add(server)
        readers.add(reader)
    found.close()
    assert len(readers) == 2 and len(servers) == 1 and os.getpid() not in servers
