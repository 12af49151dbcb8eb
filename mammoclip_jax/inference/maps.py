"""What every model can be asked about its maps: a part of `inference.ImageModel`."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Shaped

from mammoclip_jax import explain
from mammoclip_jax.errors import UserError
from mammoclip_jax.explain import deletion, randomise
from mammoclip_jax.explain.maps import Grid, Subject, saliency_map
from mammoclip_jax.inference import inputs
from mammoclip_jax.models import attention
from mammoclip_jax.names import check_name, lookup
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import batch_sharding, replicated


class SaliencyMixin:
    """Maps of a model, their insertion and deletion curves, and random weights to hold against them.

    What it takes of the model:
    """

    labels: tuple[str, ...]
    stages: tuple[str, ...]
    local_heads: Mapping[str, str]
    attribute_stages: tuple[str, ...]
    preprocessing: dict[str, Any]
    _module: Any  # has an `image_encoder` and a method `project_image`
    _variables: Any
    _options: augment.Preprocess
    _mesh: Any
    _encode: Any
    _directions: Any
    _fresh: Any
    _of_images: Any

    def saliency(
        self,
        images: Shaped[np.ndarray, "N H W"],
        towards: Sequence[str] | Float[np.ndarray, "N D"],
        *,
        method: str = "grad_cam",
        stage: str | None = None,
        raw: bool = False,
        **options,
    ) -> Float[np.ndarray, "N H W"]:
        """What in each image speaks for its text or label, from 0 to 1: 1 where most does, all 0 where nothing does.

        Each image is computed by itself: no result depends on the batch or on the number of devices.

        Args:
            towards: N texts (of a classifier: labels), or N directions: vectors that the image's vector is multiplied
                with, such as the difference of two text embeddings (of a classifier: weights on all logits). Of
                local_alignment they lie in the space of the head: see `text_directions`.
            method: one of `explain.METHODS`; its file there says what it is.
            stage: of the image encoder, for the methods that look at one; None leaves the choice to the method. Of factor
                several may be named, as "stage2+stage3", whose maps are added up.
            raw: the signed map itself, neither cut at 0 nor scaled.
            options: of the method, such as `steps` or `window`.

        Raises:
            UserError: there is no such method, stage, option or label, or the method does not fit the encoder.
        """
        stage = self.map_stage(method, stage)
        explain.function_of(method, options)
        towards = inputs.pairs(len(images), towards, self.labels)
        program = functools.partial(self._saliency, method, stage, raw, tuple(sorted(options.items())))
        return self._of_images(program, images, self._directions(towards, method, stage))

    def map_stage(self, method: str, stage: str | None = None) -> str:
        """The stage that a method looks at, or several, as "stage2+stage3"; "" for those that look at none.

        See `explain.stage_of`.

        Raises:
            UserError: there is no such method or stage, or the method does not fit the encoder or the stage.
        """
        local, attributes = tuple(self.local_heads), tuple(self.attribute_stages)
        return explain.stage_of(method, stage, self._module.image_encoder, self.stages, local, attributes)

    def stage_grid(self, stage: str) -> Grid:
        """Where the cells of a stage of the image encoder lie on the preprocessed image.

        Raises:
            UserError: there is no such stage.
        """
        grids = self._module.image_encoder.stage_grids(self.preprocessing["height"], self.preprocessing["width"])
        stride, centre = lookup(grids, stage, "stage of the image encoder")
        return Grid(stride, *centre)

    def deletion_curves(
        self,
        images: Shaped[np.ndarray, "N H W"],
        towards: Sequence[str] | Float[np.ndarray, "N D"],
        maps: Float[np.ndarray, "N H W"],
        tissue: Bool[np.ndarray, "N H W"],
        *,
        steps: int = 20,
        fill: str = "black",
    ) -> Float[np.ndarray, "N 2 steps+1"]:
        """The score of each image as its hottest pixels appear on a blurred one (0), and as they go (1).

        See `explain.deletion.curves`. The score is what `saliency` explains.

        Raises:
            UserError: `fill` is not one of `explain.deletion.FILLS`, or `steps` below 1.
        """
        check_name(fill, deletion.FILLS, "fill of deleted pixels")
        if steps < 1:
            raise UserError(f"steps={steps} of insertion and deletion must be 1 or more.")
        towards = inputs.pairs(len(images), towards, self.labels)
        program = functools.partial(self._deletion_curves, steps, fill)
        return self._of_images(
            program, images, self._directions(towards), np.asarray(maps, np.float32), np.asarray(tissue, bool)
        )

    def randomise(self, seed: int = 0, keep: str | None = None):
        """Fresh weights for `using`, for sanity checks of maps (Adebayo et al. 2018, arXiv:1810.03292).

        Args:
            keep: a stage of the image encoder: the weights that its map depends on stay those of the model, and what
                is above it is made anew (cascading randomisation). None: all are new.
        """
        fresh = jax.jit(self._fresh, out_shardings=replicated(self._mesh))(jax.random.key(seed))
        fresh = {kind: fresh.get(kind, {}) for kind in self._variables}  # a run's have empty batch statistics
        if keep is None:
            return fresh
        check_name(keep, self.stages, "stage of the image encoder")

        def map_of(variables):
            return self._encode(variables, self._blank())[1][keep]

        return randomise.above(map_of, self._variables, fresh)

    @contextlib.contextmanager
    def using(self, variables) -> Iterator[None]:
        """Within it, the model has these variables, of the same shapes; nothing is compiled anew."""
        own, self._variables = self._variables, variables
        try:
            yield
        finally:
            self._variables = own

    def _blank(self):
        """One image as the network sees it."""
        return jnp.zeros((1, self.preprocessing["height"], self.preprocessing["width"], self._options.channels))

    @functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
    def _saliency(self, method, stage, raw, options, variables, images, directions):
        grids = []
        if explain.METHODS[method].over != "image":
            names = (stage or self.stages[-1]).split(explain.SUM)  # a transformer's have one grid
            grids = [self.stage_grid(name) for name in names]

        def one(variables, image, direction):
            return saliency_map(
                self._subject(variables), self._pixels(image), direction, method, stage, grids, raw, dict(options)
            )

        return self._each(one)(variables, images, directions)

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def _deletion_curves(self, steps, fill, variables, images, directions, maps, tissue):
        def one(variables, image, direction, heat, inside):
            return deletion.curves(
                self._subject(variables), self._pixels(image), direction, heat, inside, steps, fill=fill
            )

        return self._each(one)(variables, images, directions, maps, tissue)

    def _pixels(self, image):
        return augment.eval_images(image[None], self._options)

    def _subject(self, variables) -> Subject:
        encoder, options = self._module.image_encoder, self._options

        def queries_and_keys(pixels):
            return attention.recorded(self._encode(variables, pixels, mutable=["intermediates"])[1])

        def patches(pixels, stage):
            features = self._encode(variables, pixels)[1][stage]
            return self._module.apply(
                variables, self.local_heads[stage], features, augment.lit(pixels), method="embed_patches"
            )

        return Subject(
            encode=functools.partial(self._encode, variables),
            project=functools.partial(self._module.apply, variables, train=False, method="project_image"),
            patches=patches,
            attention=queries_and_keys,
            tokens=getattr(encoder, "pooled_tokens", None),
            grey=lambda value: (value - options.mean) / options.std,
        )

    def _each(self, one):
        """`one(variables, *rows)` for the rows of the arrays, one after another on each device.

        With the shapes of one image always the same, sums run in the same order on 1 and on 8 devices.
        """

        def on_device(variables, *arrays):
            return jax.lax.map(lambda rows: one(variables, *rows), arrays)

        def everywhere(variables, *arrays):
            rows = batch_sharding(self._mesh).spec
            specs = (PartitionSpec(), *[rows] * len(arrays))
            return jax.shard_map(on_device, mesh=self._mesh, in_specs=specs, out_specs=rows, check_vma=False)(
                variables, *arrays
            )

        return everywhere
