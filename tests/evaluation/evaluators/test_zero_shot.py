import json

import numpy as np
import pytest
from fakes import FakeDataset, FakeModel
from sklearn.metrics import roc_auc_score

from mammoclip_jax.data.batches.units import breasts
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import features
from mammoclip_jax.evaluation.evaluators.zero_shot import zero_shot
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.prompts import score, text_bank


class NoisyModel(FakeModel):
    """Scores that overlap, so that means, maxima and single images give different AUROCs."""

    def embed_image(self, images):
        self.calls.append(len(images))
        seeds = images.reshape(len(images), -1).astype(np.int64).sum(1)
        noise = np.array([np.random.default_rng(s).normal() for s in seeds])
        angle = (images.reshape(len(images), -1).max(1) > 200) * 0.4 + 0.6 + 0.3 * noise
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def test_auroc_of_breasts_and_images_agrees_with_a_plain_computation():
    dataset, model = FakeDataset(20), NoisyModel()
    result = zero_shot(model, dataset, labels=("mass",), resamples=50)
    embedded = model.embed_image(np.stack(dataset.images))
    value = embedded[:, 1] - embedded[:, 0]  # "mass" is (0, 1), "no mass" (1, 0)
    truth = np.array([json.loads(l)["mass"] for l in dataset.index["labels"]])
    by_breast = value.reshape(-1, 2)  # the fake's two views of a breast follow each other
    expected = {
        "auroc": roc_auc_score(truth[::2], by_breast.mean(1)),
        "auroc_max": roc_auc_score(truth[::2], by_breast.max(1)),
        "auroc_image": roc_auc_score(truth, value),
    }
    assert len(set(expected.values())) == 3
    for name, number in expected.items():
        assert result.metrics[f"mass/{name}"]["value"] == pytest.approx(number, abs=1e-9)
    assert result.metrics["mass/auroc"]["n"] == 40 and result.metrics["mass/auroc_image"]["n"] == 80


def test_an_absent_label_and_a_single_class_give_reasons():
    dataset = FakeDataset(4)
    dataset.index["labels"] = json.dumps({"mass": 1})
    result = zero_shot(FakeModel(), dataset, resamples=20)
    assert "no image has this label" in result.metrics["cancer/auroc"]["reason"]
    assert "both classes" in result.metrics["mass/auroc"]["reason"]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_chunk_size_does_not_matter_and_each_image_is_embedded_once(monkeypatch, size):
    dataset, model = FakeDataset(5), NoisyModel()
    expected = zero_shot(NoisyModel(), dataset, resamples=20).metrics
    monkeypatch.setattr(features, "CHUNK", size)
    shared = features.Features(model, dataset)
    assert zero_shot(model, dataset, resamples=20, features=shared).metrics == expected
    assert sum(model.calls) == len(dataset)
    zero_shot(model, dataset, resamples=20, features=shared)
    assert sum(model.calls) == len(dataset)


def test_ensembles_are_averaged_as_embeddings_and_normalised():
    class Words(FakeModel):
        def embed_text(self, texts):
            return np.array([{"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}[t] for t in texts], dtype=np.float32)

    bank = text_bank(Words(), load_prompts({"mass": {"positive": ["a", "b"], "negative": "c"}}))
    assert np.allclose(bank["mass"], [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]])
    image = np.array([[0.6, 0.8, 0.0]], dtype=np.float32)
    assert score(image, bank)["mass"] == pytest.approx([1.4 * 0.5**0.5])


def test_unknown_laterality_makes_breasts_of_single_images():
    dataset = FakeDataset(2)
    assert breasts(dataset.index).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    dataset.index["laterality"] = ""
    assert breasts(dataset.index).tolist() == list(range(8))


def test_the_subset_is_of_patients_and_repeatable():
    index = FakeDataset(10).index
    chosen = features.select(index, "test", 3, seed=4)
    assert index["patient"].iloc[chosen].nunique() == 3 and len(chosen) == 12
    assert np.array_equal(chosen, features.select(index, "test", 3, seed=4))
    with pytest.raises(UserError, match="split 'val'"):
        features.select(index, "val")


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="mammo_clip.json: no label 'masses'. Did you mean 'mass'"):
        zero_shot(FakeModel(), FakeDataset(2), labels=("masses",))
    dataset = FakeDataset(2)
    dataset.index["labels"] = json.dumps({"mass": "B"})
    with pytest.raises(UserError, match="not a yes/no label"):
        zero_shot(FakeModel(), dataset)


def test_the_mean_over_labels_leaves_out_those_of_one_class_and_resamples_patients_together():
    dataset = FakeDataset(20)
    labels = [json.loads(own) for own in dataset.index["labels"]]
    rng = np.random.default_rng(0)
    labels = [own | {"cancer": int(rng.random() < 0.4), "calcification": 1} for own in labels]
    labels[3].pop("cancer")
    dataset.index["labels"] = [json.dumps(own) for own in labels]
    prompts = {name: {"positive": name, "negative": f"no {name}"} for name in ("mass", "cancer", "calcification")}
    result = zero_shot(NoisyModel(), dataset, prompts=prompts, macro="three", resamples=10)
    for level in ("", "_image"):
        entry = result.metrics[f"three/macro_auroc{level}"]
        own = [result.metrics[f"{name}/auroc{level}"]["value"] for name in ("mass", "cancer")]
        assert entry["value"] == pytest.approx(np.mean(own)) and entry["low"] < entry["value"] < entry["high"]
    nothing = zero_shot(NoisyModel(), dataset, prompts=prompts, labels=("calcification",), macro="one", resamples=5)
    assert nothing.metrics["one/macro_auroc"]["reason"] == "no label has both classes here"
