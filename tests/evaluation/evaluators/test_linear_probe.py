"""The linear probe: who is learnt from, who chooses, who is tested; and its numbers against a plain computation."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammoclip_jax.data import subsets
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import features as features_module
from mammoclip_jax.evaluation.evaluators.probe import linear_probe
from mammoclip_jax.evaluation.features import Features, label_texts
from mammoclip_jax.evaluation.metrics import logistic
from mammoclip_jax.evaluation.suite import evaluate


class Vectors:
    """A data set whose images are their own features, and whose labels follow from them, with noise."""

    def __init__(self, patients=60, views=2, width=6, seed=0, splits=("train", "train", "val", "test")):
        rng = np.random.default_rng(seed)
        self.info = {
            "name": "made",
            "fingerprint": f"{patients}-{views}-{width}-{seed}",
            "preprocessing": {"geometry": "fit", "height": 1, "width": width},
        }
        rows, images = [], []
        for p in range(patients):
            centre = rng.normal(size=width)
            for v in range(views):
                vector = centre + 0.3 * rng.normal(size=width)
                value = vector[0] + 0.5 * rng.normal()
                labels = {
                    "mass": int(value > 0.2),
                    "density": "ABCD"[int(np.digitize(value, [-0.8, 0, 0.8]))],
                    "age": 40 + p,
                    "cancer": int(vector[1] > 0),
                }
                rows.append(
                    {
                        "dataset": "made",
                        "patient": f"p{p:03d}",
                        "study": f"s{p}",
                        "image": f"i{p}_{v}",
                        "laterality": "LR"[v % 2],
                        "view": "MLO",
                        "split": splits[p % len(splits)],
                        "labels": json.dumps(labels),
                    }
                )
                images.append(vector)
        self.index, self.images = pd.DataFrame(rows), np.array(images)

    def relabel(self, label, values, where):
        """Sets a label of the rows where `where` is True; None takes it away."""
        for row, value in zip(np.flatnonzero(where), values):
            labels = json.loads(self.index.loc[row, "labels"])
            labels[label] = value
            self.index.loc[row, "labels"] = json.dumps({k: v for k, v in labels.items() if v is not None})

    def read(self, row):
        return self.images[row]


class Encoder:
    """Its features are the images; counts how many it was given."""

    kind = "image_encoder"
    preprocessing = {"geometry": "fit", "height": 1, "width": 6}

    def __init__(self, name="a"):
        self.name, self.seen = name, 0

    def fingerprint(self):
        return self.name

    def image_features(self, images, of="pooled"):
        self.seen += len(images)
        return np.asarray(images, np.float32) * (1 if of == "pooled" else 2)


def probe(dataset=None, **options):
    return linear_probe(Encoder(), dataset or Vectors(), **{"label": "mass", "resamples": 0} | options)


def values(result):
    return {name: entry["value"] for name, entry in result.metrics.items()}


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_metrics_equal_a_plain_pipeline():
    dataset = Vectors()
    result = probe(dataset, cs=(0.1,))
    split = dataset.index["split"].to_numpy()
    truth = np.array([json.loads(text)["mass"] for text in dataset.index["labels"]])
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8))
    plain.fit(dataset.images[split == "train"], truth[split == "train"])
    expected = plain.predict_proba(dataset.images[split == "test"])[:, 1]
    table = result.tables["predictions"]
    np.testing.assert_allclose(table["score"], expected, atol=1e-4)
    assert table["truth"].tolist() == truth[split == "test"].tolist() and set(table["label"]) == {"mass"}
    assert result.metrics["mass/auroc_image"]["value"] == pytest.approx(
        roc_auc_score(truth[split == "test"], expected), abs=1e-3
    )


@pytest.mark.parametrize("classes, width", [(2, 5), (2, 90), (3, 5), (3, 90)])
def test_the_span_of_the_items_changes_nothing(classes, width):
    """Fewer items than features, or more: the same optimum as scikit-learn's on the features themselves."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(40, width)) * rng.uniform(0.1, 9, width), np.arange(40) % classes
    x[:, 0] = 3.7  # constant
    items = logistic.Items(x, target, target.astype(str))
    scaled = StandardScaler().fit(x)
    for c, found in zip((1e-3, 1.0), logistic.fit(items, classes, (1e-3, 1.0))):
        plain = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(scaled.transform(x), target)
        np.testing.assert_allclose(found.probabilities(x), plain.predict_proba(scaled.transform(x)), atol=2e-4)


def test_a_part_of_a_matrix_is_learnt_from_as_its_rows_are():
    rng = np.random.default_rng(0)
    x, target, rows = rng.normal(size=(90, 4)).astype(np.float32), np.arange(60) % 2, rng.permutation(90)[:60]
    items = [logistic.Items(features, target, target.astype(str)) for features in (x[rows], logistic.Part(x, rows))]
    chosen = [np.arange(0, 60, 3), target == 1, np.arange(50)]
    for place in chosen:
        plain, part = (one.take(place) for one in items)
        assert isinstance(part.features, logistic.Part) and part.features.shape == plain.features.shape
        np.testing.assert_array_equal(part.features[:], plain.features)
    fits = [logistic.fit(one.take(chosen[-1]), 2, (0.1,))[0] for one in items]
    np.testing.assert_array_equal(fits[0].probabilities(x[:7]), fits[1].probabilities(logistic.Part(x, np.arange(7))))


def test_features_of_all_images_are_in_memory_once():
    features = Features(Encoder(), Vectors(4))
    some, all_of_them = features.of("pooled", [2, 0]), features.of("pooled", [3, 2, 1, 0])
    np.testing.assert_array_equal(some, all_of_them[[1, 3]])
    assert all(np.shares_memory(all_of_them, vector) for vector in features._known["pooled"].values())
    with pytest.raises(ValueError, match="read-only"):
        all_of_them[0] = 0
    np.testing.assert_array_equal(features.of("pooled", [4, 2])[1], all_of_them[1])


def test_classes_are_found_from_the_values():
    result = probe(label="density")
    table = result.tables["predictions"]
    columns = ["p_A", "p_B", "p_C", "p_D"]
    np.testing.assert_allclose(table[columns].sum(axis=1), 1, atol=1e-9)
    truth = table["truth"].to_numpy()
    expected = np.mean([roc_auc_score(truth == name, table[f"p_{name}"]) for name in "ABCD"])
    assert result.metrics["density/macro_auroc_image"]["value"] == pytest.approx(expected, abs=1e-9)
    assert result.metrics["density/macro_auroc_image"]["value"] > 0.6


def test_several_labels_are_probed_each_by_itself():
    both = probe(label=("mass", "cancer"))
    assert len(both.tables["predictions"]) == 2 * len(probe().tables["predictions"])
    assert values(both) == values(probe()) | values(probe(label="cancer"))
    mixed = probe(label=("mass", "density"))
    assert set(mixed.tables) >= {"predictions", "predictions_density"}


def test_mini_mias_densities_are_its_own_scale():
    rows = pd.DataFrame({"labels": [json.dumps({"density": value}) for value in "FGDD"]})
    assert label_texts(rows, "density").tolist() == ["F", "G", "D", "D"]
    dataset = Vectors()
    dataset.relabel("density", ["FGD"[row % 3] for row in range(len(dataset.index))], np.ones(len(dataset.index), bool))
    assert [c for c in probe(dataset, label="density").tables["predictions"] if c[:2] == "p_"] == ["p_F", "p_G", "p_D"]


# --- who is learnt from, who chooses, who is tested -------------------------------------------------------------------


def flipped(dataset, split, label="mass"):
    """The data set with wrong labels in a split."""
    where = (dataset.index["split"] == split).to_numpy()
    wrong = [1 - json.loads(text)[label] for text in dataset.index["labels"][where]]
    dataset.relabel(label, wrong, where)
    return dataset


def test_labels_of_the_tested_images_change_no_model():
    right, wrong = probe(), probe(flipped(Vectors(), "test"))
    np.testing.assert_array_equal(right.tables["predictions"]["score"], wrong.tables["predictions"]["score"])
    assert right.tables["fits"]["C"].tolist() == wrong.tables["fits"]["C"].tolist()
    assert wrong.metrics["mass/auroc_image"]["value"] == pytest.approx(1 - right.metrics["mass/auroc_image"]["value"])


def test_features_of_the_tested_images_change_no_model():
    dataset, moved = Vectors(), Vectors()
    test = (dataset.index["split"] == "test").to_numpy()
    moved.images[np.flatnonzero(test)[1:]] *= 100  # the first stays, and its score
    first, again = (probe(data).tables["predictions"]["score"].iloc[0] for data in (dataset, moved))
    assert first == again


def test_the_validation_split_chooses_and_is_not_learnt_from():
    dataset = Vectors()
    val = (dataset.index["split"] == "val").to_numpy()
    assert set(probe(dataset).tables["fits"]["chosen_on"]) == {"validation split"}
    right, wrong = probe(dataset, cs=(0.01,)), probe(flipped(Vectors(), "val"), cs=(0.01,))
    np.testing.assert_array_equal(right.tables["predictions"]["score"], wrong.tables["predictions"]["score"])
    dataset.relabel("mass", [1] * val.sum(), val)  # one class alone cannot choose
    assert set(probe(dataset).tables["fits"]["chosen_on"]) == {"5 inner folds"}
    dataset.index.loc[val, "split"] = "train"
    found = probe(dataset).tables["fits"].iloc[0]
    assert found["chosen_on"] == "5 inner folds" and found["patients"] == 45


def test_in_folds_the_labels_of_a_fold_change_no_model_that_tests_it():
    dataset = Vectors(patients=30)
    target = np.array([json.loads(text)["mass"] for text in dataset.index["labels"]])
    options = dict(split="all", folds=3, seeds=(0,), choose_by="log_loss")
    right = probe(dataset, **options).tables["predictions"]["score"].to_numpy()
    fold = subsets.folds(dataset.index["patient"], target, 3, 0)
    for k in range(3):
        rest = np.isin(dataset.index["patient"], dataset.index["patient"][fold != k])
        items = logistic.Items(
            dataset.images[rest].astype(np.float32), target[rest], dataset.index["patient"][rest].to_numpy().astype(str)
        )
        chosen = logistic.choose(items, 2, logistic.Options(choose_by="log_loss"), None, 0)
        fitted = logistic.fit(items, 2, (chosen.c,))[0]
        np.testing.assert_allclose(right[~rest], fitted.probabilities(dataset.images[~rest].astype(np.float32))[:, 1])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 5),
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=15, max_size=40),
)
def test_folds_part_patients_and_keep_the_classes(count, seed, groups):
    patients = np.repeat([f"p{i}" for i in range(len(groups))], [n for n, _ in groups])
    strata = np.repeat([k for _, k in groups], [n for n, _ in groups])
    if np.unique(strata, return_counts=True)[1].max() < count:
        return  # scikit-learn refuses
    found = subsets.folds(patients, strata, count, seed)
    assert set(found) <= set(range(count))
    assert all(len(set(found[patients == name])) == 1 for name in set(patients))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.integers(1, 6),
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=5, max_size=60),
)
def test_draws_take_whole_patients_of_each_class(share, count, seed, groups):
    names = np.array([f"p{i}" for i in range(len(groups))])
    classes = np.array([k for _, k in groups])
    patients, strata = (np.repeat(values, [n for n, _ in groups]) for values in (names, classes))
    for chosen, wanted in (
        (subsets.fraction(patients, strata, share, seed), lambda n: np.ceil(share * n - 1e-9)),
        (subsets.shots(patients, strata, count, seed), lambda n: min(count, n)),
    ):
        drawn = np.array([chosen[patients == name].any() for name in names])
        assert all(chosen[patients == name].all() == was for name, was in zip(names, drawn))
        for k in set(classes):
            assert drawn[classes == k].sum() == wanted((classes == k).sum())
    fewer = subsets.shots(patients, strata, count, seed)
    assert (fewer <= subsets.shots(patients, strata, count + 1, seed)).all()


def test_fractions_and_shots_are_means_over_seeds():
    result = probe(fractions=(0.1, 0.5, 1.0), shots=(2,), seeds=(0, 1, 2, 3))
    draws = result.tables["draws"]
    assert draws.groupby("training", sort=False).size().to_dict() == {"100 %": 1, "50 %": 4, "10 %": 4, "2 shots": 4}
    half = draws[draws["training"] == "50 %"]["auroc"]
    entry = result.metrics["mass at 50 %/auroc"]
    assert entry["value"] == pytest.approx(half.mean()) and entry["sd"] == pytest.approx(half.std())
    assert entry["low"] is None and "4 draws" in entry["reason"]
    spread = result.tables["fractions"].set_index(["training", "metric"]).loc[("50 %", "auroc")]
    assert spread["sd"] == pytest.approx(half.std()) and spread["seeds"] == 4
    fits = result.tables["fits"]
    assert fits[fits["training"] == "2 shots"]["patients"].eq(4).all()
    assert fits[fits["training"] == "100 %"]["patients"].eq(30).all()


def test_in_folds_every_image_is_tested_once_a_division():
    result = probe(split="all", folds=5, seeds=(0, 1), resamples=30)
    fits = result.tables["fits"]
    assert fits.groupby("seed")["test_images"].sum().to_dict() == {0: 120, 1: 120} and len(fits) == 10
    assert len(result.tables["predictions"]) == 120 and result.tables["predictions"]["score"].notna().all()
    assert result.metrics["mass/auroc_image"]["n"] == 120 and result.metrics["mass/auroc_image"]["low"] > 0.5
    assert (fits["patients"] + fits["test_images"] / 2).eq(60).all()


# --- what is missing --------------------------------------------------------------------------------------------------


def test_images_of_unknown_label_are_left_out():
    dataset, removed = Vectors(), Vectors()
    unknown = np.arange(len(dataset.index)) % 5 == 0
    dataset.relabel("mass", [None] * unknown.sum(), unknown)
    kept = removed.index[~unknown]
    removed.images, removed.index = removed.images[~unknown], kept.reset_index(drop=True)
    assert values(probe(dataset)) == values(probe(removed))


def test_a_class_that_is_absent_from_the_training_part_has_no_probability():
    dataset = Vectors()
    train = (dataset.index["split"] == "train").to_numpy()
    names = [json.loads(text)["density"] for text in dataset.index["labels"][train]]
    dataset.relabel("density", ["C" if name == "D" else name for name in names], train)
    table = probe(dataset, label="density").tables["predictions"]
    assert (table["p_D"] == 0).all() and (table["truth"] == "D").any()


def test_one_class_alone_gives_a_reason_and_no_value():
    dataset = Vectors()
    dataset.relabel("mass", [1] * len(dataset.index), np.ones(len(dataset.index), bool))
    found = probe(dataset).metrics["mass/auroc"]
    assert found["value"] is None and "positive" in found["reason"]
    test = (dataset.index["split"] == "test").to_numpy()
    dataset.relabel("cancer", [None] * test.sum(), test)
    assert probe(dataset, label="cancer").metrics["cancer/auroc"]["value"] is None


def test_one_patient_a_class_cannot_choose():
    found = probe(Vectors(splits=("train", "test")), shots=(1,), seeds=(0,)).tables["fits"]
    assert "too few" in found[found["training"] == "1 shot"]["chosen_on"].iloc[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label": "mas"}, "no label 'mas'. Did you mean 'mass'.*age, cancer, density, mass"),
        ({"label": ()}, "age, cancer, density, mass"),
        ({"label": "age"}, "60 different values"),
        ({"split": "train"}, "learns from split 'train'"),
        ({"split": "all"}, "or set folds"),
        ({"train_split": "trian"}, "no image is in split 'trian'"),
        ({"folds": 1}, "folds=1"),
        ({"folds": 100, "split": "all"}, "cannot be split into 100 folds"),
        ({"representation": "poled"}, "Did you mean 'pooled'"),
        ({"representation": "embedding"}, "image_encoder has no embedding"),
        ({"choose_by": "auc"}, "criterion of choose_by 'auc'"),
        ({"fractions": (2.0,)}, "fraction of 2"),
        ({"shots": (0,)}, "0 shots"),
        ({"seeds": ()}, "seeds is empty"),
        ({"class_weight": "equal"}, "class_weight 'equal'"),
        ({"cs": ()}, "cs is"),
        ({"cs": (-1.0,)}, "cs is"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        probe(**options)


# --- features that are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_any_chunk_size_gives_the_same_and_images_are_computed_once(monkeypatch, size):
    expected = values(probe())
    monkeypatch.setattr(features_module, "CHUNK", size)
    encoder, dataset = Encoder(), Vectors()
    shared = Features(encoder, dataset)
    for _ in range(2):
        assert values(linear_probe(encoder, dataset, label="mass", resamples=0, features=shared)) == expected
    assert encoder.seen == len(dataset.index)


def test_kept_features_equal_computed_ones_and_are_not_computed_again(tmp_path):
    dataset, first, second = Vectors(), Encoder(), Encoder()
    some, rest = range(10), range(5, 40)
    one = Features(first, dataset, folder=tmp_path)
    expected = np.concatenate([one.of("pooled", some), one.of("pooled", rest)])
    two = Features(second, dataset, folder=tmp_path)
    np.testing.assert_array_equal(np.concatenate([two.of("pooled", some), two.of("pooled", rest)]), expected)
    assert second.seen == 0 and first.seen == 40
    np.testing.assert_array_equal(expected[:10], dataset.images[:10].astype(np.float32))
    two.of("pooled", range(30, 50))
    assert second.seen == 10 and len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(two.of("stages", some), 2 * expected[:10])


@pytest.mark.parametrize("change", ["weights", "data", "preprocessing"])
def test_other_weights_data_or_preparation_are_computed_anew(tmp_path, change):
    dataset, encoder = Vectors(), Encoder()
    Features(encoder, dataset, folder=tmp_path).of("pooled", [0])
    if change == "weights":
        encoder = Encoder("b")
    elif change == "data":
        dataset.info["fingerprint"] = "other"
    else:
        dataset.info["preprocessing"]["height"] = 2
    encoder.seen = 0
    Features(encoder, dataset, folder=tmp_path).of("pooled", [0])
    assert encoder.seen == 1


def test_a_damaged_file_is_computed_again(tmp_path, caplog):
    dataset, encoder = Vectors(), Encoder()
    expected = Features(encoder, dataset, folder=tmp_path).of("pooled", range(20))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for content in (whole[:100], b"", whole[:-500], whole[:300] + b"x" * 40 + whole[340:]):
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(Features(encoder, dataset, folder=tmp_path).of("pooled", range(20)), expected)
        assert "is damaged" in caplog.text
        caplog.clear()
        assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_the_file_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = Features(Encoder(), Vectors(), folder=tmp_path / "file").of("pooled", [0, 1])
    assert found.shape == (2, 6) and "was not written" in caplog.text


def test_the_suite_runs_it_on_an_encoder_and_keeps_features(tmp_path):
    dataset, encoder = Vectors(), Encoder()
    dataset.info["preprocessing"] = {"geometry": "stretch", "height": 9, "width": 9}  # not the encoder's
    for _ in range(2):
        (found,) = evaluate(
            encoder,
            {"made": dataset},
            {"linear_probe": {"label": "mass", "resamples": 0}},
            tmp_path / "out",
            cache=tmp_path / "cache",
        )
    assert found.name == "made/linear_probe" and encoder.seen == len(dataset.index)
    assert (tmp_path / "out" / "made" / "linear_probe" / "predictions.csv").is_file()
    with pytest.raises(UserError, match="'zero_shot' takes a dual_encoder, and this model is a image_encoder"):
        evaluate(encoder, {"made": dataset}, {"zero_shot": {}})
