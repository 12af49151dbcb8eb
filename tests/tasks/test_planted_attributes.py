"""Of maps in which a channel shows an attribute, adapters find the attribute, the channel and the place; with channels and
attributes mixed up, as released, they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage, stats

from mammoclip_jax.losses.attributes import attribute_contrast
from mammoclip_jax.models.attributes import AttributeModel

ROWS, COLUMNS, CHANNELS, DIM = 12, 8, 8, 16
BLOB, TEXTURE = 2, 5  # the channels
# With half as many maps, or a third of the rate, some seeds learn one of the chequerboard's two signs alone: an area of .75.
TRAIN, TEST, STEPS, BATCH, RATE, TEMPERATURE = 2048, 128, 400, 32, 3e-3, 0.05


def planted(seed, count):
    """(maps [N h w C], labels [N 2], places of the blob [N 2]): noise, and where the first label is 1 a blob at a random
    place of one channel, where the second is a chequerboard of random sign in another."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 2))
    maps = rng.normal(size=(count, ROWS, COLUMNS, CHANNELS)) * 0.5
    places = np.stack([rng.integers(1, ROWS - 1, count), rng.integers(1, COLUMNS - 1, count)], axis=1)
    row, column = np.mgrid[:ROWS, :COLUMNS]
    distance = (row - places[:, 0, None, None]) ** 2 + (column - places[:, 1, None, None]) ** 2
    maps[..., BLOB] += 3 * np.exp(-distance / 2) * labels[:, 0, None, None]
    signs = rng.choice([-1, 1], count) * labels[:, 1]
    maps[..., TEXTURE] += (-1.0) ** (row + column) * signs[:, None, None]
    return maps.astype(np.float32), labels.astype(np.float32), places


def cosines(model, variables, maps, mixed):
    """[N C 2], of the right layout or of the released one: the attributes' vectors behind one another, read as if each
    channel's stood together."""
    if not mixed:
        return model.apply(variables, {"map": maps}, method="channel_scores")["map"]
    z = model.apply(variables, maps, method=lambda module, x: module.adapters["map"](x))
    z = z.reshape(len(maps), CHANNELS, 2, DIM)
    z /= jnp.linalg.norm(z, axis=-1, keepdims=True)
    return jnp.einsum("ncad,ad->nca", z, variables["batch_stats"]["attributes"]["dictionary"])


def learnt(seed, mixed=False):
    """Cosines [N C 2] of the test maps, after training."""
    maps, labels, _ = map(jnp.asarray, planted(seed, TRAIN))
    model = AttributeModel(None, ("map",), 2, DIM)
    variables = model.init(jax.random.key(seed), {"map": maps[:1]}, method="image_scores")
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(2, DIM)).astype(np.float32)
    statistics = {"attributes": {"dictionary": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}}
    optimizer = optax.adamw(RATE, weight_decay=0.01)

    def loss(params, rows):
        found = cosines(model, {"params": params, "batch_stats": statistics}, maps[rows], mixed).max(axis=1)
        return attribute_contrast(found, labels[rows], jnp.ones((BATCH, 2), bool), temperature=TEMPERATURE)[0]

    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    rows = np.stack([rng.permutation(TRAIN)[:BATCH] for _ in range(STEPS)])
    params = variables["params"]
    params = jax.jit(lambda start: jax.lax.scan(step, start, rows)[0][0])((params, optimizer.init(params)))
    of_test = planted(seed + 100, TEST)[0]
    return np.asarray(cosines(model, {"params": params, "batch_stats": statistics}, of_test, mixed))


def auroc(scores, truth):
    return (
        stats.mannwhitneyu(scores[truth == 1], scores[truth == 0]).statistic / (truth == 1).sum() / (truth == 0).sum()
    )


def localised(seed, scores):
    """(share of the blobs that the heat's peak is in, share found with an IoU of .25 by a region above its 95 % quantile)."""
    maps, labels, places = planted(seed + 100, TEST)
    peaks, overlaps = [], []
    for i in np.flatnonzero(labels[:, 0] == 1):
        heat = maps[i] @ scores[i, :, 0]
        truth = np.zeros(heat.shape, bool)
        row, column = places[i]
        truth[row - 1 : row + 2, column - 1 : column + 2] = True
        peaks.append(truth.ravel()[heat.argmax()])
        regions = ndimage.find_objects(ndimage.label(heat > np.quantile(heat, 0.95), np.ones((3, 3)))[0])
        boxes = [np.zeros(heat.shape, bool) for _ in regions]
        for box, region in zip(boxes, regions):
            box[region] = True
        overlaps.append(max((box & truth).sum() / (box | truth).sum() for box in boxes))
    return np.mean(peaks), np.mean(np.array(overlaps) >= 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_the_attribute_its_channel_and_its_place_are_found(seed):
    scores, labels = learnt(seed), planted(seed + 100, TEST)[1]
    assert auroc(scores[..., 0].max(axis=1), labels[:, 0]) >= 0.95
    assert auroc(scores[..., 1].max(axis=1), labels[:, 1]) >= 0.80
    for attribute, channel in enumerate((BLOB, TEXTURE)):
        highest = scores[labels[:, attribute] == 1, :, attribute].argmax(axis=1)
        assert np.bincount(highest).argmax() == channel
    pointing, overlap = localised(seed, scores)
    assert pointing >= 0.6 and overlap >= 0.5


@pytest.mark.parametrize("seed", range(3))
def test_with_channels_and_attributes_mixed_up_it_points_nowhere(seed):
    assert localised(seed, learnt(seed, mixed=True))[0] < 0.2
