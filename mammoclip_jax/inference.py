"""A trained model for use: NumPy in, NumPy out, batched and jitted inside.

    model = load("workdir")                    # or a model folder, a published file, a name on the hub
    model.predict("exam_dir")
    model.similarity(model.embed_image(pixels), model.embed_text(["a mass", "no mass"]))
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mammoclip_jax import host, models
from mammoclip_jax.boxes import decode
from mammoclip_jax.config import complete
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import exam
from mammoclip_jax.explain.explained import Explained
from mammoclip_jax.models.heads import ACTIVATIONS
from mammoclip_jax.models.nms import Detections, nms
from mammoclip_jax.models.retinanet import anchors, input_size
from mammoclip_jax.names import check_name, check_options, lookup
from mammoclip_jax.source import open_weights
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.training.step import init_variables

PIXELS = 2**23          # of the images that are computed at a time by default: six of 1520 x 912
FEATURES = ("pooled", "stages")
SHORTEST_TEXT = 16      # tokens; texts are padded to a power of two from here on


def load(name, *, batch_size: int | None = None) -> "Model | Classifier | Detector | ImageEncoder":
    """The model of a run or of one checkpoint in it (`workdir/checkpoints/STEP`), of a model folder, of a published
    file, or of that name on the hub.

    Args:
        batch_size: images or texts at a time on the devices; by default as many as have 8 million pixels, at most 32.
            No result depends on it.

    Raises:
        UserError: there is no such thing, or it is a text encoder alone.
    """
    variables, meta = open_weights(name)
    kind = meta["kind"]
    if kind not in KINDS:
        raise UserError(f"{name} holds a single encoder ({kind}), which has nothing to compare texts with: start a "
                        "training from it with config.warm_start.")
    config = complete(meta["config"])
    host.enable_compilation_cache(config.compilation_cache)
    return KINDS[kind](variables, meta, meta["step"], batch_size=batch_size)


class ImageModel(Explained):
    """What all models share: preprocessed images in batches through the image encoder, and maps over them.

    Attributes:
        config: the run's config.
        preprocessing: how files become pixels, as in dataset.json.
        step: the training step of the weights.
        provenance: data sets, licences and versions behind the weights.
        trained_on: the patients they were trained on (`provenance.patients_in`); None where that is not on record.
        stages: names of the image encoder's stages, first to last, for `saliency`.
        labels: of a classifier or detector.
    """

    labels: tuple[str, ...] = ()
    _encoding: str | None = None        # the module's method that `_encode` calls; None: the module itself

    def __init__(self, variables, meta, step: int, *, batch_size: int | None = None, mesh=None):
        self.config = complete(meta["config"])
        self.preprocessing = meta["preprocessing"]
        self.provenance = meta["provenance"]
        self.trained_on = meta.get("trained_on")
        self._mesh = mesh or make_mesh({"data": -1})
        height, width = self.preprocessing["height"], self.preprocessing["width"]
        batch_size = batch_size or min(max(PIXELS // (height * width), 1), 32)
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._module = self._build(meta)
        self._options = augment.preprocess_options(self.config)
        self.set_variables(variables, step)

        def note_stages(variables, image):      # while it is traced: what it returned would come back sorted by name
            self.stages = tuple(self._encode(variables, image)[1])

        jax.eval_shape(note_stages, self._variables, self._blank())

    def set_variables(self, variables, step: int) -> None:
        """Other weights of the same shapes; nothing is compiled anew."""
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self.step = step

    def fingerprint(self) -> str:
        """16 hex digits of all that its vectors depend on beside the images: weights, module, normalisation."""
        parts = {section: self.config[section] for section in ("image", "model")}
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=lambda part: part.to_dict()).encode())
        for path, value in jax.tree_util.tree_leaves_with_path(self._variables):
            value = np.asarray(value)
            digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()[:16]

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
        return self._batched(functools.partial(self._image_features, of), np.asarray(images))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _image_features(self, of, variables, images):
        pixels = augment.eval_images(images, self._options)
        pooled, stages = self._module.apply(variables, pixels, train=False,
                                            method=lambda module, x, train: module.image_encoder(x, train=train))
        if of == "pooled":
            return pooled.astype(jnp.float32)
        return jnp.concatenate([stages[name].astype(jnp.float32).mean(axis=(1, 2)) for name in self.stages], axis=-1)

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
        """The Linen module; it has an `image_encoder`, and a `project_image`."""
        raise NotImplementedError

    def _encode(self, variables, image, offsets={}, **options):
        """(vectors [N, D] that the maps explain, stage maps); `options` are those of Linen's `apply`."""
        return self._module.apply(variables, image, train=False, offsets=offsets, method=self._encoding, **options)

    def _fresh(self, key):
        """Variables as before training."""
        return self._module.init(key, self._blank())

    def _directions(self, towards) -> Float[np.ndarray, "N D"]:
        """Of labels, those that pick them out among the vectors; directions as they are."""
        if len(towards) and isinstance(towards[0], str):
            rows = dict(zip(self.labels, np.eye(len(self.labels)), strict=True))
            towards = [lookup(rows, label, "label") for label in towards]
        return np.asarray(towards, np.float32)

    def _batched(self, function, *arrays):
        """`function(variables, *arrays)` over batches of one size; the rows that fill up the last one are cut off.

        The function returns an array or a tree of arrays, whose first dimension is that of the rows.
        """
        size, out = self._mesh.size, []
        while size < min(len(arrays[0]), self._batch_size):
            size *= 2       # few sizes, so that few programs are compiled
        size = min(size, self._batch_size)
        for start in range(0, len(arrays[0]), size):
            parts = [array[start:start + size] for array in arrays]
            n = len(parts[0])
            parts = [np.pad(part, [(0, size - n)] + [(0, 0)] * (part.ndim - 1), mode="edge") for part in parts]
            parts = jax.device_put(parts, batch_sharding(self._mesh))
            out.append(jax.tree.map(lambda x: np.asarray(x)[:n], function(self._variables, *parts)))
        if not out:
            raise UserError("nothing to compute: the list of images or texts is empty.")
        return jax.tree.map(lambda *parts: np.concatenate(parts), *out)


class Model(ImageModel):
    """A dual encoder: embeddings, similarities, scores by prompts and Grad-CAM."""

    kind = "dual_encoder"
    _encoding = "encode_image"

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

    @property
    def logit_scale(self) -> float:
        """The factor on cosines that was learnt: one over the temperature."""
        return float(np.exp(self._variables["params"]["logit_scale"]))

    def similarity(self, images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "M D"]) -> np.ndarray:
        """Cosines [N, M] of unit vectors."""
        return np.asarray(images) @ np.asarray(texts).T

    def _directions(self, towards):
        texts = len(towards) and isinstance(towards[0], str)
        return self.embed_text(towards) if texts else super()._directions(towards)

    def _fresh(self, key):
        return init_variables(self._module, key, self._blank().shape[1:], self.config.data.text_length)

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

    def classify_views(self, images: Shaped[np.ndarray, "N V H W"], there: Bool[np.ndarray, "N V"]) -> np.ndarray:
        """Probabilities [N labels] of breasts or exams from their views; `there` is False for a view that is not."""
        return self._batched(self._classify_views, np.asarray(images), np.asarray(there, bool))

    @functools.partial(jax.jit, static_argnums=0)
    def _classify(self, variables, images):
        logits, _ = self._encode(variables, augment.eval_images(images, self._options))
        return ACTIVATIONS[self.config.model.activation](logits)

    @functools.partial(jax.jit, static_argnums=0)
    def _classify_views(self, variables, images, there):
        pixels = augment.eval_images(images.reshape(-1, *images.shape[2:]), self._options)
        logits = self._module.apply(variables, pixels, there, train=False, method="of_views")
        return ACTIVATIONS[self.config.model.activation](logits)


class Detector(ImageModel):
    """A RetinaNet: boxes of `labels`; and maps of each label's highest logit."""

    kind = "detector"
    _encoding = "encode_image"

    def _build(self, meta):
        self.labels = tuple(self.config.model.labels)
        self._canvas = (self.preprocessing["height"], self.preprocessing["width"])
        self._input_size = input_size(self.config.model, self._canvas)
        return models.detector(self.config.model)

    def detect(self, images: Shaped[np.ndarray, "N H W"], **options) -> Detections:
        """The boxes [N, K, 4] of preprocessed images, in their pixels, by falling score; see `models.nms.Detections`.

        Classes are places in `labels`. Images are stretched to config.model.input_size first, where that is given.

        Args:
            options: of `models.nms.nms`: threshold, overlap, limit (K), candidates, class_aware.

        Raises:
            UserError: there is no such option.
        """
        check_options(nms, options, "detect")
        return self._batched(functools.partial(self._detect, tuple(sorted(options.items()))), np.asarray(images))

    def map_stage(self, method: str, stage: str | None = None) -> str:
        """As of all models.

        Raises:
            UserError: besides, images are stretched: the maps would not lie on them.
        """
        if self._input_size != self._canvas:
            raise UserError(f"config.model.input_size is {self._input_size}, the images have {self._canvas} pixels: "
                            "maps are made for detectors that see images as they are.")
        return super().map_stage(method, stage)

    def _blank(self):
        return jnp.zeros((1, *self._input_size, self._options.channels))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _detect(self, options, variables, images):
        pixels = augment.resized(augment.eval_images(images, self._options), self._input_size)
        logits, deltas = self._module.apply(variables, pixels, train=False)
        boxes = decode(deltas, anchors(*self._input_size), self._input_size)
        scale = np.array(self._canvas[::-1] * 2) / np.array(self._input_size[::-1] * 2)
        found = jax.vmap(functools.partial(nms, **dict(options)))(boxes, jax.nn.sigmoid(logits))
        return found._replace(boxes=found.boxes * scale.astype(np.float32))


class ImageEncoder(ImageModel):
    """An image encoder alone, such as published ImageNet or DINOv2 weights: features for a linear probe, and maps.

    It has seen no data set of ours, so it takes canvases of any size and preparation; `preprocessing` is that of
    `read_images`. Normalisation is the weights' own. Maps are of N directions in the space of pooled features.
    """

    kind = "image_encoder"

    def _build(self, meta):
        return models.image_encoder_alone(self.config.model)

    def predict(self, folder, out=None, **options):
        """Raises UserError: features are no scores."""
        raise UserError("an image encoder alone scores nothing: train a head on it (`finetune` with "
                        "config.warm_start), or measure its features with the evaluator linear_probe.")


KINDS = {model.kind: model for model in (Model, Classifier, Detector, ImageEncoder)}
