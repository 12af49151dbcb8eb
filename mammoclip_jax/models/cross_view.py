"""GLAM's head: mega-patches of the CC and the MLO view, each rebuilt from the other view (arXiv:2509.10344).

Once the breast lies at the left and the MLO is turned upright, a column of the grid is a depth from the chest wall, the
same in both views. A mega-patch may therefore look at the other view's mega-patches of its own column alone.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.attention import attention
from mammoclip_jax.models.products import Dense
from mammoclip_jax.models.vectors import exp_scale
from mammoclip_jax.names import check_name

POOLINGS = ("average", "attention")
EPS = 1e-5  # of torch's LayerNorm


class CrossAttention(nn.Module):
    """torch's MultiheadAttention; parameters query, key, value and out, each {kernel [C, C], bias [C]}."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N Q C"], other: Float[Array, "N K C"]) -> Float[Array, "N Q C"]:
        c = x.shape[-1]
        if c % self.heads:
            raise UserError(
                f"the {c} channels of the stage do not split over heads={self.heads} of the cross-view head."
            )

        def split(name, x):
            x = Dense(c, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

        found = attention(split("query", x), split("key", other), split("value", other))
        return Dense(c, dtype=self.dtype, name="out")(found.swapaxes(1, 2).reshape(x.shape))


class QueryPooler(nn.Module):
    """A fixed number of learnt queries that look at all patches (CoCa's pooler): LN of both, then attention."""

    queries: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: Float[Array, "N P C"]) -> Float[Array, "N queries C"]:
        query = self.param("query", nn.initializers.normal(1.0), (self.queries, patches.shape[-1]))
        query = nn.LayerNorm(EPS, use_fast_variance=False, name="query_norm")(query.astype(self.dtype))
        patches = nn.LayerNorm(EPS, use_fast_variance=False, name="key_norm")(patches)
        query = jnp.broadcast_to(query, (len(patches), *query.shape))
        return CrossAttention(self.heads, self.dtype, name="attention")(query, patches)


class CrossView(nn.Module):
    """Mega-patches of two views (CC in slot 0, MLO in slot 1) and what the other view makes of each.

    m = LN(pool(patches)); r1 = attention1(m1, m2), r2 = attention2(m2, m1), within a column where `columns`
    (GLAM model.py:365-538). Patches that fill no whole mega-patch, at the lower and right rim, are left out.

    Attributes:
        stage: of the image encoder.
        cell: rows and columns of patches in a mega-patch.
        pooling: "average" of the patches. "attention": as many free queries a view as there are mega-patches, which
            look at all patches (the released setting). They carry no geometry: any permutation of the patches leaves
            them, and the loss, as they are, so that "columns" of them mean nothing.
        columns: whether mega-patches look at their own column alone.
        heads, pooler_heads: of the cross-view attention, and of the pooler's.
        logit_scale: initial value of the factor on cosines; the parameter is its logarithm.
    """

    stage: str
    cell: tuple[int, int] = (4, 4)
    pooling: str = "average"
    columns: bool = True
    heads: int = 4
    pooler_heads: int = 8
    logit_scale: float = 1 / 0.07
    dtype: Any = jnp.float32

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"image/{self.stage}",)

    @nn.compact
    def __call__(self, inputs: Mapping[str, Array], train: bool) -> dict[str, Array]:
        """cells and rebuilt [B 2 J C], there [B]: breasts with both views, and logit_scale; in evaluation also
        column_cosines [B 2 J columns]: of a mega-patch and what it becomes from each column of the other view."""
        maps = inputs[f"image/{self.stage}"]
        check_name(self.pooling, POOLINGS, "pooling of the cross-view head")
        if maps.shape[1] != 2:
            raise UserError(
                f"a head of kind 'cross_view' needs the two views CC and MLO, got {maps.shape[1]}: set "
                "config.data.views to 2."
            )
        b, _, h, w, c = maps.shape
        rows, columns = h // self.cell[0], w // self.cell[1]
        if not rows * columns:
            raise UserError(f"the stage {self.stage} has {h} x {w} patches, fewer than one mega-patch of {self.cell}.")
        maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
        if self.pooling == "average":
            whole = maps[:, :, : rows * self.cell[0], : columns * self.cell[1]]
            pooled = whole.reshape(b, 2, rows, self.cell[0], columns, self.cell[1], c).mean(axis=(3, 5))
        else:
            pooled = jnp.stack(
                [
                    QueryPooler(rows * columns, self.pooler_heads, self.dtype, name=f"pooler{i + 1}")(
                        maps[:, i].reshape(b, h * w, c)
                    )
                    for i in range(2)
                ],
                axis=1,
            )
        cells = nn.LayerNorm(EPS, use_fast_variance=False, name="norm")(pooled).reshape(b, 2, rows, columns, c)

        def together(x):
            """[n K C] of what looks at one another."""
            return x.swapaxes(1, 2).reshape(b * columns, rows, c) if self.columns else x.reshape(b, rows * columns, c)

        def apart(x):
            return x.reshape(b, columns, rows, c).swapaxes(1, 2) if self.columns else x

        views = [together(cells[:, i]) for i in range(2)]
        attentions = [CrossAttention(self.heads, self.dtype, name=f"attention{i + 1}") for i in range(2)]
        rebuilt = [attend(views[i], views[1 - i]) for i, attend in enumerate(attentions)]
        rebuilt = jnp.stack([apart(x).reshape(b, rows * columns, c) for x in rebuilt], axis=1)
        found = {
            "cells": cells.reshape(b, 2, rows * columns, c),
            "rebuilt": rebuilt,
            "there": inputs["mask"] & inputs["view_mask"].all(axis=1),
            "logit_scale": exp_scale(self, self.logit_scale),
        }
        if not train:
            found["column_cosines"] = jnp.stack(
                [_of_columns(attend, found["cells"][:, i], cells[:, 1 - i]) for i, attend in enumerate(attentions)],
                axis=1,
            )
        return found


def _of_columns(
    attend: CrossAttention, cells: Float[Array, "B J C"], other: Float[Array, "B rows columns C"]
) -> Float[Array, "B J columns"]:
    """Cosine of each mega-patch with what the other view's column makes of it, for every column."""
    b, rows, columns, c = other.shape
    rebuilt = attend(jnp.repeat(cells, columns, axis=0), other.swapaxes(1, 2).reshape(b * columns, rows, c))
    rebuilt = rebuilt.reshape(b, columns, -1, c).astype(cells.dtype)
    norms = jnp.linalg.norm(cells, axis=-1)[:, None] * jnp.linalg.norm(rebuilt, axis=-1)
    products = jnp.einsum("bjc,bkjc->bkj", cells, rebuilt, precision="highest")
    return (products / jnp.maximum(norms, 1e-12)).swapaxes(1, 2)
