"""Several models as one: means and spread by hand, members that see images of their own, and those that do not agree."""

import numpy as np
import pytest
from toys import Toy, breasts

from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.ensemble import Ensemble
from mammoclip_jax.inference.exam import predict
from mammoclip_jax.inference.looking import looking
from mammoclip_jax.inference.looks import Looks, looks


def three(**options):
    return [Toy(name, gain, **options) for name, gain in (("a", 1.0), ("b", 0.8), ("c", 0.3))]


def test_scores_are_means_with_the_standard_deviation_beside_them():
    images, members = breasts(), three()
    model = Ensemble(members)
    single = np.stack([member.classify(images) for member in members])
    np.testing.assert_allclose(model.classify(images), single.sum(axis=0) / 3, rtol=1e-6)
    found = model.found(images, lambda one, x: dict(zip(one.labels, one.classify(x).T)))
    for k, label in enumerate(model.labels):
        deviations = single[:, :, k] - single[:, :, k].mean(axis=0)
        np.testing.assert_allclose(found.spread[label], np.sqrt((deviations**2).sum(axis=0) / 2), atol=1e-6)
        np.testing.assert_allclose(found.scores[label], single[:, :, k].mean(axis=0), rtol=1e-6)
    assert model.fingerprint() == Ensemble(members[::-1]).fingerprint() != Ensemble(members[:2]).fingerprint()
    assert not found.window and model.provenance["licences"] == [{"title": "CC0"}]


def test_cosines_of_dual_encoders_are_means_and_so_are_maps():
    images, members = breasts(), three(kind="dual_encoder", labels=())
    model = Ensemble(members)
    cosines = np.mean([m.embed_image(images) @ m.embed_text(["a mass", "left"]).T for m in members], axis=0)
    np.testing.assert_allclose(model.embed_image(images) @ model.embed_text(["a mass", "left"]).T, cosines, atol=1e-6)
    heats = np.mean([m.saliency(images, m.embed_text(["left"] * 5)) for m in members], axis=0)
    found = model.saliency(images, ["left"] * 5)
    np.testing.assert_allclose(found, heats / heats.max(axis=(1, 2), keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(model.saliency(images, model.text_directions(["left"] * 5)), found, rtol=1e-5)


def test_a_box_scores_the_mean_over_the_detectors_where_one_that_misses_it_says_0():
    image = np.full((1, 16, 12), 60, np.uint8)
    image[0, 4:8, 6:9] = 255
    gains = (1.0, 0.8, 0.05)  # the last is below its threshold
    found = Ensemble([Toy(str(g), g, kind="detector") for g in gains]).detect(image)
    assert found.valid.sum() == 1 and found.scores[0, 0] == pytest.approx((1.0 + 0.8) * (0.5 + 6 / 40) / 3)
    np.testing.assert_allclose(found.boxes[0, 0], [6, 4, 9, 8])


def test_members_with_windows_name_the_window_of_the_one_that_is_surest():
    images = np.maximum(breasts(2, (32, 24)), 60)
    members = [looking(member, looks(windows=2.0)) for member in three()]
    model = looking(Ensemble(three()), looks(windows=2.0))
    assert model.looks == Looks(False, 2.0, "max") and model.preprocessing["height"] == 32

    def by_label(one, x):
        return dict(zip(one.labels, one.classify(x).T))

    surest = members[0].found(images, by_label)  # its gain is the highest
    np.testing.assert_array_equal(model.found(images, by_label).window["calcification"], surest.window["calcification"])


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate.generate(out, 1, Parameters(height=160, width=128))
    (folder,) = (out / "exams").iterdir()
    return folder


def test_members_that_prepare_images_differently_each_render_the_files(exam, tmp_path):
    members = [Toy("small", 1.0, (48, 32)), Toy("large", 0.7, (96, 64))]
    model = Ensemble(members)
    found = predict(model, exam, tmp_path / "out")
    alone = [predict(member, exam)["exams"][0] for member in members]
    for i, view in enumerate(found["exams"][0]["views"]):
        for label in model.labels:
            values = [own["views"][i]["scores"][label] for own in alone]
            assert view["scores"][label] == pytest.approx(np.mean(values), abs=1e-6)
            assert view["spread"][label] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert (tmp_path / "out" / view["overlays"]["mass"]).is_file()
    mean = np.mean([own["scores"]["mass"]["mean"] for own in alone])
    assert found["exams"][0]["scores"]["mass"]["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["options"]["models"] == [{"step": 5, "fingerprint": name} for name in ("small", "large")]
    assert "the mean of 2 models" in found["aggregation"]["view"]
    files = sorted(exam.glob("*.dcm"))
    images = model.read_images(files)
    assert [part.shape for part in images] == [(4, 48, 32), (4, 96, 64)]
    np.testing.assert_allclose(
        model.classify(images), (members[0].classify(images[0]) + members[1].classify(images[1])) / 2
    )
    with pytest.raises(UserError, match="each needs an array of its own"):
        model.classify(images[0])


def test_models_that_do_not_agree_are_no_ensemble():
    other = Toy("o", labels=("density", "mass"))
    breast = Toy("b")
    breast.config.task.unit = "breast"
    for members, said in (
        ([Toy("a")], "two models or more"),
        ([Toy("a"), Toy("a")], "named twice"),
        ([Toy("a"), other], "labels of <a> is \\('mass', 'calcification'\\), of <o>"),
        ([Toy("a"), Toy("d", kind="detector")], "the kind of"),
        ([Toy("a"), breast], "unit of what is scored"),
        ([Toy("a"), looking(Toy("m"), looks(mirror=True))], "the looks of"),
    ):
        with pytest.raises(UserError, match=said):
            Ensemble(members)


def test_names_with_commas_are_several_models(tmp_path):
    assert loading.listed("runs/a, runs/b,") == ["runs/a", "runs/b"] and loading.listed(["a", "b"]) == ["a", "b"]
    (tmp_path / "a,b").mkdir()
    assert loading.listed(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    with pytest.raises(UserError, match="list of models is empty"):
        loading.load([])
