"""What the page asks of a model: scores, maps, detections and phrases, one call at a time."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain import METHODS, SUM
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.prompts import directions, score, text_bank, unit
from mammoclip_jax.inference.scorers import BEST_BOX, COSINES, PROBABILITY
from mammoclip_jax.names import lookup

SEGMENTATION = "probability"  # of a segmentation: no method of explain/, but the model's own answer
SIDE = 512  # pixels of a map's longer side, at most, as it is sent
KEPT = 64  # maps of an exam in memory
LONGEST = 500  # characters of a phrase


class Reader:
    """A model for use (`inference.loading.load`), and what is asked of it.

    Attributes:
        labels: what it scores; methods: {method: {"title", "stages": those it can look at, "stage": the one it chooses}};
        refused: {method: why it does not fit}; no_phrase: why phrases mean nothing to it, "" where they do.
    """

    def __init__(self, model, name: str, prompts: str = ""):
        self.model, self.name = model, name
        dual = model.kind == "dual_encoder"
        self._pairs = load_prompts(prompts or model.config.predict.prompts) if dual else {}
        self.labels = tuple(self._pairs) if dual else tuple(model.labels)
        self.no_phrase = "" if dual else f"a {model.kind.replace('_', ' ')} has no texts: phrases need a dual encoder"
        if dual and getattr(model, "_tokenize", True) is None:
            self.no_phrase = "these weights came without their tokenizer: import them again with --tokenizer=FOLDER"
        if self.no_phrase and dual:
            self._pairs, self.labels = {}, ()
        self.methods, self.refused = self._methods()
        self._turn, self._counting, self._waiting = threading.Lock(), threading.Lock(), 0
        self._maps: OrderedDict[tuple, Any] = OrderedDict()
        self._bank: dict[str, np.ndarray] | None = None
        self._phrases: OrderedDict[str, np.ndarray] = OrderedDict()

    def _methods(self) -> tuple[dict[str, Any], dict[str, str]]:
        if self.model.kind == "segmenter":
            return {SEGMENTATION: {"title": "probability of the mask", "stages": [], "stage": ""}}, {}
        if self.model.kind == "image_encoder":
            return {}, {name: "an image encoder alone has nothing to explain" for name in METHODS}
        fit, refused = {}, {}
        for name, method in METHODS.items():
            try:
                chosen = self.model.map_stage(name, None)
            except UserError as error:
                refused[name] = str(error)
                continue
            stages = [chosen] if chosen and method.over not in ("image", "tokens") else []
            if method.over in ("stage", "head", "attributes"):
                stages += [stage for stage in self.model.stages if stage != chosen and self._sees(name, stage)]
            fit[name] = {"title": method.title, "stages": stages, "stage": chosen}
        return fit, refused

    def _sees(self, method: str, stage: str) -> bool:
        try:
            return self.model.map_stage(method, stage) == stage
        except UserError:
            return False

    def about(self) -> dict[str, Any]:
        """JSON for the page."""
        kind = self.model.kind
        meaning = {"dual_encoder": COSINES, "classifier": PROBABILITY, "detector": BEST_BOX}.get(kind, "")
        settings = self.model.config.predict
        methods = dict(self.methods)
        first = settings.method or ("factor" if kind == "attributes" else "grad_cam")
        first = first if first in methods else next(iter(methods), "")
        stage = settings.stage if first and settings.stage in methods[first]["stages"] else ""
        return {
            "name": self.name,
            "kind": kind.replace("_", " "),
            "step": int(self.model.step),
            "labels": list(self.labels),
            "methods": methods,
            "refused": self.refused,
            "method": first,
            "stage": stage or (methods[first]["stage"] if first else ""),
            "phrases": not self.no_phrase,
            "no_phrase": self.no_phrase,
            "detects": kind == "detector",
            "scores": bool(self.labels)
            and kind != "segmenter"
            and getattr(self.model.config.task, "unit", "image") == "image",
            "meaning": meaning,
        }

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The model for what a person waits for: before all that runs in the background."""
        with self._counting:
            self._waiting += 1
        try:
            with self._turn:
                yield
        finally:
            with self._counting:
                self._waiting -= 1

    @contextlib.contextmanager
    def behind(self, pause: Callable[[float], Any]) -> Iterator[None]:
        """The model for what runs in the background, when nobody waits; `pause(seconds)` in between."""
        while self._waiting:
            pause(0.05)
        with self._turn:
            yield

    # What follows is called by who has the turn.

    def scores(self, images: np.ndarray, vectors: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{label: float32 [n]} of canvases [n, H, W]; {} of a model that scores no single image.

        vectors: unit [n, D], of a dual encoder, where they are known.
        """
        model = self.model
        if model.kind == "dual_encoder":
            if self._bank is None:
                self._bank = text_bank(model, self._pairs)
            return score(model.embed_image(images) if vectors is None else vectors, self._bank)
        if model.kind == "detector":
            found = model.detect(images)
            return {
                label: np.where(found.valid & (found.classes == k), found.scores, 0).max(axis=1).astype(np.float32)
                for k, label in enumerate(self.labels)
            }
        if model.kind == "attributes":
            return dict(zip(self.labels, model.attribute_scores(images).T, strict=True))
        if model.kind == "classifier" and model.config.task.unit == "image":
            return dict(zip(self.labels, model.classify(images).T, strict=True))
        return {}

    def vectors(self, images: np.ndarray) -> np.ndarray:
        """Unit float32 [n, D] by which images are near each other: embeddings, else pooled features."""
        if self.model.kind == "dual_encoder":
            return np.asarray(self.model.embed_image(images), np.float32)
        return unit(np.asarray(self.model.image_features(images), np.float32))

    def phrases(self, texts: list[str]) -> np.ndarray:
        """Unit float32 [m, D] of texts. Raises UserError: the model has none."""
        if self.no_phrase:
            raise UserError(self.no_phrase + ".")
        if len(texts) == 1 and texts[0] in self._phrases:
            return self._phrases[texts[0]][None]
        found = np.asarray(self.model.embed_text(texts), np.float32)
        if len(texts) == 1:
            self._phrases[texts[0]] = found[0]
            while len(self._phrases) > KEPT:
                self._phrases.popitem(last=False)
        return found

    def detections(self, images: np.ndarray) -> list[list[dict[str, Any]]]:
        """JSON of each canvas: boxes by falling score, "label", "score", "box" in pixels of the canvas."""
        found = self.model.detect(images)
        return [_boxes(found, i, self.labels) for i in range(len(images))]

    def maps(
        self, key: str, read: Callable[[], np.ndarray], label: str, phrase: str, method: str, stage: str
    ) -> np.ndarray:
        """uint8 [n, h, w]: maps of an exam's canvases, 255 where most speaks for the label or phrase; h, w at most SIDE.

        Args:
            key: names the exam; read: its canvases [n, H, W].
            label, phrase: one of them; the other is "".

        Raises:
            UserError: there is no such label, method or stage, or phrases mean nothing to the model.
        """
        asked = (key, label, phrase, method, stage)
        if asked not in self._maps:
            self._maps[asked] = self._made(read(), label, phrase, method, stage)
            while len(self._maps) > KEPT:
                self._maps.popitem(last=False)
        self._maps.move_to_end(asked)
        return self._maps[asked]

    def _made(self, images: np.ndarray, label: str, phrase: str, method: str, stage: str) -> np.ndarray:
        model = self.model
        lookup(self.methods, method, "method of this model")
        if model.kind == "segmenter":
            heats = model.probabilities(images)[
                ..., self.labels.index(lookup({x: x for x in self.labels}, label, "label"))
            ]
            return _small(heats)
        stage = model.map_stage(method, stage or None)
        if SUM not in stage and stage and stage not in model.stages:
            raise UserError(f"the image encoder has no stage {stage!r}.")
        if model.kind == "dual_encoder":
            if phrase:
                if self.no_phrase:
                    raise UserError(self.no_phrase + ".")
                (towards,) = model.text_directions([phrase], method, stage)
            else:
                pair = lookup(self._pairs, label, "label of the prompts")
                towards = directions(model, {label: pair}, "score", method, stage)[label]
            towards = np.stack([towards] * len(images))
        else:
            if phrase:
                raise UserError(self.no_phrase + ".")
            place = self.labels.index(lookup({name: name for name in self.labels}, label, "label of the model"))
            towards = np.stack([np.eye(len(self.labels), dtype=np.float32)[place]] * len(images))
        return _small(model.saliency(images, towards, method=method, stage=stage))


def _boxes(found, i: int, labels) -> list[dict[str, Any]]:
    kept = found.valid[i]
    parts = (found.classes[i][kept], found.scores[i][kept], found.boxes[i][kept])
    return [
        {"label": labels[int(kind)], "score": float(score), "box": [float(x) for x in box]}
        for kind, score, box in zip(*parts, strict=True)
    ]


def _small(heats: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w] of maps [n, H, W] in [0, 1]."""
    heats = np.clip(np.nan_to_num(np.asarray(heats, np.float32)), 0, 1)
    scale = min(1.0, SIDE / max(heats.shape[1:]))
    size = tuple(max(1, round(side * scale)) for side in heats.shape[:0:-1])
    return np.stack([(cv2.resize(heat, size, interpolation=cv2.INTER_AREA) * 255).round() for heat in heats]).astype(
        np.uint8
    )
