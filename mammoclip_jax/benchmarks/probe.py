"""Seconds of a linear probe whose features are computed once, next to one that computes them in every epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from mammoclip_jax import models
from mammoclip_jax.benchmarks.sample import Sample
from mammoclip_jax.benchmarks.timing import interleaved
from mammoclip_jax.config import complete
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.evaluation.features import Features
from mammoclip_jax.evaluation.metrics import logistic
from mammoclip_jax.inference.heads import ImageEncoder

EPOCHS, BATCH = 30, 8  # 30 epochs of batches of 8: Mammo-CLIP's, on VinDr
ENCODER = {"image": {"name": "efficientnet", "variant": "b0"}, "dtype": "float32"}
BASELINE = f"features in each of {EPOCHS} epochs, head by Adam"


class Images:
    """What `Features` asks of a data set."""

    def __init__(self, images: list[np.ndarray]):
        self.index = pd.DataFrame({"image": range(len(images))})
        self._images = images

    def read(self, row: int) -> np.ndarray:
        return self._images[row]


def run(sample: Sample, *, height: int, width: int, repeats: int) -> list[dict]:
    """A row a way: seconds (median), p10, p90, ratio to the baseline. Random weights; every other image is positive."""
    preprocessing = Preprocessing(height=height, width=width)
    dataset = Images([render(file, preprocessing).image for file in sample.files])
    encoder = _encoder(height, width)
    target = np.arange(len(sample.files)) % 2

    def features():
        return Features(encoder, dataset).of("pooled", range(len(target)))

    def once(learn):
        vectors = features()
        return learn(lambda: vectors)

    def by_regression(source):
        return logistic.fit(logistic.Items(source(), target, target.astype(str)), 2, logistic.CS)

    ways = {
        BASELINE: lambda: _by_adam(features, target),
        f"features once, head by Adam, {EPOCHS} epochs": lambda: once(lambda source: _by_adam(source, target)),
        f"features once, logistic regression, {len(logistic.CS)} strengths": lambda: once(by_regression),
    }
    seconds = interleaved(ways, repeats)
    rows = []
    for way, values in seconds.items():
        low, median, high = np.percentile(values, [10, 50, 90])
        rows.append(
            {
                "way": way,
                "images": len(target),
                "seconds": round(median, 3),
                "p10": round(low, 3),
                "p90": round(high, 3),
                "ratio": round(float(np.median(seconds[BASELINE] / values)), 1),
            }
        )
    return rows


def _encoder(height: int, width: int) -> ImageEncoder:
    config = complete({"model": ENCODER})
    module = models.bare_image_encoder(config.model)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 64, 64, config.image.channels)))
    meta = {"config": config.to_dict(), "preprocessing": {"height": height, "width": width}, "provenance": {}}
    return ImageEncoder(variables, meta, 0, batch_size=BATCH)


_OPTIMISER = optax.adam(1e-3)


def _by_adam(features, target: np.ndarray):
    """Kernel and bias after EPOCHS epochs over what `features()` gives in each."""
    state = None
    for _ in range(EPOCHS):
        vectors = features()
        if state is None:
            head = (jnp.zeros(vectors.shape[1]), jnp.zeros(()))
            state = head, _OPTIMISER.init(head)
        for start in range(0, len(target), BATCH):
            state = _step(state, vectors[start : start + BATCH], target[start : start + BATCH])
    return jax.block_until_ready(state[0])


@jax.jit
def _step(state, features, target):
    head, optimiser = state

    def loss(head):
        return optax.sigmoid_binary_cross_entropy(features @ head[0] + head[1], target).mean()

    updates, optimiser = _OPTIMISER.update(jax.grad(loss)(head), optimiser)
    return optax.apply_updates(head, updates), optimiser
