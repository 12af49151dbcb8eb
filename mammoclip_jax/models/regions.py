"""Vectors of regions of an image, and of the whole image as one more of them (RegionCLIP, Zhong et al. 2022,
arXiv:2112.09106, sec. 3.1: the whole image is a box too, so that images and regions share their head)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mammoclip_jax.models.attention_pool import AttentionPool
from mammoclip_jax.models.elementwise import gelu
from mammoclip_jax.models.products import Dense
from mammoclip_jax.models.roi_align import roi_align, roi_align_levels
from mammoclip_jax.names import check_name

POOLS = ("mean", "max", "attention")  # of the bins of a region
LEVELS = ("all", "size")


class Regions(nn.Module):
    """RoIAlign of stage maps, one vector of the bins, and one or two linear maps of it.

    Parameters: out {kernel, bias}; hidden where `hidden` is set; pool_STAGE of an attention pool; lateral_STAGE where each
    region has the stage of its size.

    Attributes:
        stages: of the image encoder, from fine to coarse.
        levels: "all", a region is pooled from each of the stages, one behind the other; "size", from the one on which it
            has about 14 cells (`roi_align.level_of`), the stages mapped to `dim` channels before.
        size: bins along each side of a region.
        pool: one of POOLS; "attention" is CLIP's (`attention_pool`), with `heads` heads.
        hidden: width between two linear maps; 0: one linear map.
    """

    stages: tuple[str, ...]
    levels: str = "all"
    size: int = 7
    pool: str = "mean"
    heads: int = 8
    hidden: int = 0
    dim: int = 512
    dtype: Any = jnp.float32

    @property
    def needs(self) -> tuple[str, ...]:
        return (*(f"image/{stage}" for stage in self.stages), *(f"boxes/{stage}" for stage in self.stages), "regions")

    def __call__(self, inputs: Mapping[str, Array], train: bool) -> dict[str, Array]:
        """vectors [B V R dim] and mask [B V R] of the regions behind the first, and image [B V dim], the first's."""
        there = inputs["regions"]
        rows, views = there.shape[:2]
        maps, boxes = (
            {
                stage: inputs[f"{of}/{stage}"].reshape(rows * views, *inputs[f"{of}/{stage}"].shape[2:])
                for stage in self.stages
            }
            for of in ("image", "boxes")
        )
        vectors = self.of_boxes(maps, boxes, there.reshape(rows * views, -1)).reshape(*there.shape, -1)
        return {"vectors": vectors[:, :, 1:], "mask": there[:, :, 1:], "image": vectors[:, :, 0]}

    @nn.compact
    def of_boxes(
        self,
        maps: Mapping[str, Float[Array, "N h w c"]],
        boxes: Mapping[str, Float[Array, "N R 4"]],
        mask: Bool[Array, "N R"],
    ) -> Float[Array, "N R dim"]:
        """Vectors, not of unit norm, of boxes (left, top, right, bottom) that are given in the cells of each stage.

        Raises:
            UserError: `pool` or `levels` is none of those above.
        """
        check_name(self.pool, POOLS, "pool of a head of kind regions")
        check_name(self.levels, LEVELS, "levels of a head of kind regions")
        size = (self.size, self.size)
        if self.levels == "size":
            finest = maps[self.stages[0]].shape[1]
            strides = tuple(round(finest / maps[stage].shape[1]) for stage in self.stages)
            even = [Dense(self.dim, dtype=self.dtype, name=f"lateral_{stage}")(maps[stage]) for stage in self.stages]
            bins = {"": roi_align_levels(even, boxes[self.stages[0]], mask, strides=strides, size=size)}
        else:
            bins = {stage: roi_align(maps[stage], boxes[stage], mask, stride=1.0, size=size) for stage in self.stages}
        x = jnp.concatenate([self._pooled(stage, x) for stage, x in bins.items()], axis=-1)
        if self.hidden:
            x = gelu(Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
        return Dense(self.dim, dtype=self.dtype, name="out")(x)

    def _pooled(self, stage: str, bins: Float[Array, "N R p q c"]) -> Float[Array, "N R c"]:
        if self.pool == "attention":
            n, regions, *rest = bins.shape
            pool = AttentionPool(self.heads, rest[-1], self.dtype, name="_".join(filter(None, ("pool", stage))))
            return pool(bins.reshape(n * regions, *rest)).reshape(n, regions, -1)
        return bins.mean(axis=(2, 3)) if self.pool == "mean" else bins.max(axis=(2, 3))
