"""A trained model for use: NumPy in, NumPy out, batched and jitted inside.

    model = load("workdir")                    # or a model folder, a published file, a name on the hub
    model.predict("exam_dir")
    model.similarity(model.embed_image(pixels), model.embed_text(["a mass", "no mass"]))
"""

import functools
from pathlib import Path
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mammoclip_jax import host, models
from mammoclip_jax.config import complete
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import exam
from mammoclip_jax.models.heads import ACTIVATIONS
from mammoclip_jax.names import lookup, suggestion
from mammoclip_jax.source import open_weights
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated

CAM_METHODS = ("grad_cam", "hires_cam")
PIXELS = 2**23          # of the images that are computed at a time by default: six of 1520 x 912
SHORTEST_TEXT = 16      # tokens; texts are padded to a power of two from here on


def load(name, *, batch_size: int | None = None) -> "Model | Classifier":
    """The model of a run or of one checkpoint in it (`workdir/checkpoints/STEP`), of a model folder, of a published
    file, or of that name on the hub.

    Args:
        batch_size: images or texts at a time on the devices; by default as many as have 8 million pixels, at most 32.
            No result depends on it.

    Raises:
        UserError: there is no such thing, or it is an encoder alone or a detector.
    """
    variables, meta = open_weights(name)
    kind = meta["kind"]
    if kind == "detector":
        raise UserError(f"{name} holds a detector, which `load` does not run yet: models.detector(config.model) gives "
                        "its raw outputs, source.open_weights its variables and config.")
    if kind not in KINDS:
        raise UserError(f"{name} holds a single encoder ({kind}), which embeds nothing by itself: start a training "
                        "from it with config.warm_start.")
    config = complete(meta["config"])
    host.enable_compilation_cache(config.compilation_cache)
    return KINDS[kind](variables, meta, meta["step"], batch_size=batch_size)


class ImageModel:
    """What all models share: preprocessed images in batches through the image encoder, and maps over them.

    Attributes:
        config: the run's config.
        preprocessing: how files become pixels, as in dataset.json.
        step: the training step of the weights.
        provenance: data sets, licences and versions behind the weights.
        stages: names of the image encoder's stages, first to last, for `grad_cam`.
    """

    def __init__(self, variables, meta, step: int, *, batch_size: int | None = None, mesh=None):
        self.config = complete(meta["config"])
        self.preprocessing = meta["preprocessing"]
        self.provenance = meta["provenance"]
        self._mesh = mesh or make_mesh({"data": -1})
        height, width = self.preprocessing["height"], self.preprocessing["width"]
        batch_size = batch_size or min(max(PIXELS // (height * width), 1), 32)
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._module = self._build(meta)
        self._options = augment.preprocess_options(self.config)
        self.set_variables(variables, step)
        image = jax.ShapeDtypeStruct((1, height, width, self._options.channels), jnp.float32)
        self._grids = self._module.image_encoder.stage_grids(height, width)
        self._stage_shapes = {}

        def note_stages(variables, image):      # while it is traced: what it returned would come back sorted by name
            _, stages = self._encode(variables, image)
            self._stage_shapes = {name: stage.shape[1:] for name, stage in stages.items()}

        jax.eval_shape(note_stages, self._variables, image)
        self.stages = tuple(self._stage_shapes)

    def set_variables(self, variables, step: int) -> None:
        """Other weights of the same shapes; nothing is compiled anew."""
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self.step = step

    def read_images(self, files: Sequence[str | Path]) -> Shaped[np.ndarray, "N H W"]:
        """Files (DICOM, PNG, ...) as this model wants its images.

        Raises:
            data.pixels.dicom.Unreadable: a file cannot be read; the error says what to do.
            UserError: the list is empty.
        """
        if not len(files):
            raise UserError("there is nothing to read: the list of files is empty.")
        preprocessing = Preprocessing.from_dict(self.preprocessing)
        return np.stack([render(Path(file), preprocessing).image for file in files])

    def predict(self, folder: str | Path, out: str | Path | None = None, **options) -> dict[str, Any]:
        """Scores of the views, breasts and exams in a folder of image files: see `evaluation.exam.predict`."""
        return exam.predict(self, folder, out, **options)

    def _build(self, meta):
        """The Linen module; it has an `image_encoder`."""
        raise NotImplementedError

    def _encode(self, variables, image, offsets={}):
        """(vectors [N, D] that `_cam` differentiates, stage maps)."""
        raise NotImplementedError

    def _maps(self, images, directions, stage: str, method: str) -> Float[np.ndarray, "N H W"]:
        if stage not in self._stage_shapes:
            raise UserError(f"the image encoder has no stage {stage!r}.{suggestion(stage, self.stages)} "
                            f"Stages: {', '.join(self.stages)}.")
        if method not in CAM_METHODS:
            raise UserError(f"there is no method {method!r}.{suggestion(method, CAM_METHODS)} "
                            f"Known: {', '.join(CAM_METHODS)}.")
        cam = functools.partial(self._cam, stage, method)
        return self._batched(cam, np.asarray(images), np.asarray(directions, np.float32))

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def _cam(self, stage, method, variables, images, directions):
        pixels = augment.eval_images(images, self._options)

        def score(offset):
            vectors, stages = self._encode(variables, pixels, {stage: offset})
            return jnp.sum(vectors * directions), stages[stage]

        zeros = jnp.zeros((len(images), *self._stage_shapes[stage]))
        gradient, features = jax.grad(score, has_aux=True)(zeros)
        weights = gradient.mean(axis=(1, 2), keepdims=True) if method == "grad_cam" else gradient
        cam = jax.nn.relu((weights * features).sum(-1))
        cam = self._over_image(cam, stage)
        highest = cam.max(axis=(1, 2), keepdims=True)
        return cam / jnp.where(highest > 0, highest, 1.0)

    def _over_image(self, maps, stage):
        """Stage maps [N h w] resampled to the image, each cell at the place that it looks at."""
        stride, centre = self._grids[stage]
        # scale_and_translate puts the centre of the first cell at stride / 2 + translation.
        translation = jnp.array(centre) - stride / 2
        return jax.image.scale_and_translate(
            maps, (len(maps), self.preprocessing["height"], self.preprocessing["width"]), (1, 2),
            jnp.full(2, stride, jnp.float32), translation, "linear", antialias=False)

    def _batched(self, function, *arrays):
        """`function(variables, *arrays)` over batches of one size; the rows that fill up the last one are cut off."""
        size, out = self._mesh.size, []
        while size < min(len(arrays[0]), self._batch_size):
            size *= 2       # few sizes, so that few programs are compiled
        size = min(size, self._batch_size)
        for start in range(0, len(arrays[0]), size):
            parts = [array[start:start + size] for array in arrays]
            n = len(parts[0])
            parts = [np.pad(part, [(0, size - n)] + [(0, 0)] * (part.ndim - 1), mode="edge") for part in parts]
            parts = jax.device_put(parts, batch_sharding(self._mesh))
            out.append(np.asarray(function(self._variables, *parts))[:n])
        if not out:
            raise UserError("nothing to compute: the list of images or texts is empty.")
        return np.concatenate(out)


class Model(ImageModel):
    """A dual encoder: embeddings, similarities, scores by prompts and Grad-CAM."""

    kind = "dual_encoder"

    def _build(self, meta):
        self._tokenize = Tokenize.from_json(meta["tokenizer"]) if meta["tokenizer"] else None
        return models.build(self.config.model, self._tokenize.vocab_size if self._tokenize else 0)

    def embed_image(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of preprocessed images, uint8 or uint16."""
        return self._batched(self._embed_image, np.asarray(images))

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts; what is longer than config.data.text_length is cut.

        Raises:
            UserError: the weights were imported without their tokenizer.
        """
        if self._tokenize is None:
            raise UserError("these weights came without their tokenizer: import them again with --tokenizer=FOLDER, "
                            "or give token ids to embed_tokens.")
        return self.embed_tokens(*self._tokenize.encode(list(texts), self.config.data.text_length))

    def embed_tokens(self, ids: Int[np.ndarray, "N L"], mask: Bool[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of token ids; mask is True for real tokens, which come first. Padding changes nothing."""
        ids, mask = np.asarray(ids, np.int32), np.asarray(mask, bool)
        longest, length = int(mask.sum(axis=1).max(initial=1)), SHORTEST_TEXT
        while length < longest:
            length *= 2     # few lengths, so that few programs are compiled
        length = min(length, ids.shape[1])
        return self._batched(self._embed_text, ids[:, :length], mask[:, :length])

    def similarity(self, images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "M D"]) -> np.ndarray:
        """Cosines [N, M] of unit vectors."""
        return np.asarray(images) @ np.asarray(texts).T

    def grad_cam(
        self, images: Shaped[np.ndarray, "N H W"], texts: Sequence[str] | Float[np.ndarray, "N D"], *, stage: str,
        method: str = "grad_cam",
    ) -> Float[np.ndarray, "N H W"]:
        """What in each image speaks for its text, at a stage of the image encoder, laid over the image.

        With features F and the cosine's gradient G, both [h w c], the map is relu(sum_c a_c F_c) with a_c the mean of
        G_c over the map ("grad_cam": Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2) or relu(sum_c G_c F_c)
        ("hires_cam": Draelos and Carin 2020, arXiv:2011.08891, eq. 4), which keeps where the gradient is. It is divided
        by its largest value; all zero where nothing speaks for the text.

        Args:
            texts: N texts, or N directions such as the difference of two text embeddings.

        Raises:
            UserError: the encoder has no such stage, or there is no such method.
        """
        directions = self.embed_text(texts) if len(texts) and isinstance(texts[0], str) else texts
        return self._maps(images, directions, stage, method)

    def _encode(self, variables, image, offsets={}):
        return self._module.apply(variables, image, train=False, offsets=offsets, method="encode_image")

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_image(self, variables, images):
        return self._encode(variables, augment.eval_images(images, self._options))[0]

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_text(self, variables, ids, mask):
        return self._module.apply(variables, ids, mask, train=False, method="encode_text")[0]


class Classifier(ImageModel):
    """An image encoder with a linear head: probabilities of `labels`, and Grad-CAM towards each."""

    kind = "classifier"

    def _build(self, meta):
        self.labels = tuple(self.config.model.labels)
        return models.classifier(self.config.model)

    def classify(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N labels"]:
        """Probabilities of preprocessed images, uint8 or uint16: each label by itself, or classes that sum to one."""
        return self._batched(self._classify, np.asarray(images))

    def grad_cam(self, images, labels: Sequence[str] | Float[np.ndarray, "N labels"], *, stage: str,
                 method: str = "grad_cam") -> Float[np.ndarray, "N H W"]:
        """As `Model.grad_cam`, of the logit of each image's label (or of weights on all logits).

        Raises:
            UserError: there is no such label, stage or method.
        """
        if len(labels) and isinstance(labels[0], str):
            rows = dict(zip(self.labels, np.eye(len(self.labels)), strict=True))
            labels = [lookup(rows, label, "label") for label in labels]
        return self._maps(images, labels, stage, method)

    def _encode(self, variables, image, offsets={}):
        return self._module.apply(variables, image, train=False, offsets=offsets)

    @functools.partial(jax.jit, static_argnums=0)
    def _classify(self, variables, images):
        logits, _ = self._encode(variables, augment.eval_images(images, self._options))
        return ACTIVATIONS[self.config.model.activation](logits)


KINDS = {model.kind: model for model in (Model, Classifier)}
