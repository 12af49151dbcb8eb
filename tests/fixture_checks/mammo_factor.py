"""Mammo-FActOR: dictionary, adapters, channel and image scores, loss and gradients at both temperatures, the overflow."""

import jax
import jax.numpy as jnp
import numpy as np

from fixture_checks import factor_regions, placed
from mammoclip_jax.inference.prompts import unit
from mammoclip_jax.losses.attributes import attribute_contrast
from mammoclip_jax.models.attributes import AttributeModel

STAGE = "map"
TEMPERATURES = {"t07": 0.07, "t007": 0.007}
TOLERANCES = [
    ("attributes", 1e-12, 1e-6),
    ("region_right", 1e-10, 1e-5),
    (r"t0+7_\w+_scores", 1e-9, 1e-4),
    (r"t0+7_loss", 1e-9, 1e-5),
    (r"t0+7_loss_d\w+", 1e-8, 1e-4),
    ("overflow_right", 1e-7, 1e-5),
    *factor_regions.TOLERANCES,
]


def values(fixture, mesh):
    model = AttributeModel(None, (STAGE,), 2, fixture["attributes"].shape[1])
    variables = {
        "params": {f"adapters_{STAGE}": parameters(fixture)},
        "batch_stats": {"attributes": {"dictionary": fixture["attributes"]}},
    }
    maps, labels, there = placed(mesh, np.moveaxis(fixture["map"], 1, 3), fixture.exact("labels"))
    rows = len(fixture["map"])
    found = {}
    if mesh.size == 1:
        means = [fixture[f"sentences_{k}"].mean(axis=0) for k in range(2)]
        found["attributes"] = unit(np.stack(means))
        vectors = model.apply(variables, maps, method=lambda module, x: module.adapters[STAGE](x))
        found["region_right"] = np.moveaxis(np.asarray(vectors), 1, 2)[:rows]
        found["region_released"] = found["region_right"]
        # A positive of cosine .7 and a negative of .1.
        cosines = jnp.asarray([[0.7], [0.1]], fixture.dtype)
        loss, _ = attribute_contrast(cosines, jnp.asarray([[1.0], [0.0]]), jnp.ones((2, 1), bool))
        found["overflow_right"] = loss
        found |= factor_regions.values(fixture)
    for name, temperature in TEMPERATURES.items():
        scores, value, (slopes, of_maps) = jax.device_get(_scored(model, variables, maps, labels, there, temperature))
        found |= {
            f"{name}_channel_scores": scores[:rows] / temperature,
            f"{name}_image_scores": scores[:rows].max(axis=1) / temperature,
            f"{name}_loss": value,
            f"{name}_loss_dmap": np.moveaxis(of_maps, 3, 1)[:rows],
        }
        slopes = slopes["params"][f"adapters_{STAGE}"]
        for k in range(2):
            for place, layer in ((0, "first"), (2, "second")):
                found[f"{name}_loss_d{k}_{place}_weight"] = slopes[layer]["kernel"][k].T
                found[f"{name}_loss_d{k}_{place}_bias"] = slopes[layer]["bias"][k]
    # At the lower temperature the released form has the right value here, to the last digit.
    found["t07_loss_released"] = found["t07_loss"]
    return found


def parameters(fixture):
    """The adapters of the file as ours: kernels [A, in, out]."""
    return {
        layer: {
            "kernel": np.stack([fixture[f"adapter_{k}_{place}_weight"].T for k in range(2)]),
            "bias": np.stack([fixture[f"adapter_{k}_{place}_bias"] for k in range(2)]),
        }
        for place, layer in ((0, "first"), (2, "second"))
    }


def _scored(model, variables, maps, labels, there, temperature):
    """(cosines of the channels, loss, its gradients by the parameters and the maps)."""

    def loss(variables, maps):
        cosines = model.apply(variables, {STAGE: maps}, method="image_scores")
        known = jnp.broadcast_to(there[:, None], labels.shape)
        return attribute_contrast(cosines, labels, known, temperature=temperature)[0]

    def all_of_it(variables, maps):
        scores = model.apply(variables, {STAGE: maps}, method="channel_scores")[STAGE]
        return scores, *jax.value_and_grad(loss, argnums=(0, 1))(variables, maps)

    return jax.jit(all_of_it)(variables, maps)
