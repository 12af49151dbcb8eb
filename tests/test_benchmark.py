"""The benchmark command on tiny images: every mode gives its rows; no figure is judged here."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mammoclip_jax import benchmark
from mammoclip_jax.benchmarks import timing
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


@pytest.mark.parametrize("mode", ["codecs", "input"])
def test_a_mode_compares_each_codec_with_png(images, mode):
    figures = benchmark.benchmark(mode, str(images), limit=2, height=32, width=24, repeats=2)
    assert figures["data"].startswith("2 files") and figures["versions"]["numpy"] == np.__version__
    rows = figures["rows"]
    assert {"raw", "zstd", "png", "delta"} <= {row["codec"] for row in rows}
    assert {row["bits"] for row in rows} == {8, 16}
    ratio = {"codecs": "decode_ratio", "input": "ratio"}[mode]
    assert all(row[ratio] > 0 for row in rows)
    assert [row[ratio] for row in rows if "cv2" in row["codec"]] == [1.0, 1.0]
    assert len(benchmark.table(rows).splitlines()) == len(rows) + 1


@pytest.mark.slow
def test_prepare_is_compared_with_the_straightforward_loop(images, tmp_path):
    file = tmp_path / "figures.json"
    subprocess.run([sys.executable, "-m", "mammoclip_jax.benchmark", "--mode=prepare", f"--data={images}",
                    "--height=32", "--width=24", "--repeats=1", f"--json={file}", f"--csv={tmp_path / 'rows.csv'}"],
                   check=True)
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
