"""What every model says of regions of its images, without a head of regions: a part of `inference.ImageModel`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from mammoclip_jax.explain.maps import Grid
from mammoclip_jax.models.roi_align import roi_align
from mammoclip_jax.names import check_name
from mammoclip_jax.training import augment

CONTEXT = 2.0  # sides of what is cut out around a box, in the box's own


class RegionMixin:
    """Vectors of the regions of images, each by itself.

    What it takes of the model:
    """

    stages: tuple[str, ...]
    stage_grid: Callable[[str], Grid]
    _options: augment.Preprocess
    _stage_maps: Any
    _module: Any  # has a `project_image`
    _encode: Any
    _of_images: Any

    def region_means(
        self, images: Shaped[np.ndarray, "N H W"], boxes: Float[np.ndarray, "N R 4"], stages: Sequence[str] = ()
    ) -> Float[np.ndarray, "N R c"]:
        """The mean of each box of the image encoder's stage maps, by RoIAlign, one stage behind the other.

        Args:
            images: preprocessed, uint8 or uint16.
            boxes: left, top, right, bottom in their pixels.
            stages: of the image encoder; (): all.

        Raises:
            UserError: there is no such stage, or no image.
        """
        for stage in stages:
            check_name(stage, self.stages, "stage of the image encoder")
        program = functools.partial(self._region_means, tuple(stages) or self.stages)
        return self._of_images(program, images, np.asarray(boxes, np.float32))

    def embed_places(
        self, images: Shaped[np.ndarray, "N H W"], boxes: Float[np.ndarray, "N R 4"]
    ) -> Float[np.ndarray, "N R D"]:
        """Unit vectors of what the last stage holds in each box, projected as the whole image's pooled features are: what
        RegionCLIP (arXiv:2112.09106) calls CLIP's own vector of a region.

        Raises:
            UserError: the images' vectors are made by a head of regions.
        """
        return self._of_images(self._embed_places, images, np.asarray(boxes, np.float32))

    def embed_crops(
        self, images: Shaped[np.ndarray, "N H W"], boxes: Float[np.ndarray, "N R 4"], context: float = CONTEXT
    ) -> Float[np.ndarray, "N R D"]:
        """Unit vectors of what is cut out around each box, enlarged to a whole image.

        Args:
            context: sides of what is cut out, in those of the box; the shorter one grows to the image's shape.
        """
        program = functools.partial(self._embed_crops, float(context))
        return self._of_images(program, images, np.asarray(boxes, np.float32))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _region_means(self, stages, variables, images, boxes):
        return self._means(stages, variables, images, boxes)

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_places(self, variables, images, boxes):
        means = self._means(self.stages[-1:], variables, images, boxes)
        return self._module.apply(variables, means, train=False, method="project_image")

    def _means(self, stages, variables, images, boxes):
        _, maps = self._stage_maps(variables, images)
        there, means = jnp.ones(boxes.shape[:2], bool), []
        for stage in stages:
            grid = self.stage_grid(stage)
            # RoIAlign takes the first cell's centre for half a stride, which is not so behind every pad.
            shift = jnp.array([grid.column - grid.stride / 2, grid.row - grid.stride / 2] * 2)
            found = roi_align(maps[stage], boxes - shift, there, stride=grid.stride, size=(1, 1))
            means.append(found[:, :, 0, 0].astype(jnp.float32))
        return jnp.concatenate(means, axis=-1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _embed_crops(self, context, variables, images, boxes):
        unit = augment.to_unit(images)

        def one(boxes):  # of each image; one after another, so that memory is that of whole images
            crops = jax.vmap(augment.enlarged)(unit, around(boxes, images.shape[1:], context))
            return self._encode(variables, augment.normalise(crops, self._options))[0]

        return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(boxes, 1, 0)), 0, 1)


def around(boxes: Float[Any, "*n 4"], shape: tuple[int, int], context: float) -> Float[Any, "*n 4"]:
    """Boxes of the shape of an image [H, W] about the same centres, that hold those `context` times as long and wide."""
    ratio = shape[1] / shape[0]
    centre, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1) * context
    height = jnp.maximum(sides[..., 1], sides[..., 0] / ratio)
    half = jnp.stack([height * ratio, height], axis=-1) / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)
