"""Published rows beside ours: the values, the configs, and the command from end to end on a few made-up images."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax import reproduce as command
from mammoclip_jax.check import check
from mammoclip_jax.config import defaults
from mammoclip_jax.data.build import build
from mammoclip_jax.data.manifest import SourceTable, frame
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.reproduction import jobs, outcome, published
from mammoclip_jax.training.step import init_variables
from mammoclip_jax.weights import folder

HEIGHT, WIDTH = 64, 48
PREPROCESSING = Preprocessing(geometry="fit", height=HEIGHT, width=WIDTH)
CONFIGS = Path(__file__).parent.parent / "configs" / "reproduce"
QUICK = [
    "evaluate.batch_size=8",
    "train.steps=2",
    "train.warmup_steps=1",
    "train.batch_size=8",
    "train.eval_every=2",
    "train.checkpoint_every=2",
    "augment.affine_probability=0.0",
]


def row_of(name):
    return next(row for row in published.rows() if row.name == name)


def test_every_number_of_the_tables_is_there_once():
    rows = published.rows()
    assert len(rows) == len({row.name for row in rows}) == 4 * 5 * 6 + 2 * 4 * 6 + 4 * 2
    assert {row.task for row in rows} == set(published.TASKS) and all(0 < row.value < 1 for row in rows)
    sums = {}
    for row in rows:
        sums[row.table] = sums.get(row.table, 0) + row.value
    # Column by column, added up from the paper's charts as they were read.
    expected = {
        "rsna_cancer": 2.87 + 3.62 + 3.89 + 4.01 + 4.05 + 4.13,
        "vindr_calcification": 2.53 + 3.21 + 4.40 + 4.37 + 4.42 + 4.77,
        "vindr_mass": 2.02 + 2.78 + 3.57 + 3.63 + 4.14 + 4.10,
        "vindr_density": 2.61 + 3.23 + 3.44 + 3.55 + 3.58 + 3.77,
        "vindr_calcification_boxes": 0.39 + 0.71 + 0.77 + 0.92 + 0.87 + 1.04,
        "vindr_mass_boxes": 1.03 + 1.56 + 1.80 + 1.86 + 1.94 + 1.87,
    }
    assert {table: pytest.approx(sums[table], abs=1e-9) for table in expected} == expected


def test_how_a_number_was_read_is_said():
    assert "poster" in row_of("vindr_mass/zero_shot/b5_embed").reading
    assert "read off the chart" in row_of("vindr_mass/zero_shot/b5").reading
    conflict = row_of("vindr_mass/zero_shot/b5_vindr")
    assert (conflict.value, conflict.other, conflict.other_source) == (0.76, 0.55, "the poster's chart")
    assert "4,095" in conflict.how and row_of("vindr_mass_factor_iou50/factor/b5").task == "localisation"


def test_patterns_choose_rows():
    assert len(published.chosen(["vindr_mass"])) == 30 and len(published.chosen([])) == len(published.rows())
    assert {row.model for row in published.chosen(["*/linear_probe_*/b5"])} == {"b5"}
    with pytest.raises(UserError, match="Did you mean 'vindr_mass'"):
        published.chosen(["vindr_mas"])


@pytest.mark.parametrize(
    "ours, low, high, wanted",
    [
        (0.77, 0.70, 0.80, "agrees"),
        (0.56, 0.5, 0.6, "agrees"),
        (0.70, 0.66, 0.76, "interval reaches it"),
        (0.70, 0.68, 0.72, "below"),
        (0.9, 0.88, 0.92, "above"),
        (0.9, None, None, "above"),
        (None, None, None, "not measured"),
    ],
)
def test_verdicts(ours, low, high, wanted):
    row = row_of("vindr_mass/zero_shot/b5_vindr")
    assert outcome.verdict(row, {"value": ours, "low": low, "high": high}) == wanted


@pytest.mark.parametrize("protocol", ["default", "published"])
def test_every_row_has_a_config_that_can_run(protocol):
    recipes = {row.name: jobs.recipe(row, protocol) for row in published.rows()}
    for recipe in set(recipes.values()):
        config = jobs.read_config(CONFIGS, recipe)
        dataset, evaluator, _ = recipe.metric.split("/", 2)
        assert evaluator in config.evaluate.evaluators and dataset in config.data.folders
        if config.task.kind != "pretrain":
            check(config)
            # What learns without boxes is not chosen by them.
            chosen = "classification" if evaluator == "localisation" else evaluator
            assert config.task.monitor.startswith(f"eval/{dataset}/{chosen}/")
            assert (config.evaluate.validation_split == "test") == (protocol == "published")


def test_the_published_recipes_have_the_published_constants():
    def of(file, argument):
        return jobs.read_config(CONFIGS, jobs.Recipe(file, argument, "", ()))

    mass = of("vindr_classifier", "label=mass,task=linear_probe,fraction=50,protocol=published")
    assert (mass.task.pos_weight, mass.model.frozen, mass.task.encoder) == ("15.5733", ("image",), "train")
    assert (mass.train.lr, mass.train.weight_decay, mass.train.batch_size, mass.train.steps) == (5e-5, 1e-4, 8, 30_000)
    assert of("vindr_classifier", "label=suspicious_calcification,protocol=published").task.pos_weight == "37.2967"
    detector = of("vindr_detector", "label=mass,protocol=published")
    assert detector.model.input_size == (512, 512) and detector.model.stages == ("stage5", "block37", "head")
    assert (detector.task.focal_alpha, detector.task.focal_gamma, detector.train.clip_norm) == (0.25, 2.0, 0.1)
    assert (detector.train.batch_size, detector.train.steps) == (7, 120 * (894 // 7))
    assert of("rsna_classifier", "protocol=published").task.pos_weight == "46.48"


@pytest.mark.parametrize(
    "argument, message",
    [
        ("lable=mass", "Did you mean 'label'"),
        ("label=mas", "Did you mean 'mass'"),
        ("fraction=ten", "is a number"),
        ("fraction=0", "per cent"),
        ("protocol=mine", "Known: default, published"),
        ("encoder=b9", "Known: b2, b5"),
    ],
)
def test_a_wrong_argument_of_a_config_is_explained(argument, message):
    with pytest.raises(UserError, match=message):
        runpy.run_path(str(CONFIGS / "vindr_classifier.py"))["get_config"](argument)


def breast(mass, rng):
    image = np.zeros((128, 96), np.uint8)
    cv2.ellipse(image, (0, 64), (68, 56), 0, -90, 90, 90, -1)
    image[image > 0] += rng.integers(0, 20, image.shape, dtype=np.uint8)[image > 0]
    x, y = map(int, rng.integers((8, 40), (32, 72)))
    if mass:
        image[y : y + 16, x : x + 16] = 240
    return image, [x, y, x + 16, y + 16]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set as `vindr` makes it: 24 studies with a mass in every other, boxes, density, three splits."""
    place, rng, rows = tmp_path_factory.mktemp("vindr"), np.random.default_rng(3), []
    for study in range(24):
        split = "test" if study % 3 == 0 else "val" if study % 3 == 1 else "train"
        for view in ("CC", "MLO"):
            mass = int(study % 2)
            name = f"i{study}{view}"
            image, box = breast(mass, rng)
            cv2.imwrite(str(place / f"{name}.png"), image)
            rows.append(
                {
                    "dataset": "vindr",
                    "patient": f"s{study}",
                    "study": f"s{study}",
                    "image": name,
                    "file": f"{name}.png",
                    "laterality": "L",
                    "view": view,
                    "split": split,
                    "real": False,
                    "labels": {
                        "mass": mass,
                        "suspicious_calcification": int(study % 4 == 0),
                        "density": "ABCD"[study % 4],
                    },
                    "boxes": [{"label": "mass", "box": box}] if mass else [],
                }
            )
    table = SourceTable(frame(rows), [], "made up", "nobody", True)
    build(table, place, place / "data", preprocessing=PREPROCESSING, workers=0)
    return place / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, data):
    """A model folder with a very small dual encoder, untrained."""
    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.model.dim, config.image.channels, config.data.text_length = 8, 1, 16
    words = tokenizer.Tokenize(tokenizer.train_wordpiece(["no mass", "mass", "suspicious calcification"], 200))
    module = models.build(config.model, words.vocab_size)
    variables = jax.jit(lambda key: init_variables(module, key, (HEIGHT, WIDTH, 1), 16))(jax.random.key(0))
    meta = {
        "kind": "dual_encoder",
        "config": json.loads(config.to_json_best_effort()),
        "tokenizer": words.to_json(),
        "preprocessing": json.loads((data / "dataset.json").read_text())["preprocessing"],
        "step": 5,
        "provenance": {"licences": [{"licence": "mammo_clip", "title": "a licence"}], "data": {}},
    }
    return folder.write(tmp_path_factory.mktemp("weights") / "model", jax.device_get(variables), meta, card="tiny")


@pytest.fixture
def run(monkeypatch, tmp_path):
    def call(*patterns, **given):
        values = {
            "weights": [],
            "data": [],
            "protocol": ["default"],
            "out": str(tmp_path / "out"),
            "list": False,
            "override": QUICK,
            "configs": "",
            "json": str(tmp_path / "figures.json"),
        } | given
        monkeypatch.setattr(command, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**values)))  # Grain has flags too
        status = command.main(["reproduce", *patterns])
        return status, json.loads((tmp_path / "figures.json").read_text())["rows"]

    return call


def test_without_data_it_says_what_is_not_at_hand(run, tmp_path, capsys):
    status, rows = run("vindr_mass/zero_shot", "vindr_mass_factor_iou50")
    assert status == 1 and {row["verdict"] for row in rows} == {"not at hand"}
    said = capsys.readouterr().out
    assert "no row could be measured" in said and "--data=vindr=DIR" in said and "shawn24/Mammo-CLIP" in said
    assert (tmp_path / "out" / "reproduce.csv").is_file() and (tmp_path / "out" / "reproduce.tex").is_file()


def test_the_list_runs_nothing(run, tmp_path, capsys, data, weights):
    status, rows = run(list=True, out="", data=[f"vindr={data}"], weights=[f"b5={weights}"])
    assert status == 0 and len(rows) == len(published.rows()) and not (tmp_path / "out").exists()
    at_hand = {row["name"] for row in rows if not row["lacking"]}
    assert "vindr_mass/zero_shot/b5" in at_hand and "vindr_mass/zero_shot/b2" not in at_hand
    assert not any(name.startswith("rsna") for name in at_hand)
    assert "0.76 ±0.01 (or 0.55)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, message",
    [
        ({"weights": ["b6=x"]}, "Known: b2, b5"),
        ({"data": ["vindr"]}, "NAME=VALUE"),
        ({"out": ""}, "--out"),
        ({"protocol": ["mine"]}, "Known: default, published"),
        ({"data": ["vindr=a", "vindr=b"]}, "give it once"),
    ],
)
def test_a_mistake_in_the_command_is_explained(run, given, message):
    with pytest.raises(UserError, match=message):
        run(**given)


@pytest.mark.slow
def test_ours_stands_beside_the_published_value(run, tmp_path, capsys, data, weights):
    asked = [
        "vindr_mass/zero_shot/b5",
        "vindr_mass/zero_shot/b5_vindr",
        "vindr_mass/linear_probe_100/b5",
        "vindr_density/zero_shot/b5",
        "vindr_mass/finetune_100/b5",
    ]
    given = {"data": [f"vindr={data}"], "weights": [str(weights)]}
    status, rows = run(*asked, **given)
    assert status == 0, [row["reason"] for row in rows]
    rows = {row["row"]: row for row in rows}
    assert set(rows) == set(asked)
    for row in rows.values():
        assert 0 <= row["ours"] <= 1 and row["n"] == 16 and row["verdict"] and row["published_protocol"]
        assert len(row["config_hash"]) == 64 and row["data_fingerprint"] and len(row["weights_fingerprint"]) == 16
        assert row["weights_licences"] == "a licence" and row["version"] and row["real"] is False
        assert (Path(row["folder"]) / "report.html").is_file()
    one, other = rows["vindr_mass/zero_shot/b5"], rows["vindr_mass/zero_shot/b5_vindr"]
    assert one["folder"] == other["folder"] and (one["published"], other["published"]) == (0.48, 0.76)
    said = capsys.readouterr().out
    assert "0.48 ±0.01" in said and "phantoms: these values say nothing" in said
    tex = (tmp_path / "out" / "reproduce.tex").read_text()
    assert r"\toprule" in tex and "0.48 ±0.01 &" in tex and "(or 0.55)" in tex

    again = run(*asked, **given)
    assert "done before" in capsys.readouterr().out and [row["ours"] for row in again[1]] == [
        rows[row["row"]]["ours"] for row in again[1]
    ]
    changed, _ = run("vindr_mass/zero_shot/b5", **given | {"protocol": ["published"]})
    assert changed == 0 and "done before" not in capsys.readouterr().out


def test_four_tables_of_localisation_are_one_run():
    names = [f"vindr_{label}_factor_iou{iou}/factor/b5" for label in ("mass", "calcification") for iou in (25, 50)]
    recipes = [jobs.recipe(row_of(name), "published") for name in names]
    assert len({recipe[:2] for recipe in recipes}) == 1 and len({recipe.metric for recipe in recipes}) == 4
    assert recipes[3].metric == "vindr/localisation/suspicious_calcification/factor/published/ap@0.5"
    known = jobs.metrics_of(recipes[0], "published")
    assert {recipe.metric for recipe in recipes} < set(known) and len(known) == 10
    assert "stated in no text" in row_of(names[0]).how and "recall" in row_of(names[0]).metric


@pytest.mark.slow
def test_localisation_learns_from_labels_and_says_what_stands_beside_it(run, capsys, data, weights):
    asked = ["vindr_mass_factor_iou25/factor/b5", "vindr_calcification_factor_iou50/factor/b5"]
    status, (mass, calcification) = run(*asked, data=[f"vindr={data}"], weights=[str(weights)])
    assert mass["published"] == 0.45 and 0 <= mass["ours"] <= 1 and mass["n"] == 8
    assert calcification["verdict"] == "not measured" and calcification["folder"] == mass["folder"]
    said = capsys.readouterr().out
    assert "beside vindr_mass_factor_iou25/factor/b5: recall@0.25 0." in said and "regions " in said


def test_a_row_that_cannot_run_fails_alone(run, capsys, data, weights, monkeypatch):
    def refused(*arguments, **options):
        raise UserError("these weights may not be used so")

    monkeypatch.setattr(jobs.run, "pretrain", refused)
    status, rows = run(
        "vindr_mass/finetune_100/b5", "vindr_mass/zero_shot/b5", data=[f"vindr={data}"], weights=[f"b5={weights}"]
    )
    verdicts = {row["row"]: row["verdict"] for row in rows}
    assert status == 1 and verdicts["vindr_mass/finetune_100/b5"] == "failed"
    assert verdicts["vindr_mass/zero_shot/b5"] in ("agrees", "interval reaches it", "above", "below")
    assert "may not be used so" in capsys.readouterr().out
