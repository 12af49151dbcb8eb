"""What is the own of CLIP's ResNets: regions through the last stage and the pool, frozen norms; the rest is in
test_image_encoders.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_images
from comparison import close
from image_contract import FORMS, evaluated, exact, image, run

from mammoclip_jax.models.clip_resnet import VARIANTS

FORM = FORMS["clip_resnet"]
CELLS = FORM.options["size"] // 16  # of "stage3", along each side of a nominal image


@functools.partial(jax.jit, static_argnums=(0, 3))
def of_regions(model, variables, features, train=False):
    return model.apply(variables, features, train=train, method="of_regions")


def test_the_whole_image_is_one_more_region():
    """RoIAlign of a nominal image's whole box has a sample in the middle of each cell: the map itself. Of another box it
    has not."""
    model, variables, x = FORM.model(), FORM.variables(), image(FORM.even)
    outputs, _ = run(model, variables, x)
    height, width = FORM.even[1:3]
    boxes = np.float32([[[0, 0, width, height], [0, 0, width, height / 2]]] * len(x))
    found = jax.jit(lambda maps: model.apply(variables, maps, boxes, method="of_boxes"))(outputs)
    close(found[:, 0], outputs["pooled"], 1e-5)
    assert abs(found[:, 1] - outputs["pooled"]).max() > 1e-2


def test_regions_of_any_grid_equal_the_whole_image():
    """At an odd size as well, where the pool's positions are resampled."""
    model, variables, _, _ = exact(FORM)
    outputs = evaluated(FORM)
    with jax.enable_x64(True):
        close(of_regions(model, variables, outputs["stage3"]), outputs["pooled"], 1e-10)


@pytest.mark.parity
def test_regions_equal_torch():
    model, variables = FORM.model(), FORM.variables()
    theirs = torch_images.CLIP_RESNET.model(model, variables).eval()
    torch = pytest.importorskip("torch")
    features = image((3, CELLS, CELLS, 4 * 4 * FORM.options["width"]))
    with torch.no_grad():
        expected = theirs.attnpool(theirs.layer4(torch.tensor(features.transpose(0, 3, 1, 2))))
    close(of_regions(model, variables, features), expected.numpy(), 1e-5)


def test_frozen_norms_are_those_of_evaluation():
    """In training too, of images and regions: their program is that of evaluation, and they stay."""
    frozen, x = FORM.model(frozen_norms=True), image(FORM.even)
    shapes = jax.eval_shape(FORM.model().init, jax.random.key(0), x)

    def program(model, train, method):
        inputs = x if method == "__call__" else image((2, CELLS, CELLS, 128))
        apply = lambda variables: model.apply(variables, inputs, train=train, method=method, mutable=["batch_stats"])
        return str(jax.make_jaxpr(apply)(shapes))

    for method in ("__call__", "of_regions"):
        evaluated_ = program(FORM.model(), False, method)
        assert program(frozen, True, method) == evaluated_ != program(FORM.model(), True, method)


def test_stage_grids_say_where_a_cell_looks():
    """The rows at which a cell has a gradient lie evenly around its centre. (A NaN as test_image_encoders.py has it gets
    lost: XLA's CPU backend takes the maximum of NaN and 0 for 0 where a mean follows.)"""
    form = dataclasses.replace(FORM, options=FORM.options | {"width": 4, "depths": (1, 1, 1, 1)})
    model, variables, cell = form.model(), form.variables(channels=1), {"stem": 6, "stage1": 6, "stage2": 6}

    @jax.jit
    def slopes(x):
        rows, back = jax.vjp(lambda x: {name: run(model, variables, x)[0][name][:, i] for name, i in cell.items()}, x)
        zeros = jax.tree.map(jnp.zeros_like, rows)
        return {name: back(zeros | {name: jnp.ones_like(rows[name])})[0] for name in cell}

    for name, slope in slopes(image((1, 96, 32, 1))).items():
        rows = np.flatnonzero(abs(slope).max((0, 2, 3)))
        stride, centre = model.stage_grids(96, 32)[name]
        assert 0 < rows[0] < rows[-1] < 95 and rows.mean() + 0.5 == stride * cell[name] + centre[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_region_of_the_published_size_fills_the_grid_of_the_pool(variant):
    """14 x 14 cells of "stage3" (18 x 18 of RN50x4) are halved to the grid that the places are learnt for."""
    size = VARIANTS[variant].size
    assert (
        size % 32 == 0 and size // 16 == {"RN50": 14, "RN101": 14, "RN50x4": 18, "RN50x16": 24, "RN50x64": 28}[variant]
    )
