import numpy as np
import pytest

from mammoclip_jax.data import breast


def film(side: str = "left", height: int = 1200, width: int = 900, noise: float = 3.0) -> tuple[np.ndarray, tuple]:
    """A half ellipse of tissue on a dark noisy film, and its box (y0, x0, y1, x1)."""
    generator = np.random.default_rng(0)
    ys, xs = np.mgrid[:height, :width]
    radius_y, radius_x = 0.35 * height, 0.55 * width
    distance = ((ys - height / 2) / radius_y) ** 2 + (xs / radius_x) ** 2
    tissue = np.where(distance < 1, 60 + 120 * np.sqrt(np.clip(1 - distance, 0, 1)), 0)
    image = np.clip(tissue + 10 + generator.normal(0, noise, tissue.shape), 0, 255)
    rows, columns = np.flatnonzero((distance < 1).any(1)), np.flatnonzero((distance < 1).any(0))
    box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    if side == "right":
        image, box = image[:, ::-1], (box[0], width - box[3], box[2], width - box[1])
    return image.astype(np.uint8), box


def disturbed(image: np.ndarray, what: str, side: str) -> np.ndarray:
    image = image.copy()
    far = slice(-160, -60) if side == "left" else slice(60, 160)
    if what == "marker":
        image[60:140, far] = 255
        image[80:120, far] = 120
    elif what == "edges":
        image[:8], image[-8:] = 255, 255
        image[:, :6], image[:, -6:] = 255, 255
    elif what == "gradient":
        image = np.clip(image.astype(int) + np.linspace(0, 12, image.shape[0])[:, None], 0, 255).astype(np.uint8)
    return image


@pytest.mark.parametrize("what", ["nothing", "marker", "edges", "gradient"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_robust_crop_holds_the_breast_and_little_more(side, what):
    image, box = film(side)
    crop = breast.robust_crop(disturbed(image, what, side))
    for got, true, sign in zip(crop, box, (-1, -1, 1, 1)):
        assert -4 <= sign * (got - true) <= 40, (crop, box)
    assert breast.chest_wall_side(disturbed(image, what, side)) == side


def test_robust_crop_scales_with_the_image_and_dtype():
    image, _ = film()
    crop = breast.robust_crop(image)
    wide = breast.robust_crop((image.astype(np.float32) / 255))
    np.testing.assert_allclose(crop, wide, atol=4)


def test_an_empty_image_is_kept_whole():
    assert breast.robust_crop(np.zeros((100, 80), np.uint8)) == (0, 0, 100, 80)
    assert breast.published_crop(np.zeros((100, 80), np.uint8)) == (0, 0, 100, 80)


def published_by_definition(image: np.ndarray) -> tuple[int, int, int, int]:
    """The published steps in plain loops."""
    binary = image.copy()
    binary[binary <= 40] = 0

    def keep(array: np.ndarray) -> list[int]:
        height = array.shape[0]
        band = array[height // 2 - int(height * 0.4):height // 2 + int(height * 0.4)]
        lengths, run = [0] * array.shape[1], []
        for column in range(array.shape[1] + 1):
            if column < array.shape[1] and band[:, column].std() != 0:
                run.append(column)
                continue
            for member in run:
                lengths[member] = len(run)
            run = []
        return [column for column, length in enumerate(lengths) if length == max(lengths)]

    columns = keep(binary)
    rows = keep(binary[:, columns].T)
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_published_crop_by_its_definition(side):
    image, _ = film(side, 300, 220)
    image = disturbed(image, "marker", side)
    assert breast.published_crop(image) == published_by_definition(image)


def test_a_faint_nipple_in_profile_is_kept():
    image, box = film(noise=0)
    ys, xs = np.mgrid[:image.shape[0], :image.shape[1]]
    nipple = (ys - 600) ** 2 + (xs - (box[3] + 18)) ** 2 < 26**2
    image[nipple & (image < 20)] = 18               # barely above the ground of 10, far below the skin's 70
    columns = np.flatnonzero(nipple.any(axis=0))
    assert breast.robust_crop(image)[3] >= columns[-1]
