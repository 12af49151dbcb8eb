"""Vectors of a data set in the background: all of them once, the nearest first, and who waits goes before."""

import threading

import numpy as np
import pytest
from fakes import FakeModel
from small_set import PROMPTS, dataset

from mammoclip_jax.viewer import survey as module
from mammoclip_jax.viewer.reader import Reader
from mammoclip_jax.viewer.survey import Survey


@pytest.fixture
def survey():
    made = Survey(Reader(FakeModel(), "one", PROMPTS), dataset())
    yield made
    made.stop()


def test_all_images_and_reports_are_done_once(survey):
    assert survey.progress() == {"begun": False, "images": 0, "of_images": 24, "reports": 0, "error": ""} | {
        "of_reports": len(survey.texts)
    }
    survey.start()
    survey.start()
    survey.wait()
    assert survey.there.all() and survey.texts_there == len(survey.texts) and not survey.error
    assert sum(survey.reader.model.calls) == 24
    expected = FakeModel().embed_image(np.stack(survey.dataset.images))
    np.testing.assert_allclose(survey.vectors, expected, atol=1e-6)
    assert not np.isnan(survey.scores["mass"]).any()


def test_the_nearest_come_first(survey):
    survey.start()
    survey.wait()
    own, groups = 5, np.arange(24) // 4
    near = survey.nearest(survey.vectors[own], groups == 1, count=3, groups=groups)
    cosines = np.where(groups == 1, -9, survey.vectors @ survey.vectors[own])
    best = sorted({g: cosines[groups == g].max() for g in range(6) if g != 1}.items(), key=lambda pair: -pair[1])
    assert groups[near.place].tolist() == [g for g, _ in best[:3]]
    np.testing.assert_allclose(near.cosine, [c for _, c in best[:3]], rtol=1e-6)
    (words,) = survey.reader.phrases(["no mass here"])
    texts = survey.nearest_texts(words, count=1)
    assert survey.texts[texts.place[0]].startswith("No")
    assert survey.share_below(2.0, words) == 1 and survey.share_below(-2.0, words) == 0


def test_before_the_first_there_is_nothing_near(survey):
    vector = np.array([1, 0], np.float32)
    assert len(survey.nearest(vector, np.zeros(24, bool)).place) == 0 == len(survey.nearest_texts(vector).place)
    assert survey.share_below(0.5, vector) is None


def test_who_waits_goes_before(survey, monkeypatch):
    """With the turn taken, the survey stands; it goes on behind the one who waited."""
    monkeypatch.setattr(module, "CHUNK", 4)
    order, entered = [], threading.Event()
    plain = survey.reader.vectors

    def slow(images):
        order.append("survey")
        entered.set()
        if len(order) == 1:
            while not survey.reader._waiting:
                pass
        return plain(images)

    survey.reader.vectors = slow
    survey.start()
    entered.wait()
    with survey.reader.first():
        order.append("person")
    survey.wait()
    assert order[:3] == ["survey", "person", "survey"] and survey.there.all()


def test_vectors_on_disk_are_not_computed_again(tmp_path):
    model = FakeModel()
    model.fingerprint = lambda: "f00"
    for calls in (24, 24):
        survey = Survey(Reader(model, "one", PROMPTS), dataset(), tmp_path)
        survey.start()
        survey.wait()
        assert survey.there.all() and sum(model.calls) == calls and not survey.error


def test_an_error_is_told(survey):
    survey.reader.vectors = lambda images: 1 / 0
    survey.start()
    survey.wait()
    assert survey.progress()["error"] == "ZeroDivisionError: division by zero"
