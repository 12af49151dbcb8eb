"""A model or stored predictions beside the data set: what one of the two sides of the page shows."""

from typing import Any

import numpy as np

from mammoclip_jax.viewer.catalogue import Catalogue
from mammoclip_jax.viewer.reader import Reader
from mammoclip_jax.viewer.scored import Scored, of_exam, truth_of
from mammoclip_jax.viewer.survey import Survey


class Side:
    """A name, a model or None, and the scores that were stored for it, which may be none."""

    def __init__(self, name: str, catalogue: Catalogue, reader: Reader | None, stored: list[Scored], cache: str = ""):
        self.name, self.catalogue, self.reader, self._stored = name, catalogue, reader, stored
        self.survey = Survey(reader, catalogue.dataset, cache) if reader else None
        self._made: tuple[int, dict[str, tuple[Scored, np.ndarray]]] = (-1, {})

    def scores(self) -> dict[str, tuple[Scored, np.ndarray]]:
        """{label: (scores, how wrong each is)}: those that were stored; without any those that the survey has made so far."""
        state = int(self.survey.there.sum()) if self.survey and not self._stored else 0
        if self._made[0] != state:
            scored = self._stored or [
                Scored(label, values.copy(), truth_of(self.catalogue.of_label(label)), "computed by this page")
                for label, values in (self.survey.scores.items() if self.survey else ())
            ]
            self._made = (state, {one.label: (one, one.wrong) for one in scored})
        return self._made[1]

    def about(self) -> dict[str, Any]:
        """JSON for the page; "model" is null where there are predictions alone."""
        return {
            "name": self.name,
            "model": self.reader.about() if self.reader else None,
            "stored": bool(self._stored),
            "scored": {label: one.source for label, (one, _) in self.scores().items()},
        }

    def of_exam(self, exam: int) -> dict[str, Any]:
        """JSON {label: "score", "truth", "wrong", "views": [score or null]} of an exam."""
        places = self.catalogue.members[exam]
        return {
            label: of_exam(one, wrong, places)
            | {"views": [None if np.isnan(value) else float(value) for value in one.score[places]]}
            for label, (one, wrong) in self.scores().items()
        }

    def just_now(self, label: str, values: np.ndarray, exam: int) -> dict[str, Any]:
        """As of `of_exam`, of scores float [views] that were computed for this exam alone: how wrong they are is unknown."""
        truth = truth_of(self.catalogue.of_label(label)[self.catalogue.members[exam]])
        known = truth[~np.isnan(truth)]
        return {
            "score": float(values.max()),
            "truth": float(known.max()) if len(known) else None,
            "wrong": None,
            "views": [float(value) for value in values],
            "now": True,
        }
