"""Networks whose outputs are masks, logits [N H W classes] in pixels of the image: a U-Net, or any encoder and a pyramid."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.models import unet
from mammoclip_jax.models.heads import labels_of
from mammoclip_jax.models.retinanet import LEVELS, Conv, Pyramid, grid_sizes, strides_of, three
from mammoclip_jax.names import check_options

FIELDS = ("image", "labels", "dtype")


class PyramidSegmenter(nn.Module):
    """The feature pyramid of RetinaNet with a semantic head (Kirillov et al. 2019, arXiv:1901.02446, section 3.1).

    Each level goes through a 3 x 3 convolution and ReLU, is enlarged linearly to the finest one, of a stride of 8 pixels,
    and their sum becomes logits, which are enlarged to the image. Here one convolution a level, where the original has
    one a doubling, and no group norm.

    Attributes:
        stages: names of the encoder's stage maps that are C3, C4 and C5. Their strides must be multiples of 8, 16, 32.
        features: channels of the pyramid.
        dtype: of products and activations; outputs and parameters are float32.
        prior: as of `unet.UNet`.
    """

    image_encoder: nn.Module
    stages: Sequence[str]
    classes: int
    features: int = 256
    dtype: Any = jnp.float32
    prior: tuple[float, ...] = ()

    def setup(self):
        self.fpn = Pyramid(self.features, self.dtype)
        self.levels = [Conv(self.features, dtype=self.dtype) for _ in LEVELS]
        self.output = Conv(self.classes, 1, dtype=self.dtype, bias_init=unet.log_odds(self.prior))

    def __call__(self, image: Float[Array, "N H W C"], *, train: bool = False) -> Float[Array, "N H W classes"]:
        """Logits, float32. Training needs the "dropout" generator and a mutable "batch_stats".

        Raises:
            UserError: the encoder has no such stages, or their strides do not fit.
        """
        return self._outputs(image, train, {})[0]

    def encode_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N classes"], Mapping[str, Array]]:
        """Each channel's highest logit, and the image encoder's named stage maps; `offsets` are added to the stages of
        their name."""
        logits, maps = self._outputs(image, train, offsets)
        return logits.max(axis=(1, 2)), maps

    def _outputs(self, image, train, offsets):
        size = image.shape[1:3]
        strides = strides_of(self.image_encoder, self.stages, size)
        _, maps = self.image_encoder(image, train=train, offsets=offsets)
        grids = grid_sizes(*size)
        pyramid = self.fpn([maps[stage] for stage in self.stages], strides, grids)
        joined = sum(_resized(nn.relu(conv(x)), grids[0]) for conv, x in zip(self.levels, pyramid, strict=True))
        logits = self.output(joined)
        return _resized(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), size), maps


def _resized(x, size):
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear")


def from_options(
    options: Mapping[str, Any], image_encoder: Callable[..., nn.Module], prior: tuple[float, ...] = ()
) -> unet.UNet | PyramidSegmenter:
    """The network of {"image": options, "labels": names of the channels, "dtype"}.

    An image encoder of the name "unet" is the way down of a U-Net, with the options of `unet.from_options`; any other
    gets a pyramid, with the fields "stages", three names, and perhaps "features". Other fields of `config.model` are
    not looked at. `image_encoder` makes the encoder of options and a dtype (`models.image_encoder`). `prior` is the
    probability of each label at the start.

    Raises:
        UserError: a field is missing, an option is unknown, or the stages are not three.
    """
    labels, dtype = labels_of(options, FIELDS, "a segmentation"), jnp.dtype(options["dtype"])
    image = dict(options["image"])
    if image.get("name") != "unet":
        stages = three(options.get("stages", ()))
        features = options.get("features", 256)
        return PyramidSegmenter(image_encoder(image, dtype), stages, len(labels), features, dtype, prior)
    del image["name"]
    check_options(unet.from_options, image, "a U-Net")
    return unet.from_options(dtype, len(labels), **image).clone(prior=prior)
