"""Zero-shot of whole exams against plain loops: what lacks a view has no prediction, and is counted."""

import json

import numpy as np
import pytest
from fakes import FakeDataset
from sklearn.metrics import roc_auc_score
from test_zero_shot_classes import Drawn

from mammoclip_jax.evaluation.evaluators.zero_shot import zero_shot

FOUR = {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")}
PROMPTS = {
    "birads": {"classes": {"1": "negative", "2": "benign", "0": "incomplete", "4": "suspicious"}},
    "mass": {"positive": "mass", "negative": "no mass"},
}


def dataset_of(seed):
    """Some exams lack a view, some have a spot view beside or instead of a screening one, some labels are unknown."""
    dataset, rng = FakeDataset(30, seed=seed), np.random.default_rng(seed)
    index = dataset.index
    index["flags"] = np.where(rng.random(len(index)) < 0.1, "spot", "")
    index.loc[index["study"] == "s003", "flags"] = "spot"
    labels = [{"birads": int(rng.choice([1, 2, 0, 4])), "mass": int(rng.random() < 0.2)} for _ in range(len(index))]
    for i, study in enumerate(index["study"]):
        if study in ("s001", "s004"):
            labels[i] = {}
        index.loc[i, "labels"] = json.dumps(labels[i])
    index.loc[[8, 20], "view"] = ["CC", ""]  # a second CC beside it, and a view that nobody names
    index.loc[[8, 20], "flags"] = ""
    keep = np.sort(rng.permutation(len(index))[: int(0.95 * len(index))])
    dataset.images, dataset.index = [dataset.images[i] for i in keep], index.iloc[keep].reset_index(drop=True)
    return dataset


def exams_of(dataset):
    """{study: (positions, lacking)} of the images that stand for each."""
    found = {}
    for study, group in dataset.index.groupby("study"):
        standing = [i for i, row in group.iterrows() if row["flags"] != "spot"]
        known = {(dataset.index["laterality"][i], dataset.index["view"][i]) for i in standing}
        found[study] = standing or list(group.index), FOUR - known
    return found


def mean_of_breasts(values, sides):
    return np.mean([values[[s == side for s in sides]].mean(0) for side in sorted(set(sides))], axis=0)


@pytest.mark.parametrize("seed", range(2))
def test_exams_agree_with_plain_loops(seed):
    dataset, model = dataset_of(seed), Drawn()
    result = zero_shot(model, dataset, prompts=PROMPTS, protocol="four_views", temperature=0.1, resamples=10)
    images = model.embed_image(np.stack(dataset.images)).astype(np.float64)
    names = list(PROMPTS["birads"]["classes"])
    texts = model.embed_text(list(PROMPTS["birads"]["classes"].values()))
    pair = model.embed_text(["mass", "no mass"])
    answered, lacking, masses, rows = [], [], [], {}
    for study, (positions, lack) in exams_of(dataset).items():
        known = [i for i in positions if json.loads(dataset.index["labels"][i])]
        if not known:
            continue
        labels = [json.loads(dataset.index["labels"][i]) for i in known]
        sides = [dataset.index["laterality"][i] for i in known]
        truth = max(names.index(str(label["birads"])) for label in labels)
        said = mean_of_breasts(images[known] @ texts.T, sides).argmax()
        lacking.append(bool(lack))
        rows[study] = (names[truth], "no prediction" if lack else names[said])
        if not lack:
            answered.append((truth, said))
            score = mean_of_breasts(images[known] @ (pair[0] - pair[1]), sides)
            masses.append((max(label["mass"] for label in labels), score))
    assert 0.1 < np.mean(lacking) < 0.9
    value = {name: entry["value"] for name, entry in result.metrics.items()}
    truth, said = np.array(answered).T
    assert value["birads/no_prediction_exam"] == value["mass/no_prediction_exam"] == pytest.approx(np.mean(lacking))
    assert result.metrics["birads/no_prediction_exam"]["n"] == len(lacking)
    assert value["birads/accuracy_exam"] == pytest.approx((truth == said).mean())
    assert result.metrics["birads/accuracy_exam"]["n"] == len(answered)
    assert value["birads/answered_right_exam"] == pytest.approx((truth == said).sum() / len(lacking))
    assert value["mass/auroc_exam"] == pytest.approx(roc_auc_score(*zip(*masses)))
    assert value["birads/balanced_chance_exam"] == 1 / len(set(truth))
    assert all(name.endswith(("_exam", "_exam_max")) for name in value)
    table = result.tables["exams"].set_index(["label", "study"])
    for study, (right, answer) in rows.items():
        row = table.loc["birads", study]
        assert (row["truth"], row["prediction"]) == (right, answer)
        missing = {tuple(view.split()) for view in row["missing"].split(", ") if view}
        assert missing == exams_of(dataset)[study][1]
        assert (table.loc["mass", study]["prediction"] == "no prediction") == bool(missing)
    assert len(table) == 2 * len(rows) and "s003" in rows
    assert "no_prediction is the share" in result.protocol


def test_where_no_exam_is_whole_all_are_counted():
    dataset = FakeDataset(4)
    keep = dataset.index["view"] == "CC"
    dataset.images = [image for image, kept in zip(dataset.images, keep) if kept]
    dataset.index = dataset.index[keep].reset_index(drop=True)
    prompts = {"mass": {"positive": "mass", "negative": "no mass"}}
    result = zero_shot(Drawn(), dataset, prompts=prompts, protocol="four_views", resamples=10)
    assert result.metrics["mass/auroc_exam"]["reason"] == "no exam of four views has this label"
    assert result.metrics["mass/no_prediction_exam"]["value"] == 1
    assert set(result.tables["exams"]["missing"]) == {"L MLO, R MLO"}
