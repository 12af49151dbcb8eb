"""A wrong config is said before a file is touched: every fault in one message, a broken file in one line."""

import operator
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mammoclip_jax import command, run, tasks
from mammoclip_jax.check import check
from mammoclip_jax.config import READ_BY_ALL, defaults, fields, reads
from mammoclip_jax.data.batches.labelled import Target
from mammoclip_jax.errors import Faults, UserError, together
from mammoclip_jax.tasks import labelled, limits

ROOT = Path(__file__).parent.parent


def config_of(name):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


@pytest.mark.parametrize(
    "name, part, values, said",
    [
        ("demo", "train", dict(batch_size=0), "config.train.batch_size=0 must be a whole number of 1 or more"),
        ("phantom_classifier", "train", dict(batch_size=-4), "batch_size=-4 must be a whole number of 1 or more"),
        ("demo", "train", dict(steps=-1), "config.train.steps=-1 must be"),
        ("demo", "train", dict(lr=0.0), "config.train.lr=0.0 must be above 0"),
        ("demo", "train", dict(ema_decay=1.0), "config.train.ema_decay=1.0 must be 0 or more and below 1"),
        ("demo", "train", dict(optimizer="adam"), "'adam'. Did you mean 'adamw'"),
        ("demo", "train", dict(schedule="cosin"), "Did you mean 'cosine'"),
        ("demo", "train", dict(no_decay=("(",)), r"config.train.no_decay: '\(' is no regular expression"),
        ("demo", "augment", dict(crop=(0.5, 2.0)), "config.augment.crop"),
        ("demo", "augment", dict(rotate=-1.0), "config.augment.rotate=-1.0 must be 0 or more"),
        ("demo", "data", dict(flip_horizontal=2.0), "config.data.flip_horizontal=2.0 must be a share from 0 to 1"),
        ("demo", "data", dict(leave_out=("spott",)), "Did you mean 'spot'"),
        ("demo", "data.prepare.phantom", dict(source="phantm"), "Did you mean 'phantom'"),
        ("demo", "data.prepare.phantom", dict(hieght=4), "Did you mean 'height'"),
        ("demo", "data.phantom.phantom", dict(contrats=4), "Did you mean 'contrast'"),
        ("demo", "model.image", dict(name="efficentnet"), "Did you mean 'efficientnet'"),
        ("demo", "model.image", dict(variant="b9"), "b9"),
        ("demo", "model.text", dict(name="brt"), "Did you mean 'bert'"),
        ("demo", "model", dict(matmul="tf23"), "Did you mean 'tf32'"),
        ("demo", "model.heads", dict(local=dict(kind="locl")), "Did you mean 'local'"),
        ("demo", "losses", dict(mamo_clip=dict(weight=1.0)), "Did you mean 'mammo_clip'"),
        ("demo", "evaluate", dict(split="tset"), "Did you mean 'test'"),
        ("demo", "evaluate", dict(folders=("phantoms",)), "Did you mean 'phantom'"),
        ("demo", "evaluate.evaluators", dict(zero_shoot={}), "Did you mean 'zero_shot'"),
        ("demo", "evaluate.evaluators.zero_shot", dict(prompts="phantm"), "Did you mean 'phantom'"),
        ("demo", "evaluate.evaluators.zero_shot", dict(protocol="publishd"), "Did you mean 'published'"),
        ("demo", "evaluate.evaluators.zero_shot", dict(labels=("mas",)), "Did you mean 'mass'"),
        ("demo", "evaluate.evaluators.zero_shot", dict(folders=("phantm",)), "Did you mean 'phantom'"),
        ("demo", "evaluate.validation_evaluators.zero_shot", dict(split="vall"), "Did you mean 'val'"),
        ("demo", "evaluate.evaluators.retrieval", dict(units="breasts"), "Did you mean 'breast'"),
        ("demo", "evaluate.evaluators.saliency", dict(method="hirescam"), "Did you mean 'hires_cam'"),
        ("demo", "evaluate.evaluators.saliency", dict(stage="stage22"), "Did you mean 'stage2'"),
        ("demo", "evaluate.evaluators", dict(grounding=dict(methods=("gradcam",))), "Did you mean 'grad_cam'"),
        ("demo", "evaluate.evaluators", dict(class_retrieval=dict(label="x")), "needs the option 'texts'"),
        ("demo", "evaluate.evaluators", dict(classification={}), "takes a classifier or attributes"),
        ("demo", "predict", dict(exam="nowhere"), "config.predict.exam='nowhere' is not a folder"),
        ("phantom_classifier", "task", dict(better="more"), "config.task.better='more' must be higher or lower"),
        ("phantom_classifier", "task", dict(monitor="eval/phantm/classification/mass/auroc"), "Did you mean 'phantom'"),
        ("phantom_classifier", "train", dict(eval_every=0), "set config.train.eval_every"),
        ("phantom_classifier", "task", dict(encoder="evl"), "Did you mean 'eval'"),
        ("phantom_classifier", "task", dict(pos_weight="balancd"), "must be balanced, root, a number"),
        ("phantom_classifier", "task", dict(unit="breasts"), "Did you mean 'breast'"),
        ("phantom_classifier", "task", dict(sampling="balancd"), "Did you mean 'balanced'"),
        ("phantom_classifier", "task", dict(folds=2), "must be 3 or more"),
        ("phantom_classifier", "evaluate.evaluators.saliency", dict(labels=("mas",)), "Did you mean 'mass'"),
        ("phantom_detector", "task", dict(without_boxes="zer"), "Did you mean 'zero'"),
        ("phantom_detector", "data.regions.make", dict(factr={}), "Did you mean 'factor'"),
        ("phantom_detector", "model", dict(stages=("stage3", "stage5", "haed")), "Did you mean 'head'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(tmp_path, monkeypatch, name, part, values, said):
    config = config_of(name)
    operator.attrgetter(part)(config).update(values)
    monkeypatch.setattr(run.distributed, "configure", lambda config: pytest.fail("the devices were asked for"))
    with pytest.raises(UserError, match=said):
        run.pretrain(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["demo", "phantom_classifier", "phantom_detector", "phantom_factor", "glam"])
def test_right_configs_pass(name):
    check(config_of(name))


def test_all_faults_are_listed_at_once():
    config = config_of("demo")
    config.train.update(batch_size=0, lr=-1.0)
    config.model.image.name = "efficentnet"
    config.evaluate.evaluators.zero_shot.update(split="tset", prompts="phantm")
    with pytest.raises(Faults, match="^5 things are wrong:\n") as found:
        check(config)
    assert len(found.value.faults) == 5 and len(str(found.value).splitlines()) == 6


def test_errors_together_are_each_said_once():
    def wrong():
        raise UserError("so")

    together()
    with pytest.raises(UserError, match="^so$"):
        together(wrong, wrong)
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0, wrong)


def test_every_field_is_read_by_some_task_and_none_is_named_that_is_not_there():
    known, claimed = fields(defaults()), set(READ_BY_ALL)
    for kind in tasks.TASKS:
        config = defaults()
        config.task.kind = kind
        claimed |= {*tasks.task_of(config).READS}
    parts = {name[: len(name.split(".")[0])] for name in known}
    assert [name for name in known if not reads(claimed, name)] == []
    named = {".".join(name.split(".")[:depth]) for name in known for depth in (1, 2, 3)} | parts
    open_parts = {"losses", "warm_start", "data.folders", "data.prepare", "data.phantom", "data.regions.make"}
    assert claimed - named - open_parts - {"model.image", "model.text", "model.lora", "model.heads"} == set()
    limits.check(defaults())


@pytest.mark.parametrize(
    "content, said",
    [
        ("x = 1\n", "is no config: it has no function get_config"),
        ("def get_config(:\n    pass\n", "line 1: invalid syntax"),
        ("def get_config():\n    x = {}\n    return x['a']\n", "line 3: KeyError: 'a'"),
        ("import nosuchthing\n", "line 1: ModuleNotFoundError: No module named 'nosuchthing'"),
        ("def get_config():\n    pass\n", "get_config() returned None and no config"),
        (
            "from mammoclip_jax.config import defaults\ndef get_config():\n    c = defaults()\n    c.trian = 1\n",
            'line 4: AttributeError: .*Did you mean "train"',
        ),
        (
            "from mammoclip_jax.errors import UserError\ndef get_config():\n    raise UserError('no such variant')\n",
            "no such variant",
        ),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, content, said):
    file = tmp_path / "mine.py"
    file.write_text(content)
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")) as found:
        command.load_config(str(file))
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "compile", "benchmark"])
def test_every_command_says_a_broken_config_in_one_line(tmp_path, name):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    raise ValueError('odd')\n")
    for config, said in (
        (
            "configs/demoo.py",
            "error: --config=configs/demoo.py: there is no file configs/demoo.py. Did you mean 'configs/demo.py'?",
        ),
        (str(broken), f"error: {broken}, line 2: ValueError: odd"),
    ):
        arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
        if name in ("compile", "benchmark"):
            arguments = arguments[:1]
        done = subprocess.run(
            [sys.executable, "-m", f"mammoclip_jax.{name}", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.strip().splitlines() == [said], done.stderr
    assert not (tmp_path / "run").exists()


def test_a_label_that_no_data_set_has_is_said_with_the_nearest():
    def dataset(labels, boxes="[]"):
        return SimpleNamespace(index=pd.DataFrame({"labels": labels, "boxes_canvas": [boxes] * len(labels)}))

    films, others = (
        dataset(['{"mass": 1}', "{}"]),
        dataset(['{"density": "A"}'], '[{"box": [0, 0, 1, 1], "label": "clip"}]'),
    )
    labelled.check_labels([films, others], Target(("mass",)))
    labelled.check_labels([films, others], Target(("A", "B"), "density"))
    labelled.check_labels([films, others], Target(("mass", "clip"), boxes=True))
    for target in (Target(("mass", "masss")), Target(("A",), "masss"), Target(("masss",), boxes=True)):
        with pytest.raises(UserError, match="'masss'. Did you mean 'mass'"):
            labelled.check_labels([films, others], target)


@pytest.mark.parametrize(
    "given, said",
    [
        ("--config.train.batch_size=many", "error: flag --config.train.batch_size=many: invalid literal for int"),
        ("--workdr=x", "error: Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, given, said):
    arguments = ["--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", given]
    done = subprocess.run(
        [sys.executable, "-m", "mammoclip_jax.pretrain", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
