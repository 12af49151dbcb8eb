"""What is burned in outside the breast goes; the breast itself stays as it is."""

import cv2
import numpy as np
import pytest
from tiny_dicom import write

from mammoclip_jax.data.phantom import exam
from mammoclip_jax.data.pixels import breast, outside
from mammoclip_jax.data.pixels.render import Preprocessing, render

HEIGHT, WIDTH = 880, 704


@pytest.fixture(scope="module")
def views() -> list[tuple[np.ndarray, np.ndarray]]:
    """uint16 images of 12 bits [H, W] with noisy air, and where the breast is, bool."""
    made, generator = [], np.random.default_rng(0)
    for number in range(2):
        drawn = exam.draw(exam.Parameters(height=HEIGHT, width=WIDTH), number)
        for laterality, view in (("L", "CC"), ("R", "MLO")):
            picture = exam.render(drawn, laterality, view)
            values = 60 + picture.density * 2600 + generator.normal(0, 8, picture.density.shape)
            made.append((np.clip(values, 0, 4095).astype(np.uint16), picture.breast))
    return made


def with_text(pixels: np.ndarray, tissue: np.ndarray, scale: float = 1.0, box: bool = False) -> np.ndarray:
    """Names in the air, one far from the breast and one as near as it gets without touching."""
    pixels = pixels.copy()
    near = cv2.dilate(tissue.astype(np.uint8), np.ones((13, 13), np.uint8))
    (width, height), _ = cv2.getTextSize("DOE^JANE", cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    blocked = cv2.boxFilter(
        near.astype(np.float32),
        -1,
        (width + 12, height + 16),
        anchor=(0, 0),
        normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )
    free = np.argwhere(blocked[: -height - 16, : -width - 12] < 0.5)
    assert len(free)
    distance = cv2.distanceTransform(1 - near, cv2.DIST_L2, 3)
    closeness = distance[free[:, 0] + height // 2, free[:, 1] + width // 2]
    for y, x in (free[closeness.argmin()], free[closeness.argmax()]):
        if box:
            pixels[y : y + height + 14, x : x + width + 10] = 4095
        letters = np.zeros(pixels.shape, np.uint8)
        cv2.putText(letters, "DOE^JANE", (int(x) + 5, int(y) + height + 5), cv2.FONT_HERSHEY_SIMPLEX, scale, 1, 2)
        pixels[letters > 0] = 60 if box else 4095
    return pixels


@pytest.mark.parametrize("policy", ["voi", "raw_minmax"])
@pytest.mark.parametrize("geometry,bits", [("fit", 8), ("stretch", 16)])
@pytest.mark.parametrize("scale,box", [(0.6, False), (1.0, False), (0.8, True)])
def test_planted_names_go(tmp_path, views, policy, geometry, bits, scale, box):
    """With and without the text the canvas is the same; a crop may differ by some pixels."""
    for number, (pixels, tissue) in enumerate(views):
        pixels = pixels.copy()
        pixels[0, 0] = 4095  # the same range with and without the text
        tags = dict(ImageLaterality="LR"[number % 2], WindowCenter=1600, WindowWidth=3000)
        clean = write(tmp_path / "clean.dcm", pixels, **tags)
        dirty = write(tmp_path / "dirty.dcm", with_text(pixels, tissue, scale, box), **tags)
        for crop in ("robust", "none"):
            preprocessing = Preprocessing(geometry, 440, 264, policy, bits, crop)
            expected, got = render(clean, preprocessing), render(dirty, preprocessing)
            np.testing.assert_allclose(got.transform.crop, expected.transform.crop, atol=4)
            if got.transform != expected.transform:
                continue
            difference = np.abs(got.image.astype(int) - expected.image) / (2**bits - 1)
            assert difference.max() < 0.06, (number, crop)
            if crop == "none":
                assert "outside_masked" in got.flags


def test_text_stays_where_it_is_kept(tmp_path, views):
    pixels, tissue = views[0]
    path = write(tmp_path / "a.dcm", with_text(pixels, tissue), ImageLaterality="L")
    kept = render(path, Preprocessing(height=440, width=264, crop="none", outside="kept"))
    masked = render(path, Preprocessing(height=440, width=264, crop="none"))
    assert (kept.image > 250).sum() > (masked.image > 250).sum() + 50
    assert "outside_masked" not in kept.flags and "outside_masked" in masked.flags


def test_the_breast_is_not_touched(views):
    for pixels, tissue in views:
        for drawn in (pixels, with_text(pixels, tissue)):
            region = drawn.astype(np.float32) / 4095
            preview = (region * 255).astype(np.uint8)
            kept = outside.keep(preview, breast.find(preview))
            before, shape = region.copy(), region.shape
            outside.cover(region, kept, shape, (0, 0, *shape))
            np.testing.assert_array_equal(region[tissue], before[tissue])


def test_nothing_bright_outside_raises_no_flag(views):
    pixels, _ = views[0]
    preview = (pixels >> 4).astype(np.uint8)
    kept = outside.keep(preview, breast.find(preview))
    assert not outside.cover(preview, kept, preview.shape, (0, 0, *preview.shape))


def test_an_image_without_air_is_left_alone():
    noise = np.random.default_rng(0).integers(80, 200, (300, 200)).astype(np.uint8)
    assert outside.keep(noise, breast.Found(np.ones((300, 200), bool), 1.0)) is None
