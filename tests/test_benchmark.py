"""The benchmark command on tiny images: every mode gives its rows; no figure is judged here."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoclip_jax import benchmark
from mammoclip_jax.benchmarks import plot, timing
from mammoclip_jax.benchmarks.prepare import straightforward
from mammoclip_jax.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    ys, xs = np.mgrid[:90, :60]
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 20, (90, 60))
        breast = (((ys - 45) / 36) ** 2 + (xs / 36) ** 2 < 1) * (120 + noise)
        cv2.imwrite(str(folder / f"{seed}.png"), breast.astype(np.uint8))
    return folder


@pytest.mark.slow
def test_a_probe_is_compared_with_features_of_every_epoch(images):
    rows = benchmark.benchmark("probe", str(images), limit=2, height=64, width=48, repeats=1)["rows"]
    assert [row["images"] for row in rows] == [2, 2, 2] and rows[0]["ratio"] == 1 and rows[1]["ratio"] > 1


@pytest.mark.parametrize("mode", ["codecs", pytest.param("input", marks=pytest.mark.slow)])
def test_a_mode_compares_each_codec_with_png(images, mode):
    figures = benchmark.benchmark(mode, str(images), limit=2, height=32, width=24, repeats=2)
    assert figures["data"].startswith("2 files") and figures["versions"]["numpy"] == np.__version__
    rows = figures["rows"]
    assert {"raw", "zstd", "png", "delta"} <= {row["codec"] for row in rows}
    assert {row["bits"] for row in rows} == {8, 16}
    ratio = {"codecs": "decode_ratio", "input": "ratio"}[mode]
    assert all(row[ratio] > 0 for row in rows)
    assert [row[ratio] for row in rows if "cv2" in row["codec"]] == [1.0, 1.0]
    assert len(benchmark.table(rows).splitlines()) == len(rows) + 2


@pytest.mark.slow
def test_prepare_is_compared_with_the_straightforward_loop(images, tmp_path):
    file = tmp_path / "figures.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mammoclip_jax.benchmark",
            "--mode=prepare",
            f"--data={images}",
            "--height=32",
            "--width=24",
            "--repeats=1",
            f"--json={file}",
            f"--csv={tmp_path / 'rows.csv'}",
        ],
        check=True,
    )
    figures = json.loads(file.read_text())
    assert [row["workers"] for row in figures["rows"]] == [1, 1, 2, 2] and "--mode=prepare" in figures["command"]
    assert (tmp_path / "rows.csv").read_text().startswith("function,workers,images_per_second,p10,p90,ratio,scaling")


def test_the_straightforward_loop_crops_and_scales(images):
    made = cv2.imdecode(np.frombuffer(straightforward(images / "0.png", 32, 24), np.uint8), cv2.IMREAD_UNCHANGED)
    assert made.shape == (32, 24) and made.dtype == np.uint8 and made[16, 0] > 100 and made[0, 23] < 60


def test_timing_takes_turns():
    calls = []
    seconds = timing.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "ab" * 4 and all(len(values) == 3 for values in seconds.values())
    assert timing.rates(np.array([1.0, 2.0, 4.0]), 8)["images_per_second"] == 4.0


def test_wrong_input_is_said(tmp_path):
    with pytest.raises(UserError, match="no mode 'speed'"):
        benchmark.benchmark("speed")
    with pytest.raises(UserError, match="no image"):
        benchmark.benchmark("codecs", str(tmp_path))


TINY = Path(__file__).parent / "configs" / "tiny.py"


def command(*arguments, which="training", **environment):
    """What the command prints for the tiny config."""
    done = subprocess.run(
        [sys.executable, "-m", "mammoclip_jax.benchmark", f"--config={TINY}:{which}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_step_is_measured_on_more_and_more_devices(tmp_path):
    shown = command(
        "--mode=step",
        "--images=2",
        "--height=64",
        "--width=48",
        "--steps=3",
        "--warm_up=1",
        "--devices=1,2",
        "--text_lengths=9,5",
        "--vocab_size=600",
        "--config.train.micro_batches.image=2",
        f"--json={tmp_path}/figures.json",
        f"--csv={tmp_path}/rows.csv",
        f"--plot={tmp_path}/rows.png",
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    one, two = figures["rows"]
    assert (one["devices"], one["images"]) == (1, 2) and (two["devices"], two["images"]) == (2, 4)
    assert two["model_gflops"] == pytest.approx(2 * one["model_gflops"], rel=1e-3)
    for row in (one, two):
        assert row["work"] == "pretrain" and row["device_kind"] == "cpu" and row["mfu"] is None
        assert row["p10"] <= row["seconds"] <= row["p90"]
        rate = row["images"] / row["seconds"] / row["devices"]
        assert row["images_per_second_per_device"] == pytest.approx(rate, rel=1e-2)
        assert row["compiled_gflops"] > 0 and row["compiled_gbytes"] > 0 and 0 < row["peak_gib"] < 8
        assert row["peak_of"].startswith("process since") and row["compile_seconds"] > 0
        assert row["micro_batches"] == "2/1"
        assert row["data_wait_share"] is None and row["malloc"].startswith("glibc.malloc.hugetlb=1")
    assert figures["images_per_second"] == two["images_per_second"] and figures["versions"]["jax"]
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["devices"] for row in rows] == ["1", "2"] and rows[0].keys() == one.keys()
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert "share its cores" in shown and f"again: {figures['command']}" in shown


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["input", "end_to_end"])
def test_real_data_are_waited_for(tmp_path, mode):
    command(
        f"--mode={mode}", "--steps=2", "--warm_up=1", f"--workdir={tmp_path}/run", f"--json={tmp_path}/figures.json"
    )
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert (row["work"], row["images"], row["height"], row["width"]) == (mode, 8, 64, 48)
    if mode == "end_to_end":
        assert 0 <= row["data_wait_share"] <= 1 and row["model_gflops"] > 0
    else:
        assert row["data_wait_share"] is None and row["model_gflops"] is None and row["images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parity
def test_the_image_tower_is_compared_with_pytorch(tmp_path):
    pytest.importorskip("efficientnet_pytorch")
    shown = command(
        "--against=torch",
        "--work=image_tower",
        "--images=2",
        "--height=64",
        "--width=48",
        "--steps=2",
        "--warm_up=1",
        "--peers=folded,bf16",
        "--also=model.image.scan=True",
        "--config.image.channels=3",
        "--config.model.image.width=0.5",
        f"--json={tmp_path}/figures.json",
        which="efficientnet",
        OMP_WAIT_POLICY="PASSIVE",
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    ours, scanned, folded, bf16 = figures["rows"]
    assert [row["side"] for row in figures["rows"]] == ["jax", "model.image.scan=True", "folded", "bf16"]
    assert (ours["scan"], scanned["scan"], folded["scan"]) == (False, True, None) and bf16["work"] == "image_tower"
    assert figures["time_ratio"] == {row["side"]: row["time_ratio"] for row in (folded, bf16)}
    assert figures["memory_ratio"]["bf16"] == bf16["memory_ratio"] and figures["images_per_second"] > 0
    assert set(figures["ours"]) == {"jax", "model.image.scan=True"} and ours["fastest_peer"] in ("folded", "bf16")
    assert "parameters: " in shown and f"{ours['time_of_fastest']} of the time of {ours['fastest_peer']}" in shown


def test_rows_are_added_to_a_csv_file_with_the_same_columns(tmp_path):
    path = tmp_path / "rows.csv"
    for name in ("a", "b"):
        benchmark.write_csv(path, [{"name": name, "seconds": 1.5}])
    assert path.read_text().split() == ["name,seconds", "a,1.5", "b,1.5"]
    with pytest.raises(UserError, match="rows.csv has other columns: name,seconds"):
        benchmark.write_csv(path, [{"name": "c"}])


def test_what_rows_have_in_common_stands_once_below_a_wide_table():
    wide = [{"devices": devices, "mfu": None} | {f"column{i}": i for i in range(12)} for devices in (1, 2)]
    lines = benchmark.table(wide).splitlines()
    assert lines[:4] == ["| devices |", "| ------: |", "|       1 |", "|       2 |"]
    assert lines[4:] == ["", *(f"column{i}: {i}" for i in range(12))]
    assert "mfu" not in benchmark.table(wide)


def test_a_plot_is_of_rates_or_of_sides(tmp_path):
    for name, rows in (
        ("devices", [{"devices": n, "images_per_second": 2.0 * n} for n in (1, 2)]),
        ("codecs", [{"codec": "cv2 png", "decode_images_per_second": 2.0, "decode_p10": 1.0, "decode_p90": 3.0}]),
        ("sides", [{"side": "jax", "seconds": 1.0}, {"side": "tuned", "seconds": 2.0}]),
    ):
        plot.save(tmp_path / f"{name}.png", rows, "title")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mode=step"], "--mode=step measures the training of a config"),
        (["--against=torch"], "--against measures the training of a config"),
        ([], "give a --mode"),
        (["--mode=device", "--limit=3"], "--mode=device does not read --limit"),
        (["--mode=device", "--small", "--height=8"], "--mode=device --small does not read --height"),
        (["--mode=codecs", "--small"], "--small belongs to --mode=device"),
    ],
)
def test_what_is_missing_is_said(arguments, message):
    done = subprocess.run([sys.executable, "-m", "mammoclip_jax.benchmark", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
