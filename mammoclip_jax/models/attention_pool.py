"""CLIP's attention pool of a map or of a region of one (Radford et al. 2021, arXiv:2103.00020, sec. 2.4; RegionCLIP)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.attention import attention
from mammoclip_jax.models.cubic import cubic_matrix
from mammoclip_jax.models.products import Dense


class AttentionPool(nn.Module):
    """The mean of the cells looks at itself and at all cells, each at its learnt place; `dim` numbers of what it found.

    Parameters, named as OpenAI's: positional_embedding [1 + h w, C] (the mean's first), q_proj, k_proj, v_proj
    {kernel [C, C], bias [C]} and c_proj {kernel [C, dim], bias [dim]}.

    Attributes:
        grid: rows and columns that the places are learnt for; to maps of others they are resampled bicubically, as a
            vision transformer's. None: those of the map that the parameters are made with, and no other.
    """

    heads: int
    dim: int
    dtype: Any = jnp.float32
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "N h w C"]) -> Float[Array, "N dim"]:
        """In `dtype`.

        Raises:
            UserError: the channels do not split over the heads.
        """
        n, h, w, c = x.shape
        if c % self.heads:
            raise UserError(f"the {c} channels of the map do not split over heads={self.heads} of the attention pool.")
        cells = x.reshape(n, h * w, c).astype(self.dtype)
        learnt = self.grid or (h, w)
        places = self.param("positional_embedding", nn.initializers.normal(c**-0.5), (1 + learnt[0] * learnt[1], c))
        if learnt != (h, w):
            rows, columns = (
                cubic_matrix(old, new, antialias=False).astype(places.dtype) for old, new in zip(learnt, (h, w))
            )
            among = places[1:].reshape(*learnt, c)
            among = jnp.einsum("hg,wk,gkc->hwc", rows, columns, among, precision=lax.Precision.HIGHEST)
            places = jnp.concatenate([places[:1], among.reshape(h * w, c)])
        cells = jnp.concatenate([cells.mean(axis=1, keepdims=True), cells], axis=1) + places.astype(self.dtype)

        def split(name, x):
            return Dense(c, dtype=self.dtype, name=name)(x).reshape(n, -1, self.heads, c // self.heads).swapaxes(1, 2)

        found = attention(split("q_proj", cells[:, :1]), split("k_proj", cells), split("v_proj", cells))
        return Dense(self.dim, dtype=self.dtype, name="c_proj")(found.reshape(n, c))
