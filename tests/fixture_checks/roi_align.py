"""roi_align.npz: pooled boxes and the gradients of the map."""

import re

import jax
import numpy as np

from fixture_checks import placed
from mammoclip_jax.models.roi_align import roi_align

TOLERANCES = [(r"identity_\w+", 1e-12, 1e-5), (r"(out|d)_\w+", 1e-9, 1e-5)]
STRIDE = 8
OUTPUT = re.compile(r"out_(\d+)x(\d+)_sr(\d+)_(aligned|legacy)")


def values(fx, mesh):
    images, channels, height, width = fx["features"].shape
    of_image = [np.flatnonzero(fx["boxes"][:, 0] == n) for n in range(images)]
    places = max(map(len, of_image))
    boxes, mask = np.zeros((images, places, 4), fx.dtype), np.zeros((images, places), bool)
    for n, numbers in enumerate(of_image):
        boxes[n, : len(numbers)], mask[n, : len(numbers)] = fx["boxes"][numbers, 1:], True
    order = np.argsort(np.concatenate(of_image))
    maps, boxes, there, rows = placed(mesh, fx["features"].transpose(0, 2, 3, 1), boxes, mask)
    there = there & rows[:, None]

    found = {}
    for name in fx.arrays:
        if not (match := OUTPUT.fullmatch(name)):
            continue
        p, q, samples = map(int, match.groups()[:3])
        upstream = np.zeros((len(maps), places, p, q, channels), fx.dtype)
        for n, numbers in enumerate(of_image):
            upstream[n, : len(numbers)] = fx[f"upstream_{p}x{q}"][numbers].transpose(0, 2, 3, 1)

        @jax.jit
        def run(maps, boxes, there, upstream, size=(p, q), samples=samples, aligned=match[4] == "aligned"):
            pooled, pull = jax.vjp(
                lambda x: roi_align(x, boxes, there, stride=STRIDE, size=size, samples=samples, aligned=aligned), maps
            )
            return pooled, pull(upstream)[0]

        pooled, gradient = run(maps, boxes, there, upstream)
        found[name] = np.asarray(pooled)[:images][mask][order].transpose(0, 3, 1, 2)
        if (of_map := f"d_{name.removeprefix('out_')}") in fx.arrays:
            found[of_map] = np.asarray(gradient)[:images].transpose(0, 3, 1, 2)
    if mesh.size == 1:
        whole = np.array([[[0, 0, width * STRIDE, height * STRIDE]]], fx.dtype)
        options = {"stride": STRIDE, "size": (height, width), "samples": 1}
        same = roi_align(maps[1:2], whole, np.ones((1, 1), bool), **options)
        found[f"identity_{height}x{width}_sr1"] = same[0, 0].transpose(2, 0, 1)
    return found
