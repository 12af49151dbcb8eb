"""A data set and a tokenizer that tests can look into."""

import numpy as np
import pandas as pd

H, W = 6, 4


class FakeDataset:
    """The interface of `shards.Dataset`; every pixel of image i is i, modulo 256."""

    def __init__(self, rows, path="fake", height=H, width=W, bits=8):
        self.path = path
        self.info = {"preprocessing": {"height": height, "width": width, "bits": bits}}
        defaults = dict(
            dataset="fake", patient="p", study="s0", laterality="L", view="CC", split="train", texts=["a text"]
        )
        self.index = pd.DataFrame([{**defaults, "image": str(i), **row} for i, row in enumerate(rows)])

    def __len__(self):
        return len(self.index)

    def read(self, i):
        return np.full((H, W), i % 256, np.uint8)


class Spy:
    """A tokenizer that keeps the texts; nothing is encoded."""

    def __init__(self):
        self.texts = []

    def encode(self, texts, length):
        self.texts.append(list(texts))
        return np.zeros((len(texts), length), np.int32), np.ones((len(texts), length), bool)
