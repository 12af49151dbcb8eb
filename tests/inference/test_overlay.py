import cv2
import numpy as np

from mammoclip_jax.inference.overlay import colours, draw, grey, picture, side_by_side


def test_cold_tissue_stays_grey_and_hot_tissue_is_coloured():
    image = np.full((20, 10), 90, np.uint8)
    heat = np.zeros((20, 10), np.float32)
    heat[5, 5] = 1.0
    shown = colours(image, heat)
    assert (shown[0, 0] == 90).all()
    blue, _, red = shown[5, 5].astype(int)
    assert red > blue + 40


def test_heat_that_is_not_finite_or_out_of_range_is_clipped():
    heat = np.array([[np.nan, 2.0], [-1.0, 0.5]], np.float32)
    clean = np.array([[0.0, 1.0], [0.0, 0.5]], np.float32)
    image = np.full((2, 2), 60, np.uint8)
    assert np.array_equal(colours(image, heat), colours(image, clean))


def test_boxes_enclose_their_pixels_at_any_size():
    image = np.zeros((100, 80), np.uint8)
    for side, scale in ((0, 1), (200, 2), (50, 0.5)):
        shown = draw(image, boxes=[(20, 30, 60, 70)], side=side)
        rows, columns = np.nonzero((shown == 255).all(-1))
        assert abs(rows.min() - 30 * scale) <= 1 and abs(rows.max() - (70 * scale - 1)) <= 1
        assert abs(columns.min() - 20 * scale) <= 1 and abs(columns.max() - (60 * scale - 1)) <= 1


def test_sixteen_bits_show_like_eight():
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(grey(eight.astype(np.uint16) * 257), eight)


def test_bytes_are_png_of_the_size_asked_for():
    image, heat = np.zeros((40, 30), np.uint8), np.zeros((40, 30), np.float32)

    def read(png):
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)

    assert read(picture(image, heat, peak=(3.5, 4.5))).shape == (40, 30, 3)
    assert read(picture(image, side=80)).shape == (80, 60, 3)
    assert read(side_by_side(image, heat, [(1, 2, 5, 6)], None, 80)).shape == (80, 60 + 2 + 60, 3)
