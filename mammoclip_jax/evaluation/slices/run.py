"""From arrays to error slices: `find` names and tests them, `analyse` adds what they cost, the repair and the fairness table.

    train        fits the map into the dual encoder's space, and the baselines that learn from training images
    validation   divided by patient: one part discovers, the other confirms; both together choose thresholds and repair
    test         what is reported of the classifier and of its repair; nothing is chosen on it

The classifier's score is one vector over all images of a part, whatever their class.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.metrics import calibration
from mammoclip_jax.evaluation.slices import columns as metadata
from mammoclip_jax.evaluation.slices import confirmation, hypotheses, language_model, retrieval
from mammoclip_jax.evaluation.slices import projection as projections
from mammoclip_jax.evaluation.slices.confirmation import ABSENT, SLICE, Frozen
from mammoclip_jax.evaluation.slices.hypotheses import Embed, Hypothesis
from mammoclip_jax.evaluation.slices.phrases import Phrases
from mammoclip_jax.evaluation.slices.projection import Projector
from mammoclip_jax.evaluation.slices.repair import CS, DRAWS
from mammoclip_jax.names import check_name

ENDS = ("right", "wrong")
IMAGES, PROJECTION = "images", "projection"  # Options.scored_by


class Part(NamedTuple):
    """Images of one part of the data; row i of everything is image i."""

    features: np.ndarray  # float [n, c], of the classifier, before its last layer
    truth: np.ndarray  # int [n], 0 or 1
    score: np.ndarray  # float [n], of the classifier; the higher, the likelier positive
    patients: np.ndarray  # str [n]
    vectors: np.ndarray | None = None  # float [n, D], of the dual encoder
    columns: pd.DataFrame | None = None  # metadata, a row an image (`columns.metadata`)

    def take(self, chosen: np.ndarray) -> "Part":
        """The images where `chosen` bool [n] is True."""
        rest = None if self.columns is None else self.columns[chosen].reset_index(drop=True)
        vectors = None if self.vectors is None else self.vectors[chosen]
        return Part(*(values[chosen] for values in self[:4]), vectors, rest)


class Bank(NamedTuple):
    """Sentences of reports, captions or prompts."""

    texts: Sequence[str]  # [S]
    vectors: np.ndarray  # float [S, D], unit norm, of the dual encoder


class Options(NamedTuple):
    """How slices are looked for, tested and mended."""

    label: str = "cancer"  # the positive class in words; these words are no hypotheses
    synonyms: tuple[str, ...] = ()  # other words for it
    # None: that of Youden on validation, each model its own. A number is every model's: then scores should be probabilities.
    threshold: float | None = None
    top: int = retrieval.TOP  # sentences of each end
    alike: float = retrieval.ALIKE  # cosine above which two sentences, or two hypotheses, are one
    # What says how much of a phrase an image has: IMAGES, the dual encoder's own vector of it; PROJECTION, the classifier's
    # mapped features, as in LADDER. These decide the class too, so whatever lies near it divides right from wrong decisions.
    scored_by: str = IMAGES
    least_r2: float = projections.LEAST_R2
    quantiles: tuple[float, ...] = confirmation.QUANTILES
    least: int = confirmation.LEAST  # images on either side
    level: float = confirmation.LEVEL  # of the false discovery rate
    resamples: int = statistics.RESAMPLES
    seed: int = 0
    leave_out: tuple[str, ...] = ()  # columns that say the class itself, or are no hypotheses
    known: str = ""  # a column of 1 and 0: an attribute that is known, for DFR and for the true worst group
    heads: int = 5  # slices that the repair uses, the surest first
    cs: tuple[float, ...] = CS
    draws: int = DRAWS
    extremes: int = 0  # LADDER's draw of so many highest and lowest of each class; 0: balanced draws
    temperature: float = 1.0  # of the ensemble's gate


class Findings(NamedTuple):
    """What `find` found.

    Attributes:
        threshold: of the classifier's score.
        discover: bool [n], the images of the validation part that discovered; the others confirmed.
        projector: None where only columns were looked at.
        retrieved: class, end, rank, place (in the bank), sentence, score, z, merged.
        phrases: class, end, hypothesis, source, denied, z, count: why each hypothesis from sentences was made.
        scored_by: see `Options`.
        frozen, toward: the hypotheses with their thresholds, and their directions [m, D].
        tests: see `confirmation.confirm`.
        slices: names of hypotheses that are a slice of some class, the surest first.
    """

    threshold: float
    discover: np.ndarray
    projector: Projector | None
    scored_by: str
    retrieved: pd.DataFrame
    phrases: pd.DataFrame
    frozen: tuple[Frozen, ...]
    toward: np.ndarray
    tests: pd.DataFrame
    slices: tuple[str, ...]

    def scores(self, part: Part, names: Sequence[str] = ()) -> np.ndarray:
        """Float64 [n, m] of the hypotheses called `names`, or of all."""
        places = self.places(names)
        chosen = [self.frozen[place].hypothesis for place in places]
        return _scores(chosen, self.toward[places], self.projector, part, self.scored_by)

    def attributes(self, part: Part, names: Sequence[str] = ()) -> np.ndarray:
        """Float64 [n, m]: 1 with the attribute, 0 without, NaN unknown; at the frozen thresholds."""
        cuts = np.array([self.frozen[place].threshold for place in self.places(names)])
        return confirmation.attribute(self.scores(part, names), cuts)

    def places(self, names: Sequence[str]) -> list[int]:
        place_of = {one.hypothesis.name: place for place, one in enumerate(self.frozen)}
        return [place_of[name] for name in names] if names else list(range(len(self.frozen)))


def find(
    train: Part | None,
    validation: Part,
    bank: Bank | None = None,
    embed: Embed | None = None,
    *,
    given: Sequence[Hypothesis] = (),
    model: language_model.LanguageModel | None = None,
    answers: str = "",
    phrases: Phrases | None = None,
    options: Options = Options(),
) -> Findings:
    """Hypotheses of where the classifier fails, and the tests of them.

    Args:
        train: with vectors; None where there is no bank, nor a hypothesis by prompts.
        bank, embed: sentences and what embeds prompts, both of the dual encoder; None: columns alone are looked at.
        given: hypotheses beside those that are made of the sentences and of the columns of `validation`.
        model: a language model to ask besides; `answers`: the folder that keeps its answers.
        phrases: of the bank's texts, where they have been read before.

    Raises:
        UserError: the projection is refused, or there is nothing to look at. That nothing is found is no error.
    """
    _check(validation, "validation")
    check_name(options.scored_by, (IMAGES, PROJECTION), "option scored_by")
    right, threshold = decided(validation, options.threshold)
    discover = confirmation.parts(validation.patients, validation.truth, options.seed)
    part, right_here = validation.take(discover), right[discover]
    prompted = bank is not None or any(one.positive for one in given)
    projector = _projector(train, part, options) if prompted else None
    retrieved, said, spoken, asked = [], [], [], []
    if bank is not None and len(bank.texts):
        read = phrases or Phrases(bank.texts, leave_out=(options.label, *options.synonyms))
        for label in (0, 1):
            members = part.truth == label
            found = retrieval.contrast(projector, part.features[members], right_here[members])
            if found is None:
                continue
            ends = retrieval.retrieve(bank.texts, bank.vectors, found, count=options.top, alike=options.alike)
            told = [read.candidates(end.place) for end in ends]
            for name, end, candidates in zip(ENDS, ends, told, strict=True):
                retrieved += _sentences(label, name, end, bank)
                said += [_phrase(label, name, one) for one in candidates]
                spoken += candidates
            if model is not None:
                texts = [[str(bank.texts[place]) for place in end.place] for end in ends]
                names = tuple(
                    [_spoken(one) for one in candidates if one.hypothesis.source == "lexicon"] for candidates in told
                )
                truth = options.label if label else f"no {options.label}"
                asked += language_model.ask(model, options.label, truth, *texts, phrases=names, folder=answers)
    # Of those that say the same the first is kept, so the one that stands out most comes first.
    spoken.sort(key=lambda one: (one.hypothesis.source != "lexicon", -one.z))
    made = [*given, *(one.hypothesis for one in spoken), *asked]
    if part.columns is not None:
        without = (*options.leave_out, options.label, options.known)
        made += metadata.from_columns(part.columns, least=options.least, leave_out=without)
    if bank is None and part.columns is None and not given:
        raise UserError("there is nothing to look at: give sentences, columns of metadata, or hypotheses of your own.")
    if any(one.positive for one in made) and embed is None:
        raise UserError("hypotheses by prompts need something that embeds them: give `embed` beside the sentences.")
    return _tested(made, projector, embed, validation, right, threshold, discover, retrieved, said, options)


def _tested(made, projector, embed, validation, right, threshold, discover, retrieved, said, options) -> Findings:
    toward = hypotheses.directions(made, embed) if made and embed is not None else np.zeros((len(made), 0))
    kept = hypotheses.distinct(made, toward, options.alike)
    made, toward = [made[place] for place in kept], toward[kept]
    hypotheses.check(made)
    scores = _scores(made, toward, projector, validation, options.scored_by)
    here, there = discover, ~discover
    frozen = confirmation.freeze(
        made, scores[here], validation.truth[here], right[here], quantiles=options.quantiles, least=options.least
    )
    tests = confirmation.confirm(
        frozen,
        scores[there],
        validation.truth[there],
        right[there],
        validation.patients[there],
        least=options.least,
        level=options.level,
        resamples=options.resamples,
        seed=options.seed,
    )
    slices = tuple(dict.fromkeys(tests["hypothesis"][tests["verdict"] == SLICE]))
    tables = (
        pd.DataFrame(retrieved, columns=["class", "end", "rank", "place", "sentence", "score", "z", "merged"]),
        pd.DataFrame(said, columns=["class", "end", "hypothesis", "source", "denied", "z", "count"]),
    )
    return Findings(threshold, discover, projector, options.scored_by, *tables, tuple(frozen), toward, tests, slices)


def _scores(made: Sequence[Hypothesis], toward: np.ndarray, projector: Projector | None, part: Part, scored_by: str):
    """Float64 [n, m] of the images of a part; see `Options.scored_by`."""
    features = part.features
    if projector is not None and scored_by == IMAGES and any(one.positive for one in made):
        if part.vectors is None:
            raise UserError("scored_by='images' needs the dual encoder's vectors of every part: give Part.vectors.")
        projector, features = projections.nothing_to_project(toward.shape[1]), part.vectors
    return hypotheses.scores(made, toward, projector, features, part.columns)


def decided(part: Part, threshold: float | None) -> tuple[np.ndarray, float]:
    """(whether each decision is right, bool [n]; the threshold: the given one, or that of Youden on this part)."""
    cut = calibration.choose_threshold(part.truth, part.score) if threshold is None else threshold
    return (part.score >= cut) == (part.truth == 1), float(cut)


def members(findings: Findings, part: Part) -> dict[str, np.ndarray]:
    """{"clip present, class 0": bool [n]} of every row of the tests that is a slice: who is in it, of either class."""
    found = findings.tests[findings.tests["verdict"] == SLICE]
    attributes = dict(zip(findings.slices, findings.attributes(part, findings.slices).T)) if len(found) else {}
    return {
        f"{row['hypothesis']} {row['worse']}, class {row['class']}": attributes[row["hypothesis"]]
        == (0.0 if row["worse"] == ABSENT else 1.0)
        for row in found.to_dict("records")
    }


def examples(findings: Findings, part: Part, count: int = 6) -> pd.DataFrame:
    """Images of each slice, those that have most of it first: hypothesis, class, right, rank, place (a row of `part`)."""
    right, _ = decided(part, findings.threshold)
    rows = []
    for row in findings.tests[findings.tests["verdict"] == SLICE].to_dict("records"):
        name = row["hypothesis"]
        score, has = findings.scores(part, [name])[:, 0], findings.attributes(part, [name])[:, 0]
        absent = row["worse"] == ABSENT
        inside = (has == (0 if absent else 1)) & (part.truth == row["class"])
        for good in (True, False):
            chosen = np.flatnonzero(inside & (right == good))
            order = chosen[retrieval.top(-score[chosen] if absent else score[chosen], count)]
            rows += [
                {"hypothesis": name, "class": row["class"], "right": good, "rank": rank, "place": int(place)}
                for rank, place in enumerate(order)
            ]
    return pd.DataFrame(rows, columns=["hypothesis", "class", "right", "rank", "place"])


def _projector(train: Part | None, part: Part, options: Options) -> Projector:
    if train is None or train.vectors is None or part.vectors is None:
        raise UserError(
            "sentences and prompts need vectors of the dual encoder for the images of the training and of the validation "
            "part: give Part.vectors of both, or look at columns alone."
        )
    return projections.fit((train.features, train.vectors), (part.features, part.vectors), least=options.least_r2)


def _sentences(label: int, name: str, end: retrieval.Retrieved, bank: Bank) -> list[dict[str, Any]]:
    return [
        {
            "class": label,
            "end": name,
            "rank": rank,
            "place": int(place),
            "sentence": str(bank.texts[place]),
            "score": score,
            "z": z,
            "merged": int(merged),
        }
        for rank, (place, score, z, merged) in enumerate(zip(*end, strict=True))
    ]


def _phrase(label: int, name: str, one) -> dict[str, Any]:
    return {
        "class": label,
        "end": name,
        "hypothesis": one.hypothesis.name,
        "source": one.hypothesis.source,
        "denied": one.denied,
        "z": one.z,
        "count": one.count,
    }


def _spoken(one) -> str:
    return f"no {one.hypothesis.name}" if one.denied else one.hypothesis.name


def _check(part: Part, name: str) -> None:
    truth = np.asarray(part.truth)
    if set(np.unique(truth)) != {0, 1}:
        raise UserError(f"the {name} part needs images of both classes, 0 and 1; it has {sorted(set(truth.tolist()))}.")
    lengths = {len(values) for values in part if values is not None}
    if len(lengths) > 1:
        raise UserError(f"the {name} part has {' and '.join(map(str, sorted(lengths)))} rows: give one for each image.")
    if not np.isfinite(part.score).all():
        raise UserError(f"{(~np.isfinite(part.score)).sum()} scores of the {name} part are not finite.")
