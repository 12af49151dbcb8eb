"""Heads that make the vectors of a loss term from what the towers give: patches, sentences and views.

A head sees the whole global batch at once, however many micro-batches the towers take, so its batch statistics are those
of the global batch. Its vectors are raw: the term that compares them divides by their norm.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_name


class Heads(nn.Module):
    """The heads of a dual encoder by name; parameters and statistics of each stand under its name.

    Attributes:
        makers: name -> (name=...) -> module, with an attribute `needs`: names of the inputs that it reads beside those
            of the batch, "image/pooled", "image/STAGE", "image/lit" and "text/states".
    """

    makers: Mapping[str, Callable[..., nn.Module]]

    def setup(self):
        self.by_name = {name: make(name=name) for name, make in self.makers.items()}

    def __call__(self, name: str, inputs: Mapping[str, Array], train: bool) -> dict[str, Array]:
        """What the head `name` makes of the outputs of the towers and the `mask`, `view_mask`, `token_mask` and
        `sentence` of a `Batch`, by the names that terms know it by: `name`/patches and so on."""
        head = self.by_name[name]
        for need in head.needs:
            check_name(need, inputs, f"output of the towers, which config.model.heads.{name} reads,")
        return {f"{name}/{part}": value for part, value in head(inputs, train).items()}

    def needs(self, name: str) -> tuple[str, ...]:
        """The inputs of that head."""
        return self.makers[name](parent=None).needs

    def of_regions(self) -> tuple[str, ...]:
        """The heads of kind regions."""
        return tuple(name for name in self.makers if "regions" in self.needs(name))

    def local(self) -> dict[str, str]:
        """{stage of the image encoder: the first head of kind local that sees it}, in the order of the heads."""
        stages: dict[str, str] = {}
        for name, make in self.makers.items():
            head = make(parent=None)
            if isinstance(head, Local):
                stages.setdefault(head.stage, name)
        return stages


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over the positions of `mask`; parameters scale and bias where `affine`, batch_stats mean and var.

    The statistics are those of the global batch. As in torch, and as `layers.BatchNorm`, positions are normalised by
    the biased variance of the batch, and the running variance is updated with the unbiased one, n / (n - 1) of it: so
    imported statistics go on as they would have there, and exported ones are what torch expects. A batch without any
    position leaves the running statistics as they are. eps and momentum are torch's defaults.
    """

    affine: bool = True
    eps: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"], mask: Bool[Array, "*n"], train: bool) -> Float[Array, "*n c"]:
        c, wide = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        y, mean, var = x.astype(wide), running_mean.value, running_var.value
        if train:
            counts, axes = mask[..., None], tuple(range(x.ndim - 1))
            n = counts.sum(dtype=wide)
            mean = jnp.where(counts, y, 0).sum(axes) / jnp.maximum(n, 1)
            var = jnp.where(counts, jnp.square(y - mean), 0).sum(axes) / jnp.maximum(n, 1)
            if not self.is_initializing():
                share = jnp.where(n > 0, 1 - self.momentum, 0).astype(wide)
                unbiased = var * n / jnp.maximum(n - 1, 1)
                running_mean.value = (1 - share) * running_mean.value + share * mean
                running_var.value = (1 - share) * running_var.value + share * unbiased
        y = (y - mean) * lax.rsqrt(var + self.eps)
        if self.affine:
            y = y * self.param("scale", nn.initializers.ones, (c,)) + self.param("bias", nn.initializers.zeros, (c,))
        return y.astype(x.dtype)


class NormalisedMLP(nn.Module):
    """Linear, BatchNorm, ReLU, linear, BatchNorm; zero at positions outside the mask.

    Parameters: hidden and out, {kernel [in, out], and bias where `bias`}; hidden_norm/{scale, bias}, and out_norm the
    same where `affine`; batch_stats of both norms.
    """

    hidden: int
    dim: int
    bias: bool = True
    affine: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"], mask: Bool[Array, "*n"], train: bool) -> Float[Array, "*n dim"]:
        x = Dense(self.hidden, self.bias, self.dtype, name="hidden")(x)
        x = nn.relu(MaskedBatchNorm(name="hidden_norm")(x, mask, train))
        x = Dense(self.dim, self.bias, self.dtype, name="out")(x)
        return jnp.where(mask[..., None], MaskedBatchNorm(self.affine, name="out_norm")(x, mask, train), 0)


SENTENCES = ("separator", "mean")


class Local(nn.Module):
    """Vectors of the patches of a stage and of the sentences of a text, for their alignment (MaMA, Du et al. 2024,
    arXiv:2409.18119): each through 1x1, BN, ReLU, 1x1, BN without affine.

    MaMA's code normalises each caption's few sentences by themselves; here the statistics are over all that exist.

    Attributes:
        stage: of the image encoder.
        hidden, dim: widths.
        slots: of the views that it sees, each with the text of the same slot (or the only one).
        sentences: the most of a text; those behind are left out.
        sentence: "separator", the state at a sentence's last token, or "mean", of its tokens.
        lit: of a patch's pixels, the share that must be brighter than the image's darkest for the patch to count; 0: all
            patches do.
        logit_scale: initial value of the factor on cosines; the parameter is its logarithm.
    """

    stage: str
    hidden: int = 2048
    dim: int = 512
    slots: tuple[int, ...] = (0,)
    sentences: int = 16
    sentence: str = "separator"
    lit: float = 0.0
    logit_scale: float = 1 / 0.07
    dtype: Any = jnp.float32

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"image/{self.stage}", "text/states", *(("image/lit",) if self.lit else ()))

    def setup(self):
        options = {"hidden": self.hidden, "dim": self.dim, "dtype": self.dtype}
        self.patch_head = NormalisedMLP(name="patches", **options)
        self.sentence_head = NormalisedMLP(name="sentences", **options)
        self.factor = exp_scale(self, self.logit_scale)

    def __call__(self, inputs: Mapping[str, Array], train: bool) -> dict[str, Array]:
        """patches [B slots P dim], patch_mask, sentences [B slots S dim], sentence_mask and logit_scale."""
        views, texts = list(self.slots), inputs["text/states"].shape[1]
        maps = inputs[f"image/{self.stage}"]
        if "sentence" not in inputs:
            raise UserError(
                "a head of kind 'local' needs batches that say which sentence each token belongs to (Batch.sentence)."
            )
        _check_slots("local", views, maps.shape[1])
        maps, there = maps[:, views], (inputs["view_mask"] & inputs["mask"][:, None])[:, views]
        b, v, h, w, _ = maps.shape
        patches, patch_mask = self.of_patches(maps, inputs["image/lit"][:, views] if self.lit else None, there, train)
        mine = [min(view, texts - 1) for view in views]
        states, sentence, token_mask = (
            inputs[name][:, mine].reshape(b * v, *inputs[name].shape[2:])
            for name in ("text/states", "sentence", "token_mask")
        )
        vectors, found = self.of_sentences(states, sentence, token_mask, there.reshape(-1), train)
        return {
            "patches": patches.reshape(b, v, h * w, -1),
            "patch_mask": patch_mask.reshape(b, v, -1),
            "sentences": vectors.reshape(b, v, self.sentences, -1),
            "sentence_mask": found.reshape(b, v, -1),
            "logit_scale": self.factor,
        }

    def of_patches(
        self, maps: Float[Array, "*n h w c"], lit: Bool[Array, "*n H W"] | None, there: Bool[Array, "*n"], train: bool
    ) -> tuple[Float[Array, "*n h w dim"], Bool[Array, "*n h w"]]:
        """Vectors of the patches of the images that are there, and which of them count; the others are 0."""
        h, w = maps.shape[-3:-1]
        mask = jnp.broadcast_to(there[..., None, None], maps.shape[:-1])
        if self.lit:
            mask &= _shares(lit, h, w) >= self.lit
        return self.patch_head(maps, mask, train), mask

    def of_sentences(
        self,
        states: Float[Array, "N L C"],
        sentence: Int[Array, "N L"],
        token_mask: Bool[Array, "N L"],
        there: Bool[Array, " N"],
        train: bool,
    ) -> tuple[Float[Array, "N S dim"], Bool[Array, "N S"]]:
        """Vectors of the sentences of the texts that are there, and which sentences there are; the others are 0."""
        vectors, found = sentence_vectors(states, sentence, token_mask, self.sentences, self.sentence)
        found &= there[:, None]
        return self.sentence_head(vectors, found, train), found


class SimCLR(nn.Module):
    """The projection of whole views for NT-Xent (Chen et al. 2020, arXiv:2002.05709): linear, BN, ReLU, linear, BN.

    The linear maps have no bias, both norms are affine, as lightly's SimCLRProjectionHead (MaMA). All views of the batch
    share one set of statistics.

    Attributes:
        hidden: width; None: of the pooled features.
    """

    hidden: int | None = None
    dim: int = 512
    dtype: Any = jnp.float32

    needs = ("image/pooled",)

    @nn.compact
    def __call__(self, inputs: Mapping[str, Array], train: bool) -> dict[str, Array]:
        """vectors [B V dim], and there [B V]: the views that hold an image of their own."""
        pooled, there = inputs["image/pooled"], inputs["view_mask"] & inputs["mask"][:, None]
        head = NormalisedMLP(self.hidden or pooled.shape[-1], self.dim, False, True, self.dtype, name="projection")
        return {"vectors": head(pooled, there, train), "there": there}


def sentence_vectors(
    states: Float[Array, "N L C"],
    sentence: Int[Array, "N L"],
    mask: Bool[Array, "N L"],
    count: int,
    how: str = "separator",
) -> tuple[Float[Array, "N count C"], Bool[Array, "N count"]]:
    """One vector for each of a text's first `count` sentences, and which of them there are. Padding changes nothing.

    Args:
        sentence: number of the sentence that each token belongs to, -1 for tokens of none.
        how: "separator", the state at the sentence's last token (its separator, where the tokenizer has one); "mean",
            the mean of its tokens, in at least float32. Both are MaMA's (A.6 of its spec).

    Raises:
        UserError: there is no such way.
    """
    check_name(how, SENTENCES, "vector of a sentence")
    of_sentence = (sentence[:, None] == jnp.arange(count)[:, None]) & mask[:, None]  # [N count L]
    found = of_sentence.any(axis=2)
    if how == "mean":
        wide = jnp.promote_types(states.dtype, jnp.float32)
        sums = jnp.einsum("nsl,nlc->nsc", of_sentence.astype(wide), states.astype(wide), precision="highest")
        vectors = sums / jnp.maximum(of_sentence.sum(axis=2, keepdims=True), 1)
    else:
        last = states.shape[1] - 1 - jnp.argmax(of_sentence[:, :, ::-1], axis=2)
        vectors = jnp.take_along_axis(states, last[..., None], axis=1)
    return jnp.where(found[..., None], vectors, 0).astype(states.dtype), found


def exp_scale(module: nn.Module, start: float) -> Float[Array, ""]:
    """The factor on cosines of a head: exp of its parameter `logit_scale`."""
    return jnp.exp(module.param("logit_scale", lambda _: jnp.float32(math.log(start))))


def _check_slots(head: str, slots, views: int) -> None:
    if not slots or not 0 <= min(slots) <= max(slots) < views:
        raise UserError(
            f"a head of kind {head!r} sees the views {tuple(slots)}, and the batch has {views}: raise "
            "config.data.views, or change the head's slots."
        )


def _shares(lit: Bool[Array, "*n H W"], h: int, w: int) -> Float[Array, "*n h w"]:
    """The share of the pixels that are lit, in each cell of a grid over the image."""
    *n, height, width = lit.shape
    rows, columns = -(-height // h), -(-width // w)
    lit = jnp.pad(lit, [(0, 0)] * len(n) + [(0, h * rows - height), (0, w * columns - width)])
    return lit.reshape(*n, h, rows, w, columns).mean(axis=(-3, -1), dtype=jnp.float32)
