"""A model in use: batches and padding change nothing, and the maps are what their formulas say."""

import importlib.metadata
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_opening as published

import mammoclip_jax
from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.heads import Classifier
from mammoclip_jax.inference.looking import looking
from mammoclip_jax.inference.looks import looks
from mammoclip_jax.inference.mirrored import Mirrored
from mammoclip_jax.training import augment
from mammoclip_jax.training.step import init_variables
from mammoclip_jax.weights import opening

HEIGHT, WIDTH = 96, 64


@pytest.fixture(scope="module")
def meta():
    config = defaults()
    config.image.channels = 1
    config.data.text_length = 16
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.model.dim = 8
    words = tokenizer.Tokenize(tokenizer.train_wordpiece(["a mass in the left breast", "no mass"], 200))
    return {
        "config": config.to_dict(),
        "tokenizer": words.to_json(),
        "provenance": {},
        "preprocessing": {"height": HEIGHT, "width": WIDTH},
    }


@pytest.fixture(scope="module")
def variables(meta):
    vocabulary = tokenizer.Tokenize.from_json(meta["tokenizer"]).vocab_size
    model = models.build(meta["config"]["model"], vocabulary)
    return jax.jit(lambda key: init_variables(model, key, (HEIGHT, WIDTH, 1), 16))(jax.random.key(0))


@pytest.fixture(scope="module")
def model(meta, variables):
    return DualEncoder(variables, meta, 7, batch_size=8)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (11, HEIGHT, WIDTH), dtype=np.uint8)


def test_batch_size_and_padding_change_nothing(model, meta, variables, images):
    vectors = model.embed_image(images)
    assert vectors.shape == (11, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    # 1e-5: other shapes of the same products add up in another order.
    other = DualEncoder(variables, meta, 7, batch_size=16)
    np.testing.assert_allclose(other.embed_image(images), vectors, atol=1e-5)
    np.testing.assert_allclose(model.embed_image(images[3:4]), vectors[3:4], atol=1e-5)


def test_similarity_is_the_cosine(model, images):
    texts = model.embed_text(["a mass", "no mass in the left breast"])
    vectors = model.embed_image(images)
    np.testing.assert_allclose(model.similarity(vectors, texts)[4, 1], float(vectors[4] @ texts[1]), rtol=1e-5)


def test_new_variables_are_used(model, variables, images):
    before = model.embed_image(images[:2])
    model.set_variables(jax.tree.map(lambda x: x * 1.1, variables), 8)
    assert model.step == 8 and np.abs(model.embed_image(images[:2]) - before).max() > 1e-4
    model.set_variables(variables, 7)
    np.testing.assert_array_equal(model.embed_image(images[:2]), before)


@pytest.mark.parametrize("method", ["grad_cam", pytest.param("hires_cam", marks=pytest.mark.slow)])
def test_map_equals_its_formula_with_finite_differences(model, meta, variables, images, method):
    """The gradient by the stage map, cell by cell in float64, then the formula; before resampling to the image."""
    stage = "stage7"
    towards = np.asarray(model.embed_text(["a mass"])[0], np.float64)
    with jax.enable_x64(True):
        module = models.build(
            meta["config"]["model"] | {"dtype": "float64"}, tokenizer.Tokenize.from_json(meta["tokenizer"]).vocab_size
        )
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        pixels = np.asarray(augment.eval_images(images[:1], augment.preprocess_options(model.config)), np.float64)

        def score(offset):
            vectors, stages = module.apply(wide, pixels, train=False, offsets={stage: offset}, method="encode_image")
            return vectors[0] @ towards, stages[stage]

        shape = jax.eval_shape(score, jnp.zeros((), jnp.float64))[1].shape
        steps = 1e-4 * np.eye(np.prod(shape)).reshape(-1, *shape)
        offsets = np.concatenate([steps, -steps, np.zeros((1, *shape))])
        scores, stages = jax.device_get(jax.jit(jax.vmap(score))(offsets))
    features = stages[-1][0]
    gradient = (scores[: len(steps)] - scores[len(steps) : -1]).reshape(features.shape) / 2e-4
    weights = gradient.mean((0, 1), keepdims=True) if method == "grad_cam" else gradient
    expected = np.maximum((weights * features).sum(-1), 0)
    stride, centre = models.build(meta["config"]["model"], 50).image_encoder.stage_grids(HEIGHT, WIDTH)[stage]
    assert stride == 32 and features.shape[:2] == (3, 2)
    assert_at_centres(model.saliency(images[:1], ["a mass"], stage=stage, method=method)[0], expected, stride, centre)


def assert_at_centres(found, expected, stride, centre):
    """The value of a cell stands at its centre, which lies between pixels: the mean of the four around it."""
    rows, columns = (np.array([int(stride * i + c) for i in range(n)]) for n, c in zip(expected.shape, centre))
    height, width = found.shape
    inside = [(i, j) for i, j in np.ndindex(expected.shape) if rows[i] < height - 1 and columns[j] < width - 1]
    at = np.array([found[rows[i] - 1 : rows[i] + 1, columns[j] - 1 : columns[j] + 1].mean() for i, j in inside])
    cells = np.array([expected[i, j] for i, j in inside])
    assert cells.max() > 0
    np.testing.assert_allclose(at / at.max(), cells / cells.max(), atol=0.05)


def test_a_mirrored_dual_encoder_says_the_mean_of_both_looks(model, images):
    both, texts = Mirrored(model), ["a mass in the left breast", "no mass"]
    other = model.embed_image(images[..., ::-1]) @ model.embed_text(["a mass in the right breast", "no mass"]).T
    expected = (model.similarity(model.embed_image(images), model.embed_text(texts)) + other) / 2
    found = both.similarity(both.embed_image(images), both.embed_text(texts))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert both.fingerprint() == model.fingerprint() and both.key() != model.key()
    heat = both.saliency(images[:1], texts[1:], stage="stage7")
    turned = both.saliency(images[:1, :, ::-1], texts[1:], stage="stage7")  # of a text without sides it is the same
    np.testing.assert_allclose(turned[..., ::-1], heat, atol=1e-5)
    with pytest.raises(AttributeError, match="Mirrored has no 'embed_regions'"):
        both.embed_regions(images, None)


def test_wrong_names_are_explained(model, images):
    with pytest.raises(UserError, match="no stage 'stage77'. Did you mean 'stage7'"):
        model.saliency(images, ["a mass"] * 11, stage="stage77")
    with pytest.raises(UserError, match="no method 'gradcam'"):
        model.saliency(images, ["a mass"] * 11, stage="head", method="gradcam")
    with pytest.raises(UserError, match="is empty"):
        model.embed_text([])


def test_what_is_no_image_or_text_is_refused_before_anything_runs(model, classifier, images, small):
    """Each was embedded, or blackened, without a word, or failed deep inside; `inputs` has all forms."""
    for call, said in (
        (lambda: model.embed_text("mass"), "letter by letter"),
        (lambda: model.embed_sentences("mass"), "needs a head of kind local"),
        (lambda: model.embed_image(images[:, :48]), "96 x 64 pixels .* and these 48 x 64"),
        (lambda: model.embed_image(images.astype(np.int64)), r"images.astype\(np.uint8\)"),
        (lambda: model.image_features(images[0]), r"images\[None\]"),
        (lambda: model.saliency(images[:4], "mass"), "one of the texts for each image"),
        (lambda: model.saliency(images[:4], ["mass"]), "4 images and 1 texts"),
        (lambda: model.region_means(images / 255, np.zeros((11, 1, 4))), "normalisation is the model's part"),
        (lambda: classifier.classify(small[..., None]), "images are grey"),
        (lambda: classifier.read_images(["missing.dcm"]), "missing.dcm is not there"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_a_model_says_what_it_is(model, classifier):
    assert repr(model) == "<DualEncoder 'efficientnet'; step 7; images 96x64>"
    assert "Classifier" in repr(classifier) and ", ".join(classifier.labels) in repr(classifier)
    assert mammoclip_jax.__version__ == importlib.metadata.version("mammoclip_jax")
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        mammoclip_jax.loud


def test_stages_are_in_order(model):
    assert model.stages[0] == "stem" and model.stages[-1] == "head"
    assert model.stages[1:-1] == tuple(f"stage{i}" for i in range(1, 8))


# --- published files --------------------------------------------------------------------------------------------------

LABELS = ("mass", "calcification")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A published classifier, opened from its file as a user does, for small images."""
    file = published.classifier_file(tmp_path_factory.mktemp("classifier") / "b0_best.pth")
    with pytest.MonkeyPatch.context() as patch:
        published.shrink(patch)
        variables, meta, *_ = opening.import_weights(file, labels=LABELS)
    return Classifier(variables, meta, meta["step"], batch_size=8)


@pytest.fixture(scope="module")
def small():
    shape = (3, published.HEIGHT, published.WIDTH)
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def features_of(classifier, images):
    """What its head sees."""
    pixels = augment.eval_images(images, augment.preprocess_options(classifier.config))
    module = models.classifier(classifier.config.model)
    features = jax.jit(lambda variables, x: module.apply(variables, x, method="features")[0])
    return np.asarray(features(classifier._variables, pixels), np.float64)


def head_of(file_classes=2):
    state = published.classifier_state(file_classes)
    return [state[f"classifier.classification_head.{kind}"].astype(np.float64) for kind in ("weight", "bias")]


def test_a_classifier_gives_the_sigmoid_of_its_head(classifier, small):
    weight, bias = head_of()
    expected = 1 / (1 + np.exp(-(features_of(classifier, small) @ weight.T + bias)))
    found = classifier.classify(small)
    assert classifier.labels == LABELS and classifier.step == 3 and found.shape == (3, 2)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 products against float64


def test_classes_that_exclude_each_other_sum_to_one(tmp_path, monkeypatch, small):
    published.shrink(monkeypatch)
    model = loading.load(published.classifier_file(tmp_path / "density.pth", 4), batch_size=8)
    assert model.labels == ("density_A", "density_B", "density_C", "density_D")
    found = model.classify(small)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    weight, bias = head_of(4)
    logits = features_of(model, small) @ weight.T + bias
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


def test_a_classifier_looks_at_windows_of_a_larger_canvas(classifier, small):
    height, width = small.shape[1:]
    canvas = np.concatenate([small[:2]] * 2, axis=1)  # twice as high: windows at 0, a half and 1
    canvas = np.concatenate([canvas] * 2, axis=2)
    model = looking(classifier, looks(windows=2.0, pool="mean"))
    parts = [canvas[:, y : y + height, x : x + width] for y in (0, height // 2, height) for x in (0, width // 2, width)]
    expected = np.mean([classifier.classify(part) for part in parts], axis=0)
    np.testing.assert_allclose(model.classify(canvas), expected, atol=1e-5)
    with pytest.raises(UserError, match="nothing is stored with this model"):
        model.classify(canvas, calibrated=True)


def test_a_label_or_its_weights_give_the_same_map(classifier, small):
    maps = classifier.saliency(small, ["mass", "calcification", "mass"], stage="stage5")
    assert maps.shape == small.shape and maps.max() == 1 and maps.min() >= 0
    np.testing.assert_array_equal(maps, classifier.saliency(small, np.eye(2)[[0, 1, 0]], stage="stage5"))
    other = classifier.saliency(small, ["calcification"] * 3, stage="stage5")
    np.testing.assert_array_equal(other[1], maps[1])
    assert abs(other[0] - maps[0]).max() > 1e-2
    with pytest.raises(UserError, match="no label 'masss'. Did you mean 'mass'.*calcification, mass"):
        classifier.saliency(small, ["masss"] * 3, stage="stage5")


def test_the_map_of_a_label_is_its_weights_on_the_last_stage(classifier, small):
    """CAM (Zhou et al. 2016, arXiv:1512.04150), since pooling is a mean there."""
    pixels = augment.eval_images(small, augment.preprocess_options(classifier.config))
    module = models.classifier(classifier.config.model)
    maps = np.asarray(jax.jit(module.apply)(classifier._variables, pixels)[1]["head"], np.float64)
    grid = module.image_encoder.stage_grids(published.HEIGHT, published.WIDTH)["head"]
    found = classifier.saliency(small, ["mass", "calcification", "mass"], stage="head")
    for i, label in enumerate((0, 1, 0)):
        assert_at_centres(found[i], np.maximum(maps[i] @ head_of()[0][label], 0), *grid)


def test_what_embeds_nothing_is_refused_with_what_it_is_for(monkeypatch):
    monkeypatch.setattr(loading, "open_weights", lambda name: ({}, {"kind": "text_encoder"}))
    with pytest.raises(UserError, match=r"a.pth holds a single encoder \(text_encoder\).*config.warm_start"):
        loading.load("a.pth")


def test_a_model_folder_is_the_model(model, meta, variables, images, tmp_path):
    whole = meta | {"kind": "dual_encoder", "step": 7}
    published.folder.write(tmp_path / "m", jax.device_get(variables), whole, card="# A card")
    again = loading.load(tmp_path / "m", batch_size=8)
    assert again.step == 7 and again.config.model.text.hidden_size == 16 and again.config.data.text_length == 16
    np.testing.assert_array_equal(again.embed_image(images), model.embed_image(images))
    np.testing.assert_array_equal(again.embed_text(["a mass"]), model.embed_text(["a mass"]))


def test_token_ids_embed_as_their_text(model, meta):
    ids, mask = tokenizer.Tokenize.from_json(meta["tokenizer"]).encode(["a mass", "no mass in the left breast"], 16)
    expected = model.embed_text(["a mass", "no mass in the left breast"])
    np.testing.assert_array_equal(model.embed_tokens(ids, mask), expected)
    longer = [np.pad(array, ((0, 0), (0, 48))) for array in (ids, mask)]
    np.testing.assert_array_equal(model.embed_tokens(*longer), expected)
    with pytest.raises(UserError, match="is empty"):
        model.embed_tokens(ids[:0], mask[:0])
    with pytest.raises(UserError, match="exceeds this BERT's 512 positions"):
        model.embed_tokens(np.ones((1, 600), int), np.ones((1, 600), bool))


def test_a_short_text_does_not_cut_a_long_one(model):
    ids = np.random.default_rng(0).integers(5, 50, (2, 40))
    mask = np.arange(40) < np.array([[3], [40]])
    np.testing.assert_allclose(model.embed_tokens(ids, mask)[1:], model.embed_tokens(ids[1:], mask[1:]), atol=1e-5)


def test_files_are_read_as_the_model_was_trained(classifier, tmp_path):
    preprocessing = Preprocessing.from_dict(classifier.preprocessing)
    assert (preprocessing.intensity, preprocessing.geometry) == ("published", "stretch")
    for name, radius in (("a", 60), ("b", 90)):
        picture = np.zeros((200, 160), np.uint8)
        cv2.circle(picture, (0, 100), radius, 200, -1)
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    files = [tmp_path / "a.png", str(tmp_path / "b.png")]
    found = classifier.read_images(files)
    assert found.shape == (2, published.HEIGHT, published.WIDTH) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[1], render(tmp_path / "b.png", preprocessing).image)
    assert classifier.classify(found).shape == (2, 2)
    (tmp_path / "c.dcm").write_text("no image")
    with pytest.raises(dicom.Unreadable):
        classifier.read_images([*files, tmp_path / "c.dcm"])
    with pytest.raises(UserError, match="list of files is empty"):
        classifier.read_images([])


def pictures(folder):
    """Two files in it."""
    for name, grey in (("a", 120), ("b", 220)):
        picture = np.zeros((200, 160), np.uint8)
        cv2.circle(picture, (0, 100), 90, grey, -1)
        cv2.circle(picture, (40, 100), 15, 250, -1)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return [folder / "a.png", folder / "b.png"]


def test_an_exam_by_prompts(model, tmp_path):
    images = model.read_images(pictures(tmp_path))
    cosines = model.similarity(model.embed_image(images), model.embed_text(["a mass", "no mass"]))
    found = model.predict(tmp_path, prompts={"mass": {"positive": "a mass", "negative": "no mass"}})
    scores = [view["scores"]["mass"] for view in found["exams"][0]["views"]]
    np.testing.assert_allclose(scores, cosines[:, 0] - cosines[:, 1], atol=1e-6)
    assert (found["step"], found["problems"]) == (7, [])


def test_views_of_a_breast_share_a_scale_where_the_model_learnt_so(model, tmp_path, monkeypatch):
    """Files by themselves, and an exam's."""
    shared = model.preprocessing | {"scale": "breast", "upright": True}
    files = []
    for name, radius in (("p1_L_CC", 60), ("p1_L_MLO", 90), ("p1_R_CC", 60)):
        picture = np.zeros((220, 160), np.uint8)
        cv2.circle(picture, (0 if "L" in name[:4] else 159, 110), radius, 200, -1)
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
        files.append(tmp_path / f"{name}.png")
    apart = model.read_images(files)
    monkeypatch.setattr(model, "preprocessing", shared)
    images = model.read_images(files)
    assert (images[0] != apart[0]).any() and np.array_equal(images[1:], apart[1:])
    prompts = {"mass": {"positive": "a mass", "negative": "no mass"}}
    views = model.predict(tmp_path, prompts=prompts)["exams"][0]["views"]
    scales = [view["transform"]["scale"][1] for view in views]
    assert scales[0] == pytest.approx(scales[1], rel=0.05) and scales[2] > 1.2 * scales[0]
    assert "scale_alone" in views[2]["notes"] and "no_pectoral_line" in views[1]["notes"]
    assert views[0]["transform"] == json.loads(
        render(files[0], Preprocessing.from_dict(shared), "L", "CC", [Source(files[1], "L", "MLO")]).transform.to_json()
    )


def test_an_exam_by_labels(classifier, tmp_path):
    """The whole way of a user: a folder of files in, probabilities by label and overlays out."""
    pictures(tmp_path)
    expected = classifier.classify(classifier.read_images([tmp_path / "a.png", tmp_path / "b.png"]))
    found = classifier.predict(tmp_path, tmp_path / "out", stage="stage5")
    views = found["exams"][0]["views"]
    for view, row in zip(views, expected, strict=True):
        assert view["scores"] == pytest.approx(dict(zip(LABELS, row.tolist())), abs=1e-6)
        assert set(view["overlays"]) == set(LABELS)
        assert all((tmp_path / "out" / path).is_file() for path in view["overlays"].values())
