"""medclip.npz: soft targets from labels, as released and with cosines; similarity by fields."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from fixture_checks import placed
from mammoclip_jax.losses.objectives import unit
from mammoclip_jax.losses.soft_targets import Labels, cosine, dot, fields, soft_info_nce

OFFERED = r"\w+"  # the released loss is one of ours
TOLERANCES = [
    (r"S_released", 0, 0),
    (r"S_cosine|field_similarity", 1e-12, 1e-5),
    (r"\w+_d(v|t|log_scale)", 1e-9, 1e-5),
    (r"\w+", 1e-10, 1e-5),
]
UNIFORM = {"unlabelled_pair": False}
TAU = {"01": 0.1, "02": 0.2, "025": 0.25, "1": 1.0}


def values(fx, mesh):
    v, t, t_aug, of_image, of_text, valid, rows = placed(
        mesh, *(fx[name] for name in ("v", "t", "t_aug", "labels_image", "labels_text", "row_valid"))
    )

    @functools.cache
    def program(similarity, temperature, pair=0.0, unlabelled_pair=True):
        def loss(v, t, log_scale, of_image, of_text, mask):
            labels = (Labels(x, jnp.ones(x.shape, bool)) for x in (of_image, of_text))
            contrast = soft_info_nce(
                unit(v),
                unit(t),
                jnp.exp(log_scale),
                *labels,
                similarity=similarity,
                temperature=temperature,
                pair=pair,
                unlabelled_pair=unlabelled_pair,
                query_mask=mask,
                key_mask=mask,
                mesh=mesh,
            )
            return (contrast.forward + contrast.backward) / 2

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

    def run(similarity, temperature, *, texts=t, images=of_image, labels=of_text, mask=rows, **options):
        made = program(similarity, temperature, **options)
        return made(v, texts, fx["log_scale"], images, labels, mask)

    def with_gradients(name, result):
        loss, (dv, dt, dscale) = result
        n = len(fx["v"])
        return {name: loss, f"{name}_dv": dv[:n], f"{name}_dt": dt[:n], f"{name}_dlog_scale": dscale}

    found = with_gradients("loss_released", run(dot, 1.0, **UNIFORM))
    augmented = run(dot, 1.0, texts=t_aug, **UNIFORM)[0]
    found["loss_released_aug"] = (found["loss_released"] + augmented) / 2
    for name in fx.arrays:
        if match := re.fullmatch(r"loss_cos_tau(\d+)", name):
            result = run(cosine, TAU[match[1]], **UNIFORM)
            found |= with_gradients(name, result) if f"{name}_dv" in fx.arrays else {name: result[0]}
    apart, _ = placed(mesh, np.eye(len(fx["v"]), dtype=fx.dtype))
    found |= {
        "loss_mix_alpha05": run(cosine, 0.2, pair=0.5, **UNIFORM)[0],
        "loss_mix_alpha1": run(cosine, 0.2, pair=1.0, **UNIFORM)[0],
        "loss_unlabelled_pair": run(cosine, 0.2)[0],
        "loss_cos_tau02_masked": run(cosine, 0.2, mask=rows & valid, **UNIFORM)[0],
        "loss_identity_tau0": run(cosine, 1e-3, images=apart, labels=apart, **UNIFORM)[0],
    }
    return found | (similarities(fx) if mesh.size == 1 else {})


def similarities(fx):
    image, text = (Labels(x, np.ones(x.shape, bool)) for x in (fx["labels_image"], fx["labels_text"]))
    cosines = cosine(image, text)
    of_fields = (Labels(fx[f"field_values_{side}"], fx[f"field_known_{side}"]) for side in ("image", "text"))
    ranges = np.where(fx["field_ordinal"], fx["field_ranges"], 0)
    return {
        "S_released": dot(image, text),
        "S_cosine": cosines,
        "target_rows_tau02": jax.nn.softmax(cosines / 0.2, axis=1),
        "target_cols_tau02": jax.nn.softmax(cosines.T / 0.2, axis=1),
        "field_similarity": fields(*of_fields, tuple(fx["field_weights"].tolist()), tuple(ranges.tolist())),
    }
