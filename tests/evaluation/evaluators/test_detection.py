"""Average precision against pycocotools and naive loops, FROC against a naive loop, and the evaluator around them."""

import contextlib
import io
import json

import numpy as np
import pytest
from fakes import FakeDataset, FakeModel
from naive_boxes import naive_iou

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.evaluators.detection import detection
from mammoclip_jax.evaluation.metrics import average_precision as ap
from mammoclip_jax.evaluation.metrics import froc
from mammoclip_jax.evaluation.metrics.average_precision import Case, Found
from mammoclip_jax.models.nms import Detections

IOUS = (0.25, 0.5)


def random_cases(seed, images=30, ties=False):
    """Images with 0 to 3 boxes, 0 to 8 detections of which some lie near boxes, two images a patient."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(images):
        corner = rng.uniform(0, 60, (rng.integers(0, 4), 2))
        truth = np.concatenate([corner, corner + rng.uniform(8, 40, corner.shape)], axis=1)
        count = rng.integers(0, 9)
        corner = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 40, (count, 2))], axis=1)
        for d in range(count):
            if len(truth) and rng.random() < 0.7:
                boxes[d] = truth[rng.integers(len(truth))] + rng.normal(0, rng.choice([0, 3, 8]), 4)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = -np.sort(-(rng.integers(1, 5, count) / 5 if ties else rng.random(count)))
        cases.append(Case(f"p{i // 2:02d}", truth, Found(boxes, scores)))
    return cases


def patients_of(cases):
    return np.unique([case.patient for case in cases])


def naive_voc(cases, least):
    """As Mammo-CLIP's `evaluate` and `_compute_ap`, with one threshold for equal scores."""
    scores, hits = [], []
    for case in cases:
        taken = set()
        for box, score in zip(*case.found):
            row = [naive_iou(box, other) for other in case.truth]
            best = row.index(max(row)) if row else -1
            hit = bool(row) and row[best] >= least and best not in taken
            taken |= {best} if hit else set()
            scores.append(score)
            hits.append(hit)
    boxes = sum(len(case.truth) for case in cases)
    scores, hits = np.array(scores), np.array(hits, bool)
    true, false = (
        np.array([np.sum(kind[scores >= threshold]) for threshold in np.unique(scores)[::-1]]) for kind in (hits, ~hits)
    )
    recall = np.concatenate([[0], true / boxes, [1]])
    precision = np.concatenate([[0], true / np.maximum(true + false, 1e-16), [0]])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())


def pycocotools_ap(cases, ious):
    tools, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def listed(which):
        return [(i, box) for i, case in enumerate(cases) for box in which(case)]

    truth = [
        {
            "id": k + 1,
            "image_id": i,
            "category_id": 1,
            "iscrowd": 0,
            "area": 1.0,
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
        }
        for k, (i, b) in enumerate(listed(lambda case: case.truth))
    ]
    scores = [score for case in cases for score in case.found.scores]
    found = [
        {"image_id": i, "category_id": 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": float(s)}
        for s, (i, b) in zip(scores, listed(lambda case: case.found.boxes))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = tools.COCO()
        data.dataset = {
            "images": [{"id": i} for i in range(len(cases))],
            "annotations": truth,
            "categories": [{"id": 1, "name": "x"}],
        }
        data.createIndex()
        run = evaluation.COCOeval(data, data.loadRes(found), "bbox")
        run.params.iouThrs, run.params.areaRng, run.params.areaRngLbl = np.array(ious), [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][:, :, 0, 0, -1].mean(1)


def value_of(cases, least, rule):
    patients = patients_of(cases)
    return ap.average_precision(ap.rank(cases, least, rule, patients), np.ones((1, len(patients))), rule)[0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_pycocotools_and_a_loop(seed, ties):
    cases = random_cases(seed, ties=ties)
    for least in (0.25, 0.5, 0.75):
        np.testing.assert_allclose(value_of(cases, least, "voc"), naive_voc(cases, least), rtol=1e-12)
    ious = (0.25, *ap.COCO_IOU)
    ours, theirs = [value_of(cases, least, "coco") for least in ious], pycocotools_ap(cases, ious)
    if not ties:  # pycocotools takes equal scores in the order of the images
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert 0.05 < theirs[1] < 0.9
    for order in (np.arange(len(cases))[::-1], np.random.default_rng(seed).permutation(len(cases))):
        again = [cases[i] for i in order]
        np.testing.assert_allclose(
            [value_of(again, least, rule) for rule in ("voc", "coco") for least in ious],
            [value_of(cases, least, rule) for rule in ("voc", "coco") for least in ious],
            rtol=1e-12,
        )


@pytest.mark.parametrize("rule", ("voc", "coco"))
def test_equal_scores_are_one_threshold(rule):
    """One box found and two false positives at one score: a third, wherever the images stand."""
    box, other = np.array([[0.0, 0, 10, 10]]), np.array([[20.0, 20, 30, 30]])
    none = np.zeros((0, 4))
    cases = [
        Case("a", box, Found(box, np.array([0.5]))),
        Case("b", none, Found(other, np.array([0.5]))),
        Case("c", none, Found(other, np.array([0.5]))),
    ]
    for shift in range(3):
        np.testing.assert_allclose(value_of(cases[shift:] + cases[:shift], 0.5, rule), 1 / 3)


def test_the_two_rules_differ_where_the_nearest_box_is_taken():
    truth = np.array([[0, 0, 10, 10], [0, 0, 10, 14]], float)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11]], float)  # the second is nearest to the first box too
    assert list(ap.matches(truth, boxes, 0.5, "voc")) == [0, -1]
    assert list(ap.matches(truth, boxes, 0.5, "coco")) == [0, 1]
    equal = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], float)
    assert list(ap.matches(equal, boxes, 0.5, "voc")) == [0, -1]
    assert list(ap.matches(equal, boxes, 0.5, "coco")) == [1, 0]
    assert list(ap.matches(truth[:0], boxes, 0.5, "coco")) == [-1, -1]
    assert not len(ap.matches(truth, boxes[:0], 0.5, "voc"))


def test_perfect_absent_and_empty():
    cases = random_cases(0)
    perfect = [case._replace(found=Found(case.truth, np.linspace(0.9, 0.8, len(case.truth)))) for case in cases]
    silent = [case._replace(found=Found(np.zeros((0, 4)), np.zeros(0))) for case in cases]
    nothing = [case._replace(truth=np.zeros((0, 4))) for case in cases]
    options = {"resamples": 20, "seed": 0}
    found = ap.entries({"a": perfect, "b": silent, "c": nothing}, IOUS, patients_of(cases), **options)
    boxes = sum(len(case.truth) for case in cases)
    for name in ("ap@0.5", "ap_coco@0.25", "ap_coco@0.5:0.95"):
        assert found[f"a/{name}"]["value"] == pytest.approx(1) and found[f"a/{name}"]["n"] == boxes
        assert found[f"b/{name}"]["value"] == 0
        assert found[f"c/{name}"]["value"] is None and "no image has a box" in found[f"c/{name}"]["reason"]
        assert found[f"m{name}"]["value"] == pytest.approx(0.5) and found[f"m{name}"]["n"] == 2 * boxes
    only = ap.entries({"c": nothing}, IOUS, patients_of(cases), **options)
    assert only["map@0.5"]["value"] is None and len(only) == 10


@pytest.mark.parametrize("rule", ("voc", "coco"))
def test_weights_are_copies_of_patients(rule):
    """Each resample by hand: a patient's images as often as drawn, copies beside one another."""
    cases = random_cases(5, images=20)
    patients = patients_of(cases)
    ranking = ap.rank(cases, 0.5, rule, patients)
    (weights,) = statistics.patient_weights(patients, 25, seed=3)
    values = ap.average_precision(ranking, weights, rule)
    for row, value in zip(weights, values):
        copies = [
            case._replace(patient=f"{case.patient}-{k}")
            for case in cases
            for k in range(int(row[list(patients).index(case.patient)]))
        ]
        if rule == "voc":
            expected = naive_voc(copies, 0.5)
        else:  # a copy's scores are those of its original
            names = patients_of(copies)
            expected = ap.average_precision(ap.rank(copies, 0.5, rule, names), np.ones((1, len(names))), rule)[0]
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_intervals_hold_their_values():
    cases = random_cases(1)
    found = ap.entries({"mass": cases}, IOUS, patients_of(cases), resamples=200, seed=0)
    for entry in found.values():
        assert entry["low"] < entry["value"] < entry["high"]
    np.testing.assert_allclose(found["mass/ap_coco@0.5:0.95"]["value"], pycocotools_ap(cases, ap.COCO_IOU).mean())
    without = ap.entries({"mass": cases}, IOUS, patients_of(cases), resamples=0, seed=0)
    assert without["mass/ap@0.5"]["low"] is None and without["mass/ap@0.5"]["value"] == found["mass/ap@0.5"]["value"]


# --- FROC -------------------------------------------------------------------------------------------------------------


def naive_sensitivity(cases, least, rate, *, normals=False, keep=lambda box: True, breasts=None):
    """The highest share found at any threshold whose rate of false positives is not above `rate`."""
    counted = [case for case in cases if not (normals and len(case.truth))]
    best = 0.0
    for threshold in [np.inf, *sorted({s for case in cases for s in case.found.scores}, reverse=True)]:
        false = sum(
            score >= threshold and all(naive_iou(box, other) < least for other in case.truth)
            for case in counted
            for box, score in zip(*case.found)
        )
        found = {}
        for i, case in enumerate(cases):
            for t, other in enumerate(case.truth):
                if keep(other):
                    unit = (i, t) if breasts is None else breasts[i]
                    found[unit] = found.get(unit, False) or any(
                        score >= threshold and naive_iou(box, other) >= least for box, score in zip(*case.found)
                    )
        if false / len(counted) <= rate + 1e-9:
            best = max(best, np.mean(list(found.values())))
    return best


@pytest.mark.parametrize("ties", [False, True])
def test_froc_equals_a_loop_over_thresholds(ties):
    cases = random_cases(7, ties=ties)
    breasts, sizes, pixels = np.arange(len(cases)) // 2, (0.02, 0.06), 100 * 100
    patients = patients_of(cases)
    for least in IOUS:
        found = froc.marks(cases, breasts, pixels, least, patients)
        groups = froc.groups(found, sizes)
        limits = {"small": (0, 0.02), "medium": (0.02, 0.06), "large": (0.06, 1)}
        naive = {"lesion": {}, "lesion_normals": {"normals": True}, "breast": {"breasts": breasts}}
        for name, (low, high) in limits.items():
            naive[f"lesion_{name}"] = {
                "keep": lambda b, low=low, high=high: low <= (b[2] - b[0]) * (b[3] - b[1]) / pixels < high
            }
        assert set(naive) == set(groups) and all(len(group.owner) for group in groups.values())
        for name, options in naive.items():
            each = froc.entries(found, groups[name], froc.RATES, resamples=0, seed=0)
            wanted = [naive_sensitivity(cases, least, rate, **options) for rate in froc.RATES]
            np.testing.assert_allclose([entry["value"] for entry in each], [*wanted, np.mean(wanted)])
    assert 0.2 < wanted[-1] <= 1


def test_froc_weights_are_copies_of_patients():
    cases = random_cases(8, images=16)
    patients = patients_of(cases)
    found = froc.marks(cases, np.arange(16), 10_000, 0.5, patients)
    (weights,) = statistics.patient_weights(patients, 15, seed=1)
    for name, normals in (("lesion", False), ("lesion_normals", True)):
        values = froc.sensitivities(found, froc.groups(found, (0.02, 0.06))[name], (0.5, 2.0))(weights)
        for row, value in zip(weights, values):
            copies = [case for case in cases for _ in range(int(row[list(patients).index(case.patient)]))]
            if any(not len(case.truth) for case in copies):
                wanted = [naive_sensitivity(copies, 0.5, rate, normals=normals) for rate in (0.5, 2.0)]
                np.testing.assert_allclose(value, wanted)
            else:
                assert np.isnan(value).all() == normals


def test_froc_without_findings_normals_or_detections():
    cases = random_cases(9)
    patients, breasts = patients_of(cases), np.arange(len(cases))
    options = {"resamples": 30, "seed": 0}

    def lesions(cases, name="lesion"):
        found = froc.marks(cases, breasts[: len(cases)], 10_000, 0.5, patients)
        return froc.entries(found, froc.groups(found, (0.02, 0.06))[name], froc.RATES, **options)

    silent = lesions([case._replace(found=Found(np.zeros((0, 4)), np.zeros(0))) for case in cases])
    assert all(entry["value"] == 0 and 0 < entry["high"] < 0.5 for entry in silent)  # the exact bound
    absent = lesions([case._replace(truth=np.zeros((0, 4))) for case in cases])
    assert all(entry["value"] is None and "no finding" in entry["reason"] for entry in absent)
    full = lesions([case for case in cases if len(case.truth)], "lesion_normals")
    assert all(entry["value"] is None and "without a finding" in entry["reason"] for entry in full)
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in lesions(cases))


# --- the evaluator ----------------------------------------------------------------------------------------------------


class FakeDetector(FakeModel):
    """Finds bright squares as masses; marks a corner of every image, and once more as a calcification."""

    kind = "detector"
    labels = ("calcification", "mass")

    def __init__(self):
        super().__init__()
        self.options = []

    def detect(self, images, **options):
        self.options.append(options)
        boxes, scores = np.zeros((len(images), 4, 4), np.float32), np.zeros((len(images), 4), np.float32)
        classes, valid = np.full((len(images), 4), -1), np.zeros((len(images), 4), bool)
        for i, image in enumerate(images):
            bright = np.argwhere(image >= 240)
            found = [(0.4, 1, (40, 56, 48, 64)), (0.3, 0, (40, 56, 48, 64))]
            if len(bright):
                (y0, x0), (y1, x1) = bright.min(0), bright.max(0) + 1
                found = [(0.9, 1, (x0, y0, x1, y1)), (0.6, 1, (x0, y0, x1, y1 + 1)), *found]
            for k, (score, kind, box) in enumerate(found):
                boxes[i, k], scores[i, k], classes[i, k], valid[i, k] = box, score, kind, True
        return Detections(boxes, scores, classes, valid)


@pytest.fixture(scope="module")
def dataset():
    return FakeDataset(10)


@pytest.fixture(scope="module")
def found(dataset):
    return detection(FakeDetector(), dataset, resamples=50, gallery=4)


def test_a_good_detector_is_found_good_and_its_false_positives_count(found, dataset):
    positives = sum(json.loads(row)["mass"] for row in dataset.index["labels"])
    assert found.metrics["mass/ap@0.5"]["value"] == 1 and found.metrics["mass/ap@0.5"]["n"] == positives
    assert found.metrics["mass@0.5/lesion/sensitivity@0.125_fp"]["value"] == 1
    assert found.metrics["mass@0.5/breast/sensitivity@1_fp"]["n"] == positives // 2
    assert found.metrics["mass@0.25/lesion_normals/sensitivity@0.125_fp"]["value"] == 1
    assert found.metrics["map@0.5"]["value"] == 1
    # Nothing is known of calcifications: no box, no label.
    assert found.metrics["calcification/ap@0.5"]["value"] is None
    counts = found.tables["images"].set_index("label")
    assert counts.loc["mass", "images"] == len(dataset) and counts.loc["mass", "unknown"] == 0
    assert counts.loc["calcification", "images"] == 0 and counts.loc["calcification", "unknown"] == len(dataset)
    table = found.tables["detections"]
    assert set(table["label"]) == {"mass"} and table["matched"].sum() == positives
    first = table[table["matched"]].iloc[0]
    row = dataset.index[dataset.index["image"] == first["image"]].iloc[0]
    assert json.loads(row["boxes_canvas"])[0]["box"] == list(first[["x0", "y0", "x1", "y1"]])
    assert "Equal scores are one threshold" in found.protocol and "95 %" in found.protocol


def test_pictures_show_images_with_and_without(found):
    pictures = found.tables["pictures"]
    assert len(pictures) == 4 and (pictures["boxes"] > 0).sum() == 2
    assert all(found.figures[name].startswith(b"\x89PNG") for name in [*pictures["figure"], "froc_mass"])
    assert "froc_calcification" not in found.figures


def test_the_published_protocol_sees_no_normal(dataset):
    model = FakeDetector()
    published = detection(model, dataset, protocol="published", resamples=0, gallery=0)
    assert all(options == {"class_aware": False, "candidates": None, "threshold": 0.05} for options in model.options)
    assert set(published.metrics) == {
        f"{of}ap{kind}" for of in ("m", "mass/", "calcification/") for kind in ("@0.5", "_coco@0.5", "_coco@0.5:0.95")
    }
    counts = published.tables["images"].set_index("label")
    assert counts.loc["mass", "without"] == 0 and counts.loc["mass", "images"] == counts.loc["mass", "boxes"]
    # Ranked below all hits: a second mark of the mass, a corner, and the same as a calcification.
    assert published.metrics["mass/ap@0.5"]["value"] == 1
    assert (~published.tables["detections"]["matched"]).sum() == 3 * counts.loc["mass", "images"]


def test_false_positives_on_normals_lower_what_the_published_protocol_leaves(dataset):
    class Overconfident(FakeDetector):
        def detect(self, images, **options):
            found = super().detect(images, **options)
            dark = images.reshape(len(images), -1).max(1) < 240
            return found._replace(scores=np.where(dark[:, None] & (found.classes == 1), 0.95, found.scores))

    options = {"resamples": 0, "gallery": 0, "labels": ["mass"]}
    published = detection(Overconfident(), dataset, protocol="published", **options).metrics
    default = detection(Overconfident(), dataset, **options).metrics
    assert published["mass/ap@0.5"]["value"] == 1 and default["mass/ap@0.5"]["value"] < 0.8
    assert default["mass@0.5/lesion_normals/sensitivity@0.5_fp"]["value"] == 0
    assert default["mass@0.5/lesion_normals/sensitivity@1_fp"]["value"] == 1


def test_chunks_change_nothing(dataset, found, monkeypatch):
    monkeypatch.setattr("mammoclip_jax.evaluation.features.CHUNK", 3)
    again = detection(FakeDetector(), dataset, resamples=50, gallery=4)
    assert again.metrics == found.metrics and again.figures == found.figures


def test_a_split_without_any_box(dataset):
    empty = FakeDataset(3, boxes=False)
    result = detection(FakeDetector(), empty, resamples=10)
    assert all(entry["value"] is None for entry in result.metrics.values())
    published = detection(FakeDetector(), empty, protocol="published", resamples=10)
    assert all(entry["value"] is None for entry in published.metrics.values())
    assert not len(published.tables["detections"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"protocol": "publishd"}, "'publishd'.*Did you mean 'published'"),
        ({"labels": ["masss"]}, "'masss'.*'mass'"),
        ({"iou": (0.5, 1.5)}, "iou=.*up to 1"),
        ({"sizes": (0.1, 0.01)}, "sizes rising"),
    ],
)
def test_wrong_options_say_what_is_right(dataset, options, message):
    with pytest.raises(UserError, match=message):
        detection(FakeDetector(), dataset, **options)


def test_what_is_no_detector_is_refused(dataset):
    with pytest.raises(UserError, match="needs a detector, this model is a dual_encoder"):
        detection(FakeModel(), dataset)


def test_random_weights_stand_beside_the_trained_ones(dataset):
    class Detector(FakeDetector):
        def detect(self, images, **options):
            found = super().detect(images, **options)
            return found if self.weights is None else found._replace(boxes=found.boxes + 30)

    model = Detector()
    plain, found = (detection(model, dataset, resamples=0, gallery=0, sanity=sanity) for sanity in (False, True))
    assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics and model.weights is None
    assert found.metrics["mass/ap@0.5"]["value"] > 0.9 and found.metrics["mass/ap@0.5_randomised"]["value"] == 0
    assert "random weights" in found.protocol and "random weights" not in plain.protocol
