"""Digitised films: an uneven grey ground inside black padding, white plates and strips, grey text near the skin."""

import cv2
import numpy as np
import pytest

from mammoclip_jax.data.phantom import exam
from mammoclip_jax.data.pixels import breast, outside

HEIGHT, WIDTH = 512, 410


@pytest.fixture(scope="module")
def views() -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Density [h, w] up to 1, where the breast is, the side of the chest wall."""
    made = []
    for number in range(2):
        drawn = exam.draw(exam.Parameters(height=HEIGHT, width=WIDTH), number)
        for laterality, view, side in (("L", "MLO", "left"), ("R", "MLO", "right"), ("R", "CC", "right")):
            picture = exam.render(drawn, laterality, view)
            made.append((picture.density / picture.density[picture.breast].max(), picture.breast, side))
    return made


def film(view, ground: float, uneven: float = 0, thing: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [h, h] padded with black, where the breast is in it, and where the thing is that does not belong to it."""
    density, tissue, side = view
    generator = np.random.default_rng(0)
    wave = cv2.GaussianBlur(generator.normal(0, 1, density.shape), (0, 0), 60)
    values = ground + (235 - ground) * 0.95 * density + generator.normal(0, 1, density.shape)
    values += uneven * (wave / np.abs(wave).max() + np.linspace(-0.5, 0.5, HEIGHT)[:, None])
    drawn = np.zeros(density.shape, np.uint8)
    columns = np.flatnonzero(tissue[HEIGHT // 3 if thing == "text" else slice(0, 60)].reshape(-1, WIDTH).any(axis=0))
    edge = (columns.max() if side == "left" else columns.min()) if len(columns) else WIDTH // 2
    if thing == "plate":  # at the top, beside the axilla
        x = edge + 6 if side == "left" else edge - 76
        drawn[:85, x : x + 70] = 1
        values[drawn > 0] = 250
        values[30:60, x + 20 : x + 50] = 60
    elif thing == "strip":
        drawn[:, -WIDTH // 14 :] = 1
        drawn = drawn if side == "left" else drawn[:, ::-1]
        values[drawn > 0] = 252
    elif thing == "text":
        x = edge + 14 if side == "left" else edge - 104
        cv2.putText(drawn, "ML 60", (int(x), HEIGHT // 3), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 1, 2)
        drawn &= ~tissue
        values[drawn > 0] = ground + 70
    left = (HEIGHT - WIDTH) // 3
    padding = ((0, 0), (left, HEIGHT - WIDTH - left))
    return (
        np.pad(np.rint(np.clip(values, 1, 255)).astype(np.uint8), padding),
        np.pad(tissue, padding),
        np.pad(drawn > 0, padding),
    )


def cut_out(crop: breast.Crop, shape: tuple[int, int]) -> np.ndarray:
    inside = np.zeros(shape, bool)
    inside[crop[0] : crop[2], crop[1] : crop[3]] = True
    return inside


@pytest.mark.parametrize("ground, uneven", [(8, 3), (20, 4), (40, 3)])
def test_the_ground_of_a_film_is_not_taken_for_the_breast(views, ground, uneven):
    for view in views:
        image, tissue, _ = film(view, ground, uneven)
        found = breast.find(image)
        assert breast.side_of(found.mask) == view[2]
        inside = cut_out(breast.crop_of(found, image.shape), image.shape)
        assert (tissue & ~inside).sum() <= 0.002 * tissue.sum()
        box = np.argwhere(tissue)
        assert inside.sum() < 1.3 * np.prod(np.ptp(box, axis=0) + 1)


@pytest.mark.parametrize("thing", ["plate", "strip", "text"])
@pytest.mark.parametrize("ground", [8, 40])
def test_what_does_not_belong_to_the_breast_goes(views, ground, thing):
    for view in views:
        image, tissue, strange = film(view, ground, 6, thing)
        found = breast.find(image)
        assert breast.side_of(found.mask) == view[2]
        kept = outside.keep(image, found)
        stays = cv2.resize(kept.mask, image.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        stays &= cut_out(breast.crop_of(found, image.shape), image.shape)
        assert (strange & ~tissue & stays).sum() <= 0.02 * strange.sum()
        assert (tissue & ~strange & ~stays).sum() <= 0.015 * tissue.sum()
