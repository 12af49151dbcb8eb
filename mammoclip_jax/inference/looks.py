"""How an image is looked at for its score: as it is, mirrored too, in windows; and what that score is found to mean."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.calibration import Reference, find, prompts_key
from mammoclip_jax.names import check_name

# How the scores of an image's windows become its score.
POOLS = {
    "max": "the highest of the windows",
    "mean": "the mean over the windows",
    "noisy_or": "1 - the product of (1 - p) over the windows: the probability that one of them shows it, were they independent",
    "lse": "log-sum-exp with the factor 10: log(mean(exp(10 p))) / 10, between mean and max",
}


class Looks(NamedTuple):
    """What a score is made of; all as by default is a plain one."""

    mirror: bool = False  # the image as it is and mirrored, laterality exchanged
    windows: float = 0.0  # how much larger than the model's images the canvas is whose windows are scored; 0: none
    pool: str = ""  # of the windows: a key of POOLS

    def to_json(self) -> dict[str, Any]:
        """JSON, by name."""
        return self._asdict()


def looks(mirror: bool = False, windows: float = 0.0, pool: str = "") -> Looks:
    """Checked `Looks`; the pool is "max" where there are windows and no other is named.

    Raises:
        UserError: a factor that is not above 1 and at most 4, no such pool, or a pool without windows.
    """
    if not windows:
        if pool:
            raise UserError(f"nothing reads pool={pool!r} without windows: set windows, such as 1.5, or leave it out.")
        return Looks(bool(mirror))
    if not 1 < windows <= 4:
        raise UserError(
            f"windows={windows} must be above 1 and at most 4: how much larger the canvas is than the model's images."
        )
    check_name(pool or "max", POOLS, "pool of windows")
    return Looks(bool(mirror), float(windows), pool or "max")


class Found(NamedTuple):
    """Scores of N images, and what else is known of them."""

    scores: dict[str, np.ndarray]  # {label: [N]}
    spread: dict[str, np.ndarray] = {}  # {label: [N]}: standard deviation over the models of an ensemble
    window: dict[str, np.ndarray] = {}  # {label: [N, 4]}: the window with the highest score, a box on the canvas


def found(model, images, score) -> Found:
    """`score(model, images)` -> {label: [N]}, or what the model makes of it for its windows or members."""
    return model.found(images, score) if hasattr(model, "found") else Found(score(model, images))


class Meant:
    """What a model knows of the meaning of its scores: part of all models with labels, and of `Wrapped`.

    Attributes:
        calibration: the entries that are stored with it (`inference.calibration`).
        calibrated: whether `classify` gives calibrated scores where it is not told.
        looks: what its scores are made of.
    """

    calibration: Any = ()
    calibrated: bool = False
    looks: Looks = Looks()
    labels: tuple[str, ...]
    fingerprint: Any

    def key(self, pairs: Mapping[str, Any] = {}) -> dict[str, Any]:
        """What an entry must be of to speak of this model's scores; `pairs`: the prompts of a dual encoder."""
        return {"fingerprint": self.fingerprint(), "looks": self.looks.to_json(), "prompts": prompts_key(pairs)}

    def reference(self, pairs: Mapping[str, Any] = {}) -> Reference:
        """What its scores mean.

        Raises:
            UserError: nothing is stored with it that says so.
        """
        return find(self.calibration, self.key(pairs))

    def _meant(self, scores: np.ndarray, calibrated: bool | None, level: str = "image") -> np.ndarray:
        """The scores [N, labels], calibrated where that is asked for."""
        wanted = self.calibrated if calibrated is None else calibrated
        return self.reference().probabilities(scores, level) if wanted else scores


def explained(meaning: str, options: Mapping[str, Any]) -> str:
    """What a score is, for people.

    Args:
        meaning: of a plain one.
        options: as `Scorer.options`.
    """
    parts = [meaning]
    if options["mirror"]:
        parts.append("the mean of the image as it is and mirrored")
    if options["windows"]:
        parts.append(f"of the windows of a canvas {options['windows']:g} times as large {POOLS[options['pool']]}")
    if options.get("models"):
        parts.append(f"the mean of {len(options['models'])} models")
    if options["calibrated"]:
        known = options["measured"]
        fitted = "{images} images of {patients} patients in split {split!r}".format(**known["fitted_on"])
        plain = meaning.partition(";")[0]  # what follows says that it is no probability
        parts[0] = (
            f"calibrated probability ({known['method']}, fitted on {fitted} of {known['dataset']}), from: {plain}"
        )
    return "; ".join(parts)
