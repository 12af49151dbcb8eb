"""The compile command: on simulated devices whole, and for a TPU topology where libtpu is installed."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from mammoclip_jax.aot import program, session, table, topology
from mammoclip_jax.errors import UserError

ROOT = Path(__file__).parent.parent
IMAGES = {"height": 64, "width": 48, "bits": 8}
VOCABULARY = 60
CONFIG = '''
from mammoclip_jax.config import defaults


def get_config():
    """Two small transformers: the bytes of their gradients are far more than those of a batch's vectors."""
    config = defaults()
    config.name = "tiny"
    config.data.folders.none = "none"
    config.data.text_length = 8
    config.image.channels = 1
    config.model.image.update(name="vit", variant="tiny", width=64, depth=2, heads=2, size=64)
    config.model.text.update(name="bert", hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=128, max_position_embeddings=8)
    config.model.dim = 16
    config.losses.clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=4, batch_size=16)
    return config
'''


@pytest.fixture
def config():
    namespace = {}
    exec(CONFIG, namespace)
    return namespace["get_config"]()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Compilations for the eight simulated devices; what one test compiled the next finds in the cache."""
    target = topology.Topology("cpu:8", jax.devices(), 2**30)
    cache = tmp_path_factory.mktemp("cache")
    return session.Session(target, IMAGES, VOCABULARY, str(cache), {"xla_backend_optimization_level": "0"})


def test_all_figures_of_a_step(config, job):
    config.model.image.depth = 1
    found = job.compile(config)
    figures = found.figures
    assert figures["chips"] == 8 and figures["images_per_chip"] == 4 and figures["fits"]
    assert figures["arguments"]["batch"] > 4 * 64 * 48
    assert figures["memory"]["arguments"] >= sum(figures["arguments"].values()) * 0.99
    assert figures["xla_flops"] > figures["model_flops"] > 0 and figures["counted_hbm_bytes"] > 0
    assert figures["bytes_per_image"] * 4 == pytest.approx(figures["xla_bytes"])
    moved = figures["collectives"]
    assert moved["ratio"] == pytest.approx(1, abs=0.1) and not moved["as_large_as_images"]
    text = table.text(figures)
    for part in ("argument opt_state", "temporaries", "GiB accessed", "all-reduce", "largest", "none but gradients"):
        assert part in text


def test_what_was_compiled_is_not_compiled_again(config, job, monkeypatch):
    config.model.image.depth = 1
    first = job.compile(config).figures
    monkeypatch.setattr(program, "_compile", lambda *_: pytest.fail("compiled again"))
    config.name, config.train.checkpoint_every = "another name", 7  # the program is the same
    assert job.compile(config).figures == first
    config.train.b1 = 0.8
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        job.compile(config)


def test_a_program_that_does_not_fit_is_kept_with_its_figures(tmp_path, monkeypatch):
    def refuse(compiler_options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory. Used 26.5G of 15.75G hbm.")

    lowered = types.SimpleNamespace(compile=refuse)
    compiled = program._write(tmp_path, program._compile(lowered, {}, "key", {"jax": "0"}))
    assert program.read(tmp_path, "key") == compiled and not compiled.fits
    assert compiled.memory == {"needed": int(26.5 * 2**30), "available": int(15.75 * 2**30)}


def pretend(monkeypatch, each):
    """A compiler whose programs need a GiB and `each` bytes an image, of 15.75 GiB."""
    available = int(15.75 * 2**30)

    def compile_step(config, target, cache, options):
        need = int(2**30 + each * session.images_per_chip(config, target))
        figures = {"total": need} if need <= available else {"needed": need, "available": available}
        return program.Compiled(need <= available, figures, {}, "", 1.0, "key", {})

    monkeypatch.setattr(program, "trainer_for", lambda config, *_: config)
    monkeypatch.setattr(program, "compile_step", compile_step)
    monkeypatch.setattr(
        session.figures,
        "describe",
        lambda config, trainer, compiled, target: {
            "images_per_chip": session.images_per_chip(config, target),
            "fits": compiled.fits,
            "hbm_bytes": available,
            "memory": compiled.memory,
        },
    )
    monkeypatch.setattr(table, "row", lambda config, figures, *_: figures)


def test_the_search_ends_at_the_largest_batch_that_splits(config, job, monkeypatch):
    pretend(monkeypatch, 2**29)  # 29.5 images
    found = job.search(config)
    assert found.config.train.batch_size == 14 * 8 and found.figures["images_per_chip"] == 28
    assert found.rows[-1] == found.figures and {row["fits"] for row in found.rows} == {True, False}
    config.train.micro_batches.image = 4  # two breasts a device at a time
    assert job.search(config, start=8).config.train.batch_size == 14 * 8
    config.train.micro_batches.image = 8  # four
    assert job.search(config, start=8).config.train.batch_size == 12 * 8


def test_nothing_fits_says_the_smallest(config, job, monkeypatch):
    pretend(monkeypatch, 2**34)
    found = job.search(config, start=8)
    assert not found.figures["fits"] and found.figures["images_per_chip"] == 2


def test_variants_leave_the_config_alone(config):
    stages = session.variant(config, "block,none", "true", 2)
    assert stages.model.image.remat == "block,none" and stages.train.micro_batches.image == 2
    assert stages.model.image.scan is True and not {"remat", "scan"} & set(config.model.image)
    assert config.train.micro_batches.image == 1


def test_half_a_breast_is_refused(config, job):
    with pytest.raises(UserError, match="images_per_chip=0.3"):
        session.with_images(config, 0.3, job.target)


def test_a_table_keeps_one_row_a_program(tmp_path, config):
    path = tmp_path / "table.csv"
    row = dict.fromkeys(table.COLUMNS, "") | {"topology": "v5e:4x4", "peak_gib": "3"}
    table.update(path, [row])
    table.update(path, [row | {"topology": "v5e:16x16"}, row | {"peak_gib": "4"}])
    rows = list(csv.DictReader(path.open()))
    assert [(r["topology"], r["peak_gib"]) for r in rows] == [("v5e:4x4", "4"), ("v5e:16x16", "3")]


@pytest.mark.parametrize(
    "name,message",
    [
        ("v9:2x2", "no TPU generation 'v9'"),
        ("v5e:2x2x2", "2 axes"),
        ("v5p:4x4", "3 axes"),
        ("v5e", "2 axes"),
        ("v5e:32x32", "1024 chips"),
    ],
)
def test_a_wrong_topology_is_said(name, message):
    with pytest.raises(UserError, match=message):
        topology.parse(name)


def command(tmp_path, *arguments, before=""):
    """The command in a process of its own, since libtpu reads the environment once."""
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    flags = [
        f"--config={file}",
        "--topology=v5e:2x2",
        "--height=64",
        "--width=48",
        f"--vocab_size={VOCABULARY}",
        f"--cache={tmp_path / 'cache'}",
        f"--json={tmp_path / 'figures.json'}",
        *arguments,
    ]
    start = "runpy.run_module('mammoclip_jax.compile', run_name='__main__', alter_sys=True)"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", f"import runpy, sys\n{before}\n{start}", *flags],
        timeout=900,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_this_cpu_with_the_memory_of_another_device(config, job):
    """Its compiler refuses nothing: what needs more than there is does not fit all the same."""
    config.model.image.depth = 1
    target = topology.load("cpu:0.001")
    assert target.hbm == 2**30 // 1000 and len(target.devices) == 1
    short = job._replace(target=target).compile(config).figures
    assert not short["fits"] and short["memory"]["available"] == target.hbm < short["memory"]["needed"]
    enough = job._replace(target=target._replace(hbm=short["memory"]["needed"])).compile(config).figures
    assert enough["fits"] and enough["memory"]["total"] == short["memory"]["needed"] and enough["chips"] == 1
    for name in ("cpu:", "cpu:six", "cpu:0"):
        with pytest.raises(UserError, match="write the memory of the device in GiB, such as cpu:6"):
            topology.prepare(name)


def test_without_libtpu_the_command_says_how_to_get_it(tmp_path):
    done = command(tmp_path, before="sys.modules['libtpu'] = None")
    assert done.returncode == 2 and done.stderr.startswith("error: libtpu") and "pip install -e .[aot]" in done.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[aot]"
)


@needs_libtpu
@pytest.mark.slow
def test_a_step_for_a_tpu_sends_little_more_than_its_gradients(tmp_path):
    done = command(tmp_path, f"--table={tmp_path / 'table.csv'}")
    assert done.returncode == 0, done.stderr
    assert "TPU v5 lite" in done.stdout and "fits" in done.stdout and "Traceback" not in done.stderr
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["programs"]
    moved = figures["collectives"]
    assert moved["ratio"] == pytest.approx(1, abs=0.1), moved
    assert not moved["as_large_as_images"]
    assert figures["memory"]["total"] < figures["hbm_bytes"] and figures["images_per_second"]["bound"] > 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 2


@needs_libtpu
@pytest.mark.slow
def test_a_step_too_large_for_a_tpu_does_not_fit(tmp_path):
    done = command(tmp_path, "--vocab_size=30_000_000")  # 7.7 GB of vectors, and two moments of each
    assert done.returncode == 3, done.stderr
    assert "DOES NOT FIT" in done.stdout
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["programs"]
    assert figures["memory"]["needed"] > figures["memory"]["available"] == int(15.75 * 2**30)
