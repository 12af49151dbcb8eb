"""The evaluator with a model that computes: the same numbers on 1 and 8 devices, and random weights beside them."""

import jax
import pytest
from fakes import SHAPE, FakeDataset
from tiny_subject import RESNET, VIT, meta_of, variables_of

from mammoclip_jax.evaluation.evaluators.saliency import saliency
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.training.mesh import make_mesh

PROMPTS = {"mass": {"positive": "a mass", "negative": "no mass"}}


def scored(encoder, devices, batch_size, **options):
    class Model(DualEncoder):
        def _fresh(self, key):  # the encoder's own takes long to compile; test_explained.py has it
            return variables_of(encoder, seed=1)

    size, variables = dict(zip(("height", "width"), SHAPE)), variables_of(encoder)
    model = Model(
        {"batch_stats": {}} | variables,
        meta_of(encoder) | {"preprocessing": size},
        1,
        batch_size=batch_size,
        mesh=make_mesh({"data": devices}, jax.devices()[:devices]),
    )
    return saliency(model, FakeDataset(5), prompts=PROMPTS, labels=("mass",), resamples=50, gallery=0, **options)


def test_the_scores_are_the_same_on_1_and_8_devices():
    options = dict(method="grad_cam", stage="stage1", deletion_steps=3, sanity=True, cascade=("stage1",))
    found, other = (scored(RESNET, *how, **options).metrics for how in ((8, 8), (1, 3)))
    assert found.keys() == other.keys() and "mass/ssim_above_stage1" in found
    for name, entry in found.items():
        for field in ("value", "low", "high"):
            expected = entry[field] if entry[field] is None else pytest.approx(entry[field], abs=1e-6, rel=1e-6)
            assert other[name][field] == expected, (name, field)
    assert found["mass/energy_ratio"]["value"] != found["mass/energy_ratio_randomised"]["value"]
    assert found["mass/deletion_auc"]["value"] is not None
    assert -1 < found["mass/rank_correlation_randomised"]["value"] < 0.99


def test_a_transformer_without_batch_statistics_is_randomised_too():
    found = scored(VIT, 8, 8, method="attention_rollout", cascade=("block1",))
    assert "attention rollout of the cosine" in found.protocol
    assert found.metrics["mass/rank_correlation_above_block1"]["value"] < 1
