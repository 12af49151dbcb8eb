"""Masks lie on the image wherever it is flipped, turned and cropped to."""

import jax
import numpy as np
import pytest

from mammoclip_jax.training import augment

PLAIN = augment.Preprocess(0.0, 1.0, 1, "range")
AFFINE = PLAIN._replace(affine_probability=1.0, rotate=20.0, translate=0.1, scale=(0.8, 1.2), shear=8.0)


def batch():
    """Eight images of a bright blob each, and its mask as bit 1; bit 0 is the whole image."""
    rng, n, size = np.random.default_rng(0), 8, (40, 28)
    rows, columns = np.meshgrid(*(np.arange(side) for side in size), indexing="ij")
    centres = rng.uniform(0.3, 0.7, (n, 2)) * size
    blobs = np.array([((rows - y) / 9) ** 2 + ((columns - x) / 5 + (rows - y) / 30) ** 2 < 1 for y, x in centres], bool)
    return {
        "image": (blobs[:, None] * 255).astype(np.uint8),
        "masks": (1 + 2 * blobs[:, None]).astype(np.uint8),
        "flip_horizontal": np.arange(n) % 2 > 0,
        "flip_vertical": np.arange(n) % 4 > 1,
        "mask": np.ones(n, bool),
    }


@pytest.mark.parametrize("options", [PLAIN, AFFINE, PLAIN._replace(crop=(0.4, 0.8)), AFFINE._replace(crop=(0.4, 0.8))])
def test_masks_go_where_the_image_goes(options):
    start = batch()

    @jax.jit
    def moved(batch):
        draws = augment.draw(batch, jax.random.key(1), options)
        return augment.with_moved_masks(batch, draws, options), augment.train_images(
            batch["image"][:, 0], draws, options
        )

    after, images = jax.device_get(moved(start))
    assert after["masks"].dtype == np.uint8 and after["masks"].shape == start["masks"].shape
    found, shown = after["masks"][:, 0] >> 1 & 1 == 1, images[..., 0] >= 0.5
    if options == PLAIN:
        np.testing.assert_array_equal(found, shown)
        return
    overlap = (found & shown).sum((1, 2)) / (found | shown).sum((1, 2))
    assert overlap.min() > 0.9
    assert (found != (start["masks"][:, 0] >> 1 & 1 == 1)).any((1, 2)).all()
    # The bits keep together: what comes from outside the image is in no mask.
    assert (after["masks"] != 2).all()
    assert (after["masks"][:, 0] == 0).any() == bool(options.affine_probability)
