"""mama.npz: the terms, heads and schedule of MaMA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fixture_checks import placed
from mammoclip_jax import losses
from mammoclip_jax.config import defaults
from mammoclip_jax.losses.local_alignment import local_scores
from mammoclip_jax.losses.objectives import unit
from mammoclip_jax.models.pooling import pool
from mammoclip_jax.models.vectors import NormalisedMLP
from mammoclip_jax.training.optimizer import schedule
from mammoclip_jax.training.step import total_loss
from mammoclip_jax.types import Embeddings

TOLERANCES = [
    (r"lr_values", 1e-12, 1e-11),  # of 4e-5, of which float32 has seven digits
    (r"pool_right", 0, 0),
    (r"sla_b_valid", 0, 0),
    (r"total_step_\d+|head_\w+|simclr_\w+|\w+_d[a-z]\w*", 1e-9, 1e-5),
    (r"\w+", 1e-10, 1e-5),
]
STEP = 8000  # from which on MaMA's late terms count


def values(fx, mesh):
    found = heads(fx) | totals(fx) | {"lr_values": rates(fx)} | pooling(fx) if mesh.size == 1 else {}
    return found | of_views(fx, mesh) | between_views(fx, mesh) | local(fx, mesh)


def term(name, **options):
    (built,) = losses.build({name: options})
    return built.function


def embeddings_of(v, vt, t, log_scale, **named):
    return Embeddings(jnp.stack([unit(v), unit(vt)], 1), unit(t)[:, None], jnp.exp(log_scale), None, named)


def of_views(fx, mesh):
    v, vt, t, valid, rows = placed(mesh, fx["v"], fx["vt"], fx["t"], fx["row_valid"])

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 2, 3), has_aux=True)
    def run(v, vt, t, log_scale, mask):
        embeddings = embeddings_of(v, vt, t, log_scale)
        first, second = (term("view_text", view=view)(embeddings, {"mask": mask}, mesh)[0] for view in range(2))
        return first, second

    (first, second), (dv, dt, dscale) = run(v, vt, t, fx["log_scale"], rows)
    (masked, _), _ = run(v, vt, t, fx["log_scale"], rows & valid)
    n = len(fx["v"])
    return {
        "L_vt": first,
        "L_vt_dv": dv[:n],
        "L_vt_dt": dt[:n],
        "L_vt_dlog_scale": dscale,
        "L_vtt": second,
        "L_vt_masked": masked,
        "L_vt_local4": first,
    }


def between_views(fx, mesh):
    z0, z1, valid, rows = placed(mesh, fx["z0"], fx["z1"], fx["row_valid"])

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(z0, z1, mask, temperature):
        named = {"simclr/vectors": jnp.stack([z1, z0], 1), "simclr/there": jnp.stack([mask, mask], 1)}
        return term("nt_xent", temperature=temperature)(Embeddings(None, None, None, None, named), {}, mesh)[0]

    half, sharp = fx.dtype.type(0.5), fx.dtype.type(0.07)
    loss, (dz0, dz1) = run(z0, z1, rows, half)
    n = len(fx["z0"])
    return {
        "L_vv": loss,
        "L_vv_dz0": dz0[:n],
        "L_vv_dz1": dz1[:n],
        "L_vv_local4": loss,
        "L_vv_masked": run(z0, z1, rows & valid, half)[0],
        "L_vv_tau007": run(z0, z1, rows, sharp)[0],
    }


def local(fx, mesh):
    patches, sentences, rows = placed(mesh, fx["sla_patches"], fx["sla_sentences"])
    n = len(fx["sla_patches"])

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 2, 4), has_aux=True)
    def run(patches, patch_mask, sentences, sentence_mask, log_scale):
        named = sla_named(patches, patch_mask, sentences, sentence_mask, log_scale)
        loss, text_only = (
            term("local_alignment", patches_to_sentences=both)(Embeddings(None, None, None, None, named), {}, mesh)[0]
            for both in (True, False)
        )
        valid = sentence_mask.any(axis=1)
        scores = [
            jnp.where(valid[:, None] & valid, x, 0)[:n, :n]
            for x in local_scores(patches, patch_mask, sentences, sentence_mask, mesh=mesh)
        ]
        return loss, (text_only, *scores, valid[:n])

    def case(sentence_mask, patch_mask=None):
        if patch_mask is None:
            patch_mask = np.ones(fx["sla_patches"].shape[:2], bool)
        sentence_mask, patch_mask, _ = placed(mesh, sentence_mask, patch_mask)
        (loss, more), gradients = run(
            patches, patch_mask, sentences, sentence_mask & rows[:, None], fx["sla_log_scale"]
        )
        return loss, *more, gradients[0][:n], gradients[1][:n], gradients[2]

    found = {}
    names = ("loss", "loss_text_only", "A", "B", "valid", "dpatches", "dsentences", "dlog_scale")
    of_case = {"a": names[:4] + names[5:], "b": names[:1] + names[2:], "c": ("loss", "A", "B")}
    masks = {"a": (fx["sla_a_mask"],), "b": (fx["sla_b_mask"],), "c": (fx["sla_b_mask"], fx["sla_c_patch_mask"])}
    for letter, wanted in of_case.items():
        made = dict(zip(names, case(*masks[letter]), strict=True))
        found |= {f"sla_{letter}_{name}": made[name] for name in wanted}
    return found


def sla_named(patches, patch_mask, sentences, sentence_mask, log_scale):
    parts = {
        "patches": patches[:, None],
        "patch_mask": patch_mask[:, None],
        "sentences": sentences[:, None],
        "sentence_mask": sentence_mask[:, None],
        "logit_scale": jnp.exp(log_scale),
    }
    return {f"local/{name}": value for name, value in parts.items()}


def heads(fx):
    """Kernels are [in, out] here, [out, in] in torch."""

    def dense(prefix, number):
        kernel = fx[f"{prefix}{number}_weight"]
        bias = {"bias": fx[f"{prefix}{number}_bias"]} if f"{prefix}{number}_bias" in fx.arrays else {}
        return {"kernel": kernel.reshape(kernel.shape[:2]).T} | bias

    def norm(prefix, number):
        return {"scale": fx[f"{prefix}{number}_weight"], "bias": fx[f"{prefix}{number}_bias"]}

    def apply(params, affine, x, mask, train):
        hidden, dim = (params[name]["kernel"].shape[1] for name in ("hidden", "out"))
        head = NormalisedMLP(hidden, dim, bias="bias" in params["out"], affine=affine, dtype=fx.dtype)
        stats = {
            name: {"mean": np.zeros(width, fx.dtype), "var": np.ones(width, fx.dtype)}
            for name, width in (("hidden_norm", hidden), ("out_norm", dim))
        }
        out, updated = head.apply({"params": params, "batch_stats": stats}, x, mask, train, mutable=["batch_stats"])
        return out, updated["batch_stats"]["hidden_norm"]

    local = {"hidden": dense("head_", 0), "hidden_norm": norm("head_", 1), "out": dense("head_", 3)}
    x, everywhere = fx["head_x"], np.ones(fx["head_mask"].shape, bool)
    trained, stats = apply(local, False, x, everywhere, True)
    layers = "simclr_layers_"
    simclr = {
        "hidden": dense(layers, 0),
        "hidden_norm": norm(layers, 1),
        "out": dense(layers, 3),
        "out_norm": norm(layers, 4),
    }
    return {
        "head_eval": apply(local, False, x, everywhere, False)[0],
        "head_train": trained,
        "head_running_mean1": stats["mean"],
        "head_running_var1": stats["var"],
        "head_train_masked": apply(local, False, x, fx["head_mask"], True)[0],
        "simclr_train": apply(simclr, True, fx["v"], np.ones(len(fx["v"]), bool), True)[0],
    }


def totals(fx):
    terms = losses.build(
        {
            "view_text": {},
            "nt_xent": {"start_step": STEP},
            "local_alignment": {"start_step": STEP},
            "partner": {"kind": "view_text", "view": 1, "start_step": STEP},
        }
    )
    everywhere = np.ones(fx["sla_patches"].shape[:2], bool)
    named = {"simclr/vectors": jnp.stack([fx["z1"], fx["z0"]], 1), "simclr/there": np.ones((len(fx["z0"]), 2), bool)}
    named |= sla_named(fx["sla_patches"], everywhere, fx["sla_sentences"], fx["sla_a_mask"], fx["sla_log_scale"])
    embeddings = embeddings_of(fx["v"], fx["vt"], fx["t"], fx["log_scale"], **named)
    run = jax.jit(lambda step: total_loss(terms, embeddings, {}, None, step)[0])
    return {f"total_step_{step}": run(step) for step in (STEP - 1, STEP)}


def rates(fx):
    config = defaults().train
    config.update(lr=4e-5, min_lr=1e-8, warmup_steps=4000, steps=40_000, schedule="cosine")
    return np.array([schedule(config)(step) for step in fx["lr_steps"]])


def pooling(fx):
    """Each state is the token's own place."""
    ids = fx["pool_ids"]
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=fx.dtype)[:, None], (*ids.shape, 1))
    found = pool(places, ids, ids != 0, "eos")[:, 0]
    return {"pool_right": found, "pool_released": found}
