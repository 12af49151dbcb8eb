"""What all models share: preprocessed images in batches through the image encoder, and maps over them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from mammoclip_jax import provenance
from mammoclip_jax.config import complete
from mammoclip_jax.data.exams import of_files, other_views
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import exam, inputs
from mammoclip_jax.inference.looks import Meant
from mammoclip_jax.inference.maps import SaliencyMixin
from mammoclip_jax.inference.region_vectors import RegionMixin
from mammoclip_jax.names import check_name, lookup
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated

PIXELS = 2**23  # of the images that are computed at a time by default: six of 1520 x 912
FEATURES = ("pooled", "stages")


class ImageModel(SaliencyMixin, RegionMixin, Meant):
    """A module with an image encoder, its variables and the preprocessing of its images.

    Attributes:
        config: the run's config.
        preprocessing: how files become pixels, as in dataset.json.
        step: the training step of the weights.
        provenance: data sets, licences and versions behind the weights.
        trained_on: the patients they were trained on (`provenance.patients_in`); None where that is not on record.
        stages: names of the image encoder's stages, first to last, for `saliency`.
        labels: of a classifier, detector or segmentation.
        local_heads: {stage: name of the head of kind local that sees it} of a dual encoder.
        attribute_stages: those whose channels a model of attributes scores.
    """

    labels: tuple[str, ...] = ()
    local_heads: Mapping[str, str] = {}
    attribute_stages: tuple[str, ...] = ()
    _one_size = True  # whether images must be as large as those of the training
    _encoding: str | None = None  # the module's method that `_encode` calls; None: the module itself

    def __init__(self, variables, meta, step: int, *, batch_size: int | None = None, mesh=None):
        self.config = complete(meta["config"])
        self.preprocessing = meta["preprocessing"]
        self.provenance = meta["provenance"]
        self.trained_on = meta.get("trained_on")
        self.calibration = meta.get("calibration", ())
        self._fingerprint: tuple[Any, str] = (None, "")
        self._mesh = mesh or make_mesh({"data": -1})
        height, width = self.preprocessing["height"], self.preprocessing["width"]
        batch_size = batch_size or min(max(PIXELS // (height * width), 1), 32)
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._module = self._build(meta)
        self._options = augment.preprocess_options(self.config)
        self.set_variables(variables, step)

        def note_stages(variables, image):  # while it is traced: what it returned would come back sorted by name
            self.stages = tuple(self._encode(variables, image)[1])

        jax.eval_shape(note_stages, self._variables, self._blank())

    def __repr__(self) -> str:
        name = self.config.get("name", "") or self.config.model.image.get("name", "")
        parts = [f"{name!r}" if name else "", f"step {self.step}", ", ".join(self.labels)]
        size = "{height}x{width}".format(**self.preprocessing)
        return f"<{type(self).__name__} {'; '.join(filter(None, [*parts, f'images {size}']))}>"

    def set_variables(self, variables, step: int) -> None:
        """Other weights of the same shapes; nothing is compiled anew."""
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self.step = step

    def fingerprint(self) -> str:
        """See `provenance.fingerprint`."""
        of, known = self._fingerprint
        if of is not self._variables:
            known = provenance.fingerprint(self.config, self._variables)
            self._fingerprint = (self._variables, known)
        return known

    def image_features(self, images: Shaped[np.ndarray, "N H W"], of: str = "pooled") -> Float[np.ndarray, "N c"]:
        """What the image encoder says of preprocessed images, before projection or head, in evaluation mode.

        Args:
            images: uint8 or uint16.
            of: "pooled": the encoder's pooled features; "stages": the mean of each stage map over the image, from the
                first stage to the last, one behind the other.

        Raises:
            UserError: `of` is something else, or there is no image.
        """
        check_name(of, FEATURES, "kind of image features")
        return self._of_images(functools.partial(self._image_features, of), images)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _image_features(self, of, variables, images):
        pooled, stages = self._stage_maps(variables, images)
        if of == "pooled":
            return pooled.astype(jnp.float32)
        return jnp.concatenate([stages[name].astype(jnp.float32).mean(axis=(1, 2)) for name in self.stages], axis=-1)

    def _stage_maps(self, variables, images):
        """(pooled features [N, c], named stage maps) of the image encoder."""
        pixels = augment.eval_images(images, self._options)
        return self._module.apply(
            variables, pixels, train=False, method=lambda module, x, train: module.image_encoder(x, train=train)
        )

    def read_images(self, files: Sequence[str | Path]) -> Shaped[np.ndarray, "N H W"]:
        """Files (DICOM, PNG, ...) as this model wants its images. Those of a breast share a scale where it learnt so.

        Raises:
            data.pixels.dicom.Unreadable: a file cannot be read; the error says what to do.
            UserError: the list is empty, or a file is missing.
        """
        return read(files, self.preprocessing)

    def predict(self, folder: str | Path, out: str | Path | None = None, **options) -> dict[str, Any]:
        """Scores of the views, breasts and exams in a folder of image files: see `inference.exam.predict`."""
        return exam.predict(self, folder, out, **options)

    def _build(self, meta):
        """The Linen module; it has an `image_encoder`, and a `project_image`."""
        raise NotImplementedError

    def _encode(self, variables, image, offsets={}, **options):
        """(vectors [N, D] that the maps explain, stage maps); `options` are those of Linen's `apply`."""
        return self._module.apply(variables, image, train=False, offsets=offsets, method=self._encoding, **options)

    def _fresh(self, key):
        """Variables as before training."""
        return self._module.init(key, self._blank())

    def _directions(self, towards, method: str = "", stage: str = "") -> Float[np.ndarray, "N D"]:
        """Of labels, those that pick them out among the vectors; directions as they are. A method and its stage may have
        a space of their own."""
        if len(towards) and isinstance(towards[0], str):
            rows = dict(zip(self.labels, np.eye(len(self.labels)), strict=True))
            towards = [lookup(rows, label, "label") for label in towards]
        return np.asarray(towards, np.float32)

    def _of_images(self, function, images, *arrays, views: bool = False):
        """`_batched` of what a user gives as images. Raises UserError: see `inputs.images`."""
        size = (self.preprocessing["height"], self.preprocessing["width"]) if self._one_size else None
        return self._batched(function, inputs.images(images, size, views), *arrays)

    def _batched(self, function, *arrays):
        """`function(variables, *arrays)` over batches of one size; the rows that fill up the last one are cut off.

        The function returns an array or a tree of arrays, whose first dimension is that of the rows.
        """
        size, out = self._mesh.size, []
        while size < min(len(arrays[0]), self._batch_size):
            size *= 2  # few sizes, so that few programs are compiled
        size = min(size, self._batch_size)
        for start in range(0, len(arrays[0]), size):
            parts = [array[start : start + size] for array in arrays]
            n = len(parts[0])
            parts = [np.pad(part, [(0, size - n)] + [(0, 0)] * (part.ndim - 1), mode="edge") for part in parts]
            parts = jax.device_put(parts, batch_sharding(self._mesh))
            out.append(jax.tree.map(lambda x: np.asarray(x)[:n], function(self._variables, *parts)))
        if not out:
            raise UserError("nothing to compute: the list of images or texts is empty.")
        return jax.tree.map(lambda *parts: np.concatenate(parts), *out)


def read(files: Sequence[str | Path], preprocessing: Mapping[str, Any]) -> Shaped[np.ndarray, "N H W"]:
    """Files as a model wants its images: see `ImageModel.read_images`."""
    files = inputs.files(files)
    wanted = Preprocessing.from_dict(preprocessing)
    if not wanted.upright and wanted.scale == "image":
        return np.stack([render(Path(file), wanted).image for file in files])
    known = of_files(files)
    sources = {name: Source(name, fields.laterality, fields.view) for name, fields in known.items()}
    beside = {name: [sources[other] for other in others] for name, others in other_views(known).items()}
    return np.stack(
        [
            render(source.path, wanted, source.laterality, source.view, beside[name]).image
            for name, source in ((str(file), sources[str(file)]) for file in files)
        ]
    )
