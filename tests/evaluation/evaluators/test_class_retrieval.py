"""P@k of images in a gallery of texts of their classes: against a plain loop, and what goes into the gallery."""

import json

import numpy as np
import pytest
from fake_sets import FakeDataset as FakeReports
from fakes import FakeDataset, FakeModel
from test_retrieval import Words

from mammoclip_jax.data.sources.chest_labels import FIVE
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.class_retrieval import class_retrieval, drawn, sentences_of

LABEL = "five_x"


def chests(count=60):
    dataset = FakeDataset(count // 4 + 1)
    labels = [{LABEL: FIVE[i % 5]} if i < count else {} for i in range(len(dataset))]
    dataset.index["labels"] = [json.dumps(own) for own in labels]
    return dataset


def test_precision_is_the_share_of_the_first_k_of_the_class():
    dataset, model = chests(), Words()
    result = class_retrieval(
        model, dataset, label=LABEL, texts="chexpert", per_class=12, ks=(1, 2, 5, 10), resamples=20
    )
    gallery = result.tables["texts"]
    assert gallery["class"].value_counts().to_dict() == dict.fromkeys(FIVE, 12)
    images = model.embed_image(np.stack(dataset.images))[:60].astype(np.float64)
    similarity = images @ model.embed_text(gallery["text"]).astype(np.float64).T
    order = np.argsort(-similarity, axis=1)
    right = gallery["class"].to_numpy()[order] == np.array([FIVE[i % 5] for i in range(60)])[:, None]
    for k in (1, 2, 5, 10):
        entry = result.metrics[f"{LABEL}/precision@{k}"]
        assert entry["value"] == pytest.approx(right[:, :k].mean()) and entry["n"] == 60
        assert entry["low"] < entry["value"] < entry["high"]
        by_class = result.tables["classes"].set_index("class")[f"precision@{k}"]
        assert by_class.mean() == pytest.approx(right[:, :k].mean()), "as many of each class"
    assert result.metrics[f"{LABEL}/precision_chance"]["value"] == pytest.approx(0.2)


def test_a_model_that_sees_nothing_scores_chance_and_a_class_may_have_fewer_texts():
    result = class_retrieval(FakeModel(), chests(), label=LABEL, texts="chexpert", resamples=5)
    assert result.tables["classes"].set_index("class")["texts"].to_dict() == dict(zip(FIVE, (200, 15, 192, 18, 54)))
    chance = result.metrics[f"{LABEL}/precision_chance"]["value"]
    assert chance == pytest.approx(0.2) and result.metrics[f"{LABEL}/precision@5"]["value"] == pytest.approx(chance)


def test_sentences_of_reports_that_affirm_one_class_alone(monkeypatch, tmp_path):
    texts = [
        "Mild edema. No effusion. Atelectasis and edema.",
        "mild edema",
        "Possible edema. Cardiomegaly.",
        "Mild edema.",
    ]
    rows = [dict(texts=[text], split="train" if i == 3 else "test") for i, text in enumerate([*texts, "A fracture."])]
    rows[4]["texts"] = ["Consolidation."]
    gallery = sentences_of(FakeReports(rows), "test", list(FIVE))
    assert dict(zip(gallery.texts, gallery.classes)) == {
        "Mild edema.": "edema",
        "mild edema": "edema",
        "Cardiomegaly.": "cardiomegaly",
        "Consolidation.": "consolidation",
    }
    assert len(drawn(gallery, ["edema", "cardiomegaly"], 1).texts) == 2
    with pytest.raises(UserError, match="have no text of the class 'atelectasis'"):
        drawn(gallery, list(FIVE), 1)
    monkeypatch.setattr(Dataset, "open", classmethod(lambda cls, path: FakeReports(rows)))
    dataset = chests()
    dataset.index["labels"] = [json.dumps({LABEL: ("edema", "cardiomegaly")[i % 2]}) for i in range(len(dataset))]
    result = class_retrieval(Words(), dataset, label=LABEL, texts=str(tmp_path), ks=(1,), resamples=5)
    assert set(result.tables["texts"]["class"]) == {"edema", "cardiomegaly"}, "of the classes that images have"
    assert "split test, that affirm one of the classes alone" in result.protocol


def test_what_cannot_be_retrieved_is_explained():
    for options, said in (
        (dict(label=LABEL, texts="chexpert", ks=(0,)), "ks from 1 on"),
        (dict(label=LABEL, texts="mammo_clip"), "has no classes under 'five_x', and there is no data set folder"),
    ):
        with pytest.raises(UserError, match=said):
            class_retrieval(FakeModel(), chests(), **options)
    nothing = class_retrieval(FakeModel(), chests(), label="six", texts="chexpert").metrics
    assert nothing["six/precision@1"]["reason"] == "no image has this label"
