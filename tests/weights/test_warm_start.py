"""Warm starts: what is loaded, what is adapted so that outputs stay, what is refused, and what a run notes of it."""

import base64
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_resume import assert_same_bits, finish, start, wait_for_step

from mammoclip_jax import command, models, provenance, run
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import checkpoint
from mammoclip_jax.weights import warm_start

ROOT = Path(__file__).parent.parent.parent
RNG = np.random.default_rng(0)
IMAGE_ENCODERS = {
    "efficientnet": dict(variant="b0", width=0.25, depth=0.3),
    "resnet": dict(variant="18", width=8, depths=(1, 1, 1, 1)),
    "vit": dict(variant="tiny", width=16, depth=1, heads=2, size=32),
}
TEXT_ENCODERS = {
    "bert": (
        "max_position_embeddings",
        dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
    ),
    "clip_text": (
        "max_position_embeddings",
        dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
    ),
    "gpt2": ("n_positions", dict(n_embd=16, n_layer=1, n_head=2)),
}


def tree(**paths):
    """{collection: nested arrays} of paths with two underscores for a slash."""
    nested = {}
    for path, shape in paths.items():
        *above, last = path.split("__")
        place = nested
        for name in above:
            place = place.setdefault(name, {})
        place[last] = RNG.standard_normal(shape).astype(np.float32)
    return nested


def model(**other):
    """A small model with a normalisation; `other` shapes replace these."""
    return tree(
        **{
            "params__image_encoder__stem__kernel": (3, 3, 1, 4),
            "params__image_encoder__stem_bn__scale": (4,),
            "batch_stats__image_encoder__stem_bn__mean": (4,),
            "params__image_projection__dense__kernel": (4, 2),
            "params__text_encoder__wte__embedding": (9, 5),
            "params__logit_scale": (),
        }
        | other
    )


def loaded(variables, source):
    """Paths, without collection, whose values are the source's."""
    ours, theirs = (flatten_dict(tree, sep="/") for tree in (variables, source))
    return {path.partition("/")[2] for path in ours if path in theirs and np.array_equal(ours[path], theirs[path])}


def test_everything_of_a_source_of_the_same_model():
    fresh, source = model(), model()
    variables, report = warm_start.apply(fresh, source, what="run A")
    jax.tree.map(np.testing.assert_array_equal, variables, source)
    assert report.parameters == 36 + 4 + 8 + 45 + 1 and len(report.loaded) == 6
    assert not report.fresh and not report.ignored and not report.adapted
    assert "run A: 6 arrays loaded, 94 parameters" in report.text()


def test_a_tower_alone_leaves_the_rest_fresh_and_says_so():
    fresh, source = model(), tree(params__image_encoder__stem__kernel=(3, 3, 1, 4), params__head__kernel=(4, 2))
    variables, report = warm_start.apply(fresh, source, what="tower")
    assert report.loaded == ["image_encoder/stem/kernel"] == sorted(loaded(variables, source))
    assert "logit_scale" in report.fresh and report.ignored == ["head/kernel"]
    assert "left at their initial values 5" in report.text() and "not used 1: head" in report.text()
    np.testing.assert_array_equal(variables["params"]["logit_scale"], fresh["params"]["logit_scale"])


def test_load_and_skip_choose_and_statistics_follow_their_module():
    fresh, source = model(), model()
    variables, _ = warm_start.apply(fresh, source, load=("image_encoder/", "logit"), skip=(".*/stem_bn",), what="A")
    assert loaded(variables, source) == {"image_encoder/stem/kernel", "logit_scale"}
    variables, _ = warm_start.apply(fresh, source, load=(".*/stem_bn/scale",), what="A")
    assert loaded(variables, source) == {"image_encoder/stem_bn/scale", "image_encoder/stem_bn/mean"}
    variables, _ = warm_start.apply(fresh, source, skip=(".*/kernel",), what="A")
    assert "image_encoder/stem_bn/mean" in loaded(variables, source)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(load=("image_encoder/", "text_encoder/")), "A has no text_encoder/wte/embedding, which"),
        (dict(load=("imag_encoder/",)), "load matches no path with 'imag_encoder/'"),
        (dict(skip=("projection",)), "skip matches no path with 'projection'"),
        (dict(load=("image_encoder/",), skip=("image_encoder/",)), "A has nothing that this model could start from"),
    ],
)
def test_wrong_expressions_are_named(options, message):
    source = model()
    del source["params"]["text_encoder"]
    with pytest.raises(UserError, match=message):
        warm_start.apply(model(), source, what="A", **options)


@pytest.mark.parametrize(
    "path, ours, theirs",
    [
        ("params__image_projection__dense__kernel", (4, 2), (4, 3)),
        ("params__image_encoder__stem__kernel", (3, 3, 1, 4), (5, 5, 3, 4)),
        ("params__image_encoder__block__kernel", (3, 3, 8, 4), (3, 3, 16, 4)),
        ("params__text_encoder__wte__embedding", (9, 5), (12, 5)),
        ("params__text_encoder__wpe__embedding", (9, 5), (9, 6)),
        ("params__image_encoder__position_embeddings", (1, 17, 4), (1, 13, 4)),
    ],
)
def test_other_shapes_without_a_meaning_are_refused(path, ours, theirs):
    name = path.removeprefix("params__").replace("__", "/")
    with pytest.raises(UserError) as error:
        warm_start.apply(model(**{path: ours}), model(**{path: theirs}), what="A")
    assert name in str(error.value) and str(ours) in str(error.value) and str(theirs) in str(error.value)
    assert "skip" in str(error.value)
    _, report = warm_start.apply(model(**{path: ours}), model(**{path: theirs}), skip=(name,), what="A")
    assert name in report.fresh and name in report.ignored


def image_model(name, channels, **options):
    encoder = models.image_encoder({"name": name} | IMAGE_ENCODERS[name] | options)
    image = jnp.zeros((1, 32, 32, channels))
    variables = jax.jit(lambda key: encoder.init(key, image, train=False))
    return encoder, jax.device_get(variables(jax.random.key(channels)))


def under(name, variables):
    return {collection: {name: tree} for collection, tree in variables.items()}


def start_tower(kind, fresh, source):
    variables, report = warm_start.apply(under(kind, fresh), under(kind, source), what="A")
    assert not report.fresh and not report.ignored
    return {collection: tree[kind] for collection, tree in variables.items()}, report


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_ENCODERS)
@pytest.mark.parametrize("old, new", [(3, 1), (1, 3)])
def test_a_grey_image_gives_the_same_features_with_other_channels(name, old, new):
    (theirs, source), (ours, fresh) = image_model(name, old), image_model(name, new)
    variables, report = start_tower("image_encoder", fresh, source)
    ((path, how),) = report.adapted
    assert path.endswith("kernel") and f"{old} image channels to {new}" in how
    grey = RNG.standard_normal((2, 32, 32, 1)).astype(np.float32)
    expected, _ = jax.jit(functools.partial(theirs.apply, train=False))(source, np.repeat(grey, old, axis=3))
    found, _ = jax.jit(functools.partial(ours.apply, train=False))(variables, np.repeat(grey, new, axis=3))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("registers", [0, 2])
def test_positions_of_patches_are_resampled_as_the_model_does(registers):
    """The new model at its own size sees what the old one saw at that size."""
    options = dict(registers=registers, antialias=registers > 0, patch=8)
    theirs, source = image_model("vit", 1, **options)
    positions = source["params"]["embeddings"]["position_embeddings"]
    source["params"]["embeddings"]["position_embeddings"] = RNG.standard_normal(positions.shape).astype(np.float32)
    ours, fresh = image_model("vit", 1, **options | {"size": 48})
    variables, report = start_tower("image_encoder", fresh, source)
    assert report.adapted == [
        ("image_encoder/embeddings/position_embeddings", "positions resampled from a grid of 4 x 4 to 6 x 6")
    ]
    image = RNG.standard_normal((1, 48, 48, 1)).astype(np.float32)
    np.testing.assert_allclose(
        ours.apply(variables, image, train=False)[0], theirs.apply(source, image, train=False)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", TEXT_ENCODERS)
@pytest.mark.parametrize("old, new", [(8, 12), (12, 8)])
def test_other_lengths_and_more_tokens_leave_a_short_text_as_it_is(name, old, new):
    field, options = TEXT_ENCODERS[name]
    ids = RNG.integers(0, 20, (2, 8), dtype=np.int32)
    inputs = ids, np.ones_like(ids, bool)
    encoders = [
        models.text_encoder({"name": name, field: length} | options, rows) for length, rows in ((old, 20), (new, 23))
    ]
    source, fresh = (
        jax.device_get(jax.jit(lambda key, e=e: e.init(key, *inputs, train=False))(jax.random.key(i)))
        for i, e in enumerate(encoders)
    )
    variables, report = start_tower("text_encoder", fresh, source)
    notes = sorted(how for _, how in report.adapted)
    assert len(notes) == 2 and "the last 3 fresh" in " ".join(notes)
    assert ("the first 8 of 12 positions" if new < old else "the 8 positions there are, the last 4 fresh") in notes
    expected, found = (e.apply(v, *inputs, train=False) for e, v in zip(encoders, (source, variables), strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = {path: np.asarray(x) for path, x in flatten_dict(fresh, sep="/").items() if x.shape[:1] == (23,)}
    ((path, table),) = rows.items()
    np.testing.assert_array_equal(flatten_dict(variables, sep="/")[path][20:], table[20:])


def meta(licence="mit", **other):
    return {
        "kind": "dual_encoder",
        "step": 7,
        "config": {"name": "Parent", "model": {}, "image": {"mean": 0.5}},
        "preprocessing": {"height": 64, "width": 48},
        "provenance": {
            "licences": [{"weights": "theirs", "licence": licence, "title": licence}],
            "overrides": [],
            "data": {},
        },
    } | other


def opener(**named):
    """As source.open_weights, of {name: (variables, meta)}."""
    return lambda name: named[name]


def test_entries_are_applied_in_order_and_noted():
    fresh, one, two = model(), model(), model()
    options = {"first": {"weights": "one"}, "second": {"weights": "two", "load": "image_encoder/"}}
    variables, started = warm_start.start(fresh, options, opener(one=(one, meta()), two=(two, meta("apache-2.0"))))
    assert loaded(variables, two) == {path for path in loaded(two, two) if path.startswith("image_encoder/")}
    assert loaded(variables, one) == loaded(one, one) - loaded(variables, two)
    provenance = started.provenance
    assert [(p["name"], p["what"], p["origin"], p["report"]["loaded"]) for p in provenance["parents"]] == [
        ("first", "one", "Parent", 6),
        ("second", "two", "Parent", 3),
    ]
    assert [entry["licence"] for entry in provenance["licences"]] == ["mit", "apache-2.0"]
    assert json.loads(json.dumps(started.to_json()))["reports"]["second"]["parameters"] == 40


def test_a_licence_that_forbids_it_needs_an_override():
    open_weights = opener(one=(model(), meta("mammo_fm")))
    with pytest.raises(UserError, match="against the terms"):
        warm_start.start(model(), {"a": {"weights": "one"}}, open_weights)
    _, started = warm_start.start(model(), {"a": {"weights": "one", "override": "permission of 3 May"}}, open_weights)
    (record,) = started.provenance["overrides"]
    assert record["override"] == "permission of 3 May" and record["action"] == "initialise"
    assert started.provenance["licences"][0]["licence"] == "mammo_fm"


def test_wrong_entries_are_named():
    with pytest.raises(UserError, match="config.warm_start.a has no option 'weight'"):
        warm_start.start(model(), {"a": {"weight": "one"}}, opener())
    with pytest.raises(UserError, match="config.warm_start.a has no `weights`"):
        warm_start.start(model(), {"a": {"load": ("x",)}}, opener())


def test_an_entry_that_names_nothing_is_left_out():
    """So a config can declare what the command line may fill in."""
    fresh = model()
    variables, started = warm_start.start(fresh, {"a": {"weights": ""}}, opener())
    assert variables == fresh and started.reports == {}


def test_adapters_of_the_source_are_merged():
    fresh, source = (model(params__text_encoder__c_attn__kernel=(5, 6)) for _ in range(2))
    adapters = tree(lora_a=(5, 2), lora_b=(2, 6))
    plain = source["params"]["text_encoder"]["c_attn"]["kernel"]
    source["params"]["lora"] = {"text_encoder": {"c_attn": {"kernel": adapters}}}
    config = {"name": "", "model": {"lora": {"pattern": ".*c_attn/kernel", "rank": 2, "alpha": 8.0}}}
    variables, _ = warm_start.start(fresh, {"a": {"weights": "one"}}, opener(one=(source, meta(config=config))))
    np.testing.assert_allclose(
        variables["params"]["text_encoder"]["c_attn"]["kernel"],
        plain + 4.0 * adapters["lora_a"] @ adapters["lora_b"],
        rtol=1e-5,
        atol=1e-5,
    )
    assert "lora" not in variables["params"]


def test_other_preprocessing_of_a_whole_model_is_named():
    _, started = warm_start.start(model(), {"a": {"weights": "one"}}, opener(one=(model(), meta())))
    ours = {"preprocessing": {"height": 96, "width": 48}, "config": {"image": {"mean": 0.3, "std": 1.0}}}
    (line,) = started.differences(ours)
    assert "height 64 -> 96" in line and "config.image.mean 0.5 -> 0.3" in line and "width" not in line
    same = {"preprocessing": {"height": 64}, "config": {"image": {"mean": 0.5}}}
    assert not started.differences(same)
    _, started = warm_start.start(
        model(), {"a": {"weights": "one", "load": "image_encoder/"}}, opener(one=(model(), meta()))
    )
    assert not started.differences(ours)


def test_a_run_reads_the_weights_once_and_keeps_what_it_noted(tmp_path, caplog):
    config, source = defaults(), model()
    config.warm_start.a = dict(weights="one", load=("image_encoder/",))
    ours, theirs = (base64.b64encode(np.array(keys, "<u8").tobytes()).decode() for keys in ([1, 3], [2, 3]))
    own = {"preprocessing": {}, "config": {"image": {}}, "provenance": {"data": {}}, "trained_on": ours}
    variables = run.start_variables(model(), config, tmp_path, own, opener(one=(source, meta(trained_on=theirs))))
    assert "image_encoder/stem/kernel" in loaded(variables, source)
    assert own["provenance"]["parents"][0]["what"] == "one" and own["provenance"]["data"] == {}
    assert own["provenance"]["parents"][0]["patients_known"]
    assert provenance.patients_in(own["trained_on"]).tolist() == [1, 2, 3]

    (tmp_path / "checkpoints" / "5" / "meta").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "meta" / "metadata").write_text(json.dumps(own))
    fresh, again = model(), own | {"provenance": {"data": {}}, "trained_on": ours}
    assert run.start_variables(fresh, config, tmp_path, again, opener()) is fresh  # opens nothing
    assert again["provenance"] == json.loads(json.dumps(own["provenance"])) and not caplog.records
    assert again["trained_on"] == own["trained_on"]
    config.warm_start.a.load = ("text_encoder/",)
    run.start_variables(fresh, config, tmp_path, again, opener())
    assert "not what this run began with" in caplog.text


CHILD = """
import importlib.util
spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

def get_config():
    config = tiny.get_config()
    config.data.folders.phantom = {data!r}
    config.data.phantom, config.data.prepare = {{}}, {{}}
    config.data.tokenizer = {tokenizer!r}
    config.evaluate.evaluators, config.evaluate.validation_evaluators = {{}}, {{}}
    config.warm_start.parent = dict(weights={weights!r}, skip=("image_projection/",))
    config.model.frozen = ("image",)
    config.model.lora.update(pattern="text_encoder/.*/query/kernel", rank=2)
    return config
"""


@pytest.mark.slow
def test_a_run_from_a_run_is_killed_and_goes_on_with_the_same_bits(tmp_path):
    """With a frozen tower and adapters: the whole way from one run's checkpoint into another's."""
    parent = tmp_path / "parent"
    parent.mkdir()
    finish(start(parent, "--config.train.steps=3"))
    child = tmp_path / "child.py"
    child.write_text(
        CHILD.format(
            tiny=str(ROOT / "tests/configs/tiny.py"),
            data=str(parent / "data"),
            tokenizer=str(parent / "tokenizer.json"),
            weights=str(parent),
        )
    )

    def begin(name):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "mammoclip_jax.pretrain", f"--config={child}", f"--workdir={workdir}"],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    output = finish(begin("whole"))
    assert "warm start from" in output and "left at their initial values" in output
    stopped = begin("stopped")
    wait_for_step(stopped, tmp_path / "stopped", 4)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=120) == command.INTERRUPTED, stopped.stdout.read()
    assert "warm start from" not in finish(begin("stopped"))

    (_, whole, own), (_, resumed, again) = (checkpoint.load(tmp_path / name) for name in ("whole", "stopped"))
    assert_same_bits(whole, resumed)
    assert own["provenance"]["parents"] == again["provenance"]["parents"]
    assert own["provenance"]["parents"][0]["what"] == str(parent)
    _, source, _ = checkpoint.load(parent)
    for collection in ("params", "batch_stats"):
        assert_same_bits(whole[collection]["image_encoder"], source[collection]["image_encoder"])
    assert_same_bits(whole["params"]["text_encoder"], source["params"]["text_encoder"])
    assert np.any(jax.tree.leaves(whole["params"]["lora"])[1])
