import numpy as np
import pytest
from fakes import FakeDataset, FakeModel

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.suite import evaluate


def test_results_are_named_after_data_set_and_entry_and_images_are_embedded_once():
    model = FakeModel()
    datasets = {"one": FakeDataset(3), "two": FakeDataset(2, seed=1)}
    results = evaluate(
        model,
        datasets,
        {
            "zero_shot": {"resamples": 5},
            "published": {"evaluator": "zero_shot", "prompts": "mammo_clip", "resamples": 5},
            "retrieval": {"folders": ("two",), "resamples": 5},
        },
    )
    assert [r.name for r in results] == [
        "one/zero_shot",
        "one/published",
        "two/zero_shot",
        "two/published",
        "two/retrieval",
    ]
    assert sum(model.calls) == 12 + 8


def test_without_resamples_there_is_no_interval_but_a_value():
    (found,) = evaluate(FakeModel(), {"one": FakeDataset(3)}, {"zero_shot": {"resamples": 0, "labels": ("mass",)}})
    assert found.metrics["mass/auroc"] == {"value": 1.0, "low": None, "high": None, "n": 6}
    for entry in evaluate(FakeModel(), {"one": FakeDataset(3)}, {"saliency": {"resamples": 0}})[0].metrics.values():
        assert entry["low"] is None


@pytest.mark.parametrize(
    "evaluators, message",
    [
        ({"zeroshot": {}}, "Did you mean 'zero_shot'"),
        ({"saliency": {"tolerence": 3}}, "Did you mean 'tolerance'"),
        ({"zero_shot": {"split": "nowhere"}}, "split 'nowhere'"),
        ({"saliency": {"explain": "everything"}}, "explain='everything'"),
    ],
)
def test_mistakes_are_explained(evaluators, message):
    with pytest.raises(UserError, match=message):
        evaluate(FakeModel(), {"one": FakeDataset(2)}, evaluators)


def test_data_prepared_differently_are_refused_naming_both_values():
    dataset = FakeDataset(2)
    dataset.info["preprocessing"] = dataset.info["preprocessing"] | {"geometry": "stretch"}
    message = "'one' was prepared with geometry='stretch', the model learnt from geometry='fit'"
    with pytest.raises(UserError, match=message):
        evaluate(FakeModel(), {"one": dataset}, {"zero_shot": {}})


def test_data_sets_without_the_split_are_passed_over_and_an_entry_may_have_its_own():
    datasets = {"one": FakeDataset(3), "films": FakeDataset(2, split="train", seed=1)}
    entries = {"zero_shot": {"resamples": 5}, "retrieval": {"resamples": 5, "split": "all"}}
    names = [r.name for r in evaluate(FakeModel(), datasets, entries, split="test")]
    assert names == ["one/zero_shot", "one/retrieval", "films/retrieval"]
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(FakeModel(), {"films": datasets["films"]}, {"zero_shot": {}}, split="val")


def test_results_are_saved_where_asked(tmp_path):
    evaluate(FakeModel(), {"one": FakeDataset(3)}, {"saliency": {"resamples": 5, "gallery": 1}}, tmp_path)
    assert {p.name for p in (tmp_path / "one" / "saliency").iterdir()} >= {"images.csv", "images.json", "gallery.csv"}
    assert (tmp_path / "metrics.json").is_file() and np.any([p.suffix == ".png" for p in tmp_path.rglob("*")])
