"""A run that starts from other weights: from a published file or a model folder into its first state, and on record.

What is loaded and adapted is tested in weights/test_warm_start.py; here the sources are real ones.
"""

import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import test_opening as published
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models, run
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.training.step import init_variables
from mammoclip_jax.weights import card, opening, torch_writer

SMALLER = {"width": 0.25, "depth": 0.3}
PREPROCESSING = {"geometry": "fit", "height": published.HEIGHT, "width": published.WIDTH, "intensity": "voi", "bits": 8}


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    published.shrink(monkeypatch)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    words = published.tokenizer_file(place / "tokenizer.json")
    file = published.published_file(place / "b0.tar", published.published_state())
    return opening.import_weights(file, tokenizer=str(words), origin="shawn24/Mammo-CLIP", licence="CC BY-NC-SA 4.0")


@pytest.fixture
def parent(imported, tmp_path):
    return published.model_folder(tmp_path / "parent", imported)


def config_from(size={}, dim=8, **entries):
    """A run with the published network of the small files, or one of other `size`, and other projections."""
    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", **size)
    config.model.text.update(name="bert", **published.TEXT["bert"])
    config.model.dim = dim
    config.losses.mammo_clip = dict(weight=1.0)
    config.data.text_length = 16
    config.warm_start.update(entries)
    return config


def variables_of(config, make):
    """`make(path, shape)` in the places of that run's variables."""
    model = models.build(config.model, published.ROWS)
    image = published.HEIGHT, published.WIDTH, 3
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), image, config.data.text_length))
    return unflatten_dict(
        {path: make(path, leaf.shape) for path, leaf in flatten_dict(shapes, sep="/").items()}, sep="/"
    )


@pytest.fixture(scope="module")
def fresh():
    return variables_of(config_from(), lambda path, shape: np.zeros(shape, np.float32))


def meta_of(config):
    """As `pretrain` makes it."""
    return {
        "preprocessing": PREPROCESSING,
        "config": json.loads(config.to_json_best_effort()),
        "provenance": {"data": {"phantom": {"licence": "CC0-1.0", "real": False}}},
    }


def same_towers(found, variables, *names):
    for collection, tree in found.items():
        for name in names:
            if name in variables[collection]:
                published.assert_same(jax.device_get(tree[name]), variables[collection][name])


@pytest.mark.slow
def test_both_towers_of_a_model_folder_begin_the_run(imported, tmp_path, caplog):
    """With the optimiser and all that `pretrain` puts around the variables; small, since it is compiled."""
    caplog.set_level(logging.INFO)
    theirs, random = config_from(SMALLER, dim=16), np.random.default_rng(0)
    variables = variables_of(theirs, lambda path, shape: published.random_array(path, shape, random))
    model = json.loads(theirs.model.to_json())
    parent = published.model_folder(
        tmp_path / "parent",
        imported._replace(
            variables=variables, meta=imported.meta | {"config": imported.meta["config"] | {"model": model}}
        ),
    )
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = config_from(SMALLER, parent={"weights": str(parent), "load": ("image_encoder/", "text_encoder/")})
    meta = meta_of(config)
    trainer = make_trainer(config, published.ROWS, PREPROCESSING | {"bits": 8}, make_mesh({}, jax.devices()[:1]))
    state = trainer.init(lambda fresh: run.start_variables(fresh, config, workdir, meta))
    same_towers({"params": state.params, "batch_stats": state.batch_stats}, variables, "image_encoder", "text_encoder")
    assert state.params["image_projection"]["dense"]["kernel"].shape[1] == 8
    noted = json.loads((workdir / "warm_start.json").read_text())
    report = noted["reports"]["parent"]
    assert set(noted["config"]) == {"parent"} and "image_encoder/stem/kernel" in report["loaded"]
    assert "image_projection/dense/kernel" in report["fresh"]
    assert f"warm start from {parent}" in caplog.text
    # The source's own images were prepared otherwise, which a run has to say.
    assert "prepared otherwise" in caplog.text and "intensity 'published' -> 'voi'" in caplog.text

    provenance = meta["provenance"]
    (origin,) = provenance["parents"]
    assert (origin["name"], origin["origin"], origin["kind"], origin["step"]) == (
        "parent",
        "shawn24/Mammo-CLIP",
        "dual_encoder",
        7,
    )
    (entry,) = provenance["licences"]
    assert entry["licence"] == "cc-by-nc-sa-4.0" and entry["stated"] is True
    assert "phantom" in provenance["data"] and noted["provenance"]["parents"] == provenance["parents"]
    shown = card.render(meta | {"kind": "dual_encoder", "step": 0, "tokenizer": None}, parameters={})
    assert "shawn24/Mammo-CLIP" in shown and "CC BY-NC-SA 4.0" in shown


def test_a_published_file_and_a_tower_of_its_own(fresh, imported, tmp_path):
    """The image tower from a single encoder's file, the text tower from a checkpoint; all without an import before."""
    tower = {
        key.removeprefix("image_encoder."): 2 * value
        for key, value in published.published_state().items()
        if key.startswith("image_encoder.")
    }
    torch_writer.write(tmp_path / "tower.pth", tower)
    published.published_file(tmp_path / "b0.tar", published.published_state())
    config = config_from(
        image={"weights": str(tmp_path / "tower.pth")},
        text={"weights": str(tmp_path / "b0.tar"), "load": "text_encoder/"},
    )
    meta = meta_of(config)
    variables = run.start_variables(fresh, config, tmp_path, meta)
    same_towers(variables, imported.variables, "text_encoder")
    stem = variables["params"]["image_encoder"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem, 2 * imported.variables["params"]["image_encoder"]["stem"]["kernel"])
    kinds = {parent["name"]: parent["kind"] for parent in meta["provenance"]["parents"]}
    assert kinds == {"image": "image_encoder", "text": "dual_encoder"}
    assert {entry["licence"] for entry in meta["provenance"]["licences"]} == {"unknown", "mammo_clip"}


def test_a_resumed_run_reads_nothing_again(fresh, parent, tmp_path):
    config = config_from(parent={"weights": str(parent), "load": ("image_encoder/",)})
    begun, resumed = meta_of(config), meta_of(config)
    run.start_variables(fresh, config, tmp_path, begun)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    parent.rename(parent.with_name("moved"))
    assert run.start_variables(fresh, config, tmp_path, resumed) is fresh
    assert resumed["provenance"] == json.loads(json.dumps(begun["provenance"]))
    (tmp_path / "checkpoints" / "5").rmdir()  # nothing was saved yet: it begins anew, and misses the weights
    with pytest.raises(UserError, match="parent: there is no such file or folder"):
        run.start_variables(fresh, config, tmp_path, resumed)


def test_terms_are_not_lost_with_the_note(fresh, tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    config = config_from(parent={"weights": "somewhere"})
    with pytest.raises(UserError, match="warm_start.json is missing: .*which terms bind it"):
        run.start_variables(fresh, config, tmp_path, meta_of(config))
    config = config_from(parent={"weights": ""})  # declared by the config, never used
    assert run.start_variables(fresh, config, tmp_path, meta_of(config)) is fresh


def test_without_an_entry_nothing_is_read_or_noted(tmp_path):
    fresh, meta = {"params": {}}, {"provenance": {"data": {}}}
    assert run.start_variables(fresh, config_from(), tmp_path, meta, open_weights=None) is fresh
    assert meta == {"provenance": {"data": {}}} and not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_stop_the_run_before_it_begins(fresh, imported, parent, tmp_path):
    config = config_from(parent={"weights": str(parent)})  # 16 dimensions there, 8 here
    meta = meta_of(config)
    with pytest.raises(UserError, match="projection/dense/.*8.*16"):
        run.start_variables(fresh, config, tmp_path, meta)
    assert not (tmp_path / "warm_start.json").exists() and list(meta["provenance"]) == ["data"]
    config = config_from(parent={"weights": str(parent), "skip": (".*_projection/",)})
    variables = run.start_variables(fresh, config, tmp_path, meta)
    assert variables["params"]["logit_scale"] == published.LOGIT_SCALE
    same_towers(variables, imported.variables, "image_encoder", "text_encoder")
    assert not variables["params"]["image_projection"]["dense"]["kernel"].any()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(validation_split="vall"),
            "validation_evaluators has nothing .* in split vall; there are test, train. Set .*validation_split",
        ),
        (dict(split="val"), "evaluators has nothing .* in split val"),
        (dict(folders=("phantom",)), "Did you mean 'phantoms'"),
    ],
)
def test_an_evaluation_of_nothing_is_found_before_the_training(change, message):
    settings = defaults().evaluate
    settings.update(validation_split="train")
    settings.evaluators.retrieval, settings.validation_evaluators.zero_shot = {}, {}
    datasets = {"phantoms": SimpleNamespace(index={"split": ["train", "test"]})}
    run.check_evaluation(datasets, settings)
    settings.update(change)
    with pytest.raises(UserError, match=message):
        run.check_evaluation(datasets, settings)


def test_a_label_that_a_probe_does_not_find_is_said_before_the_training():
    settings = defaults().evaluate
    settings.validation_split = "train"
    settings.evaluators.probe = dict(evaluator="linear_probe", label="masss", folders=("films",))
    index = pd.DataFrame({"split": ["train", "test"], "labels": ['{"mass": 1}', "{}"]})
    datasets = {name: SimpleNamespace(index=index) for name in ("films", "others")}
    with pytest.raises(UserError, match="no label 'masss'. Did you mean 'mass'"):
        run.check_evaluation(datasets, settings)
    settings.evaluators.probe.label = "mass"
    run.check_evaluation(datasets, settings)


def test_weights_that_are_not_there_are_said_before_data_are_made(tmp_path, parent):
    config = config_from(one={"weights": str(parent)}, two={"weights": ""}, three={"load": ("x",)})
    run.check_weights(config, tmp_path)
    config.warm_start.two.weights = str(tmp_path / "nowhere.pth")
    config.warm_start.three.weights = str(tmp_path)
    with pytest.raises(UserError, match="no finished checkpoint in it(.|\n)*nowhere.pth: there is no such file"):
        run.check_weights(config, tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)  # it goes on from that, and reads none of them
    run.check_weights(config, tmp_path)


def test_a_wrong_folder_is_said_before_others_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "prepare", lambda *arguments, **options: pytest.fail("it was made first"))
    config = defaults()
    config.data.folders.made, config.data.folders.wrong = str(tmp_path / "made"), str(tmp_path / "wrong")
    config.data.prepare.made = dict(source="phantom", root="nowhere")
    with pytest.raises(UserError, match="wrong is no finished data set"):
        run.open_datasets(config, tmp_path)


def test_figures_of_the_validation_come_to_the_console(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    found = [Result("films/zero_shot", "", {"mass/auroc": statistics.entry(0.75, n=9)})]
    monkeypatch.setattr(run, "evaluate", lambda *arguments, announce, **options: found)
    model = SimpleNamespace(step=20, set_variables=lambda variables, step: None)
    evaluation = run.Evaluation(defaults(), {}, {}, make_mesh({}, jax.devices()[:1]))
    evaluation.model = model
    figures = evaluation.on_the_way(SimpleNamespace(variables=lambda: {}, step=20))
    assert figures == {"eval/films/zero_shot/mass/auroc": 0.75}
    assert caplog.messages == ["step 20: films/zero_shot mass/auroc 0.750"]


def test_the_preprocessing_of_folders_is_written_as_older_ones_wrote_it():
    old = {"geometry": "fit", "height": 8, "width": 8, "intensity": "voi", "bits": 8, "crop": "robust", "outside": ""}
    new = old | {"chest_wall": "left", "frames": "refuse", "voi_item": 0}
    folders = [SimpleNamespace(path=name, info={"preprocessing": values}) for name, values in (("a", old), ("b", new))]
    assert run.common_preprocessing({"a": folders[0], "b": folders[1]}) == new
    upright = SimpleNamespace(path="c", info={"preprocessing": new | {"upright": True}})
    assert run.common_preprocessing({"c": upright}) == new | {"upright": True}
    with pytest.raises(UserError, match="upright is False and True"):
        run.common_preprocessing({"a": folders[0], "c": upright})
