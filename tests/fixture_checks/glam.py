"""glam.npz: the geometry-guided term of GLAM, with both poolers, and with attention over all positions."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fixture_checks import placed
from mammoclip_jax import losses
from mammoclip_jax.models.cross_view import CrossView
from mammoclip_jax.types import Embeddings

TOLERANCES = [(r"\w+_d(cc|mlo|log_scale)", 1e-8, 1e-5), (r"\w+", 1e-9, 1e-5)]
CASES = {"pool": {"pooling": "average"}, "attn": {"pooling": "attention"}, "all": {"columns": False}}
HEADS, POOLER_HEADS = 2, 8


def values(fx, mesh):
    cc, mlo, pair_valid, rows = placed(mesh, fx["cc"], fx["mlo"], fx["pool_pair_valid"])
    found, n, runs = {}, len(fx["cc"]), {name: case(fx, name, mesh) for name in CASES}
    for name, run in runs.items():
        (total, parts), (dcc, dmlo, dscale) = run(cc, mlo, fx["log_scale"], rows)
        positions = {f"{name}_pos": parts["position"]} if "position" in parts else {}
        found |= positions | {
            f"{name}_view": parts["view"],
            f"{name}_total": total,
            f"{name}_dcc": dcc[:n],
            f"{name}_dmlo": dmlo[:n],
            f"{name}_dlog_scale": dscale,
        }
        if name == "pool":
            (_, masked), _ = run(cc, mlo, fx["log_scale"], rows & pair_valid)
            found |= {"pool_view_masked": masked["view"], "pool_pos_masked": masked["position"]}
    return found | (permuted(fx, mesh, runs) if mesh.size == 1 else {})


def permuted(fx, mesh, runs):
    """With the patches in another order."""

    def run(name, cc, mlo):
        cc, mlo, rows = placed(mesh, cc, mlo)
        return runs[name](cc, mlo, fx["log_scale"], rows)[0]

    cc, mlo = fx["cc"], fx["mlo"]
    order = np.random.default_rng(0).permutation(cc.shape[1])
    shuffled, _ = run("attn", cc[:, order], mlo[:, order])
    # The file does not say which permutation of the rows of mega-patches: it must be one of them.
    size = cells(fx)
    by_row = mlo.reshape(len(mlo), size, -1, mlo.shape[-1])
    views = [
        run("pool", cc, by_row[:, order].reshape(mlo.shape))[1]["view"]
        for order in map(list, itertools.permutations(range(size)))
    ]
    nearest = min(views, key=lambda view: abs(view - fx["pool_view_mlo_rows_permuted"]))
    return {"attn_total_patches_permuted": shuffled, "pool_view_mlo_rows_permuted": nearest}


def cells(fx) -> int:
    """Mega-patches along a side."""
    return math.isqrt(len(fx["attn_merge_patch1_query"]))


def case(fx, name, mesh):
    """(cc, mlo, log_scale, mask) -> ((total, metrics), gradients of the first three)."""
    side, params = math.isqrt(fx["cc"].shape[1]), parameters(fx, name)
    head = CrossView(
        "last", cell=(side // cells(fx),) * 2, heads=HEADS, pooler_heads=POOLER_HEADS, dtype=fx.dtype, **CASES[name]
    )
    (term,) = losses.build({"geometry": {"positions": 0.0 if name == "all" else 1.0}})

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(cc, mlo, log_scale, mask):
        maps = jnp.stack([cc, mlo], 1).reshape(len(cc), 2, side, side, -1)
        inputs = {"image/last": maps, "mask": mask, "view_mask": jnp.ones((len(cc), 2), bool)}
        made = head.apply({"params": params | {"logit_scale": log_scale}}, inputs, True)
        named = {f"cross_view/{part}": value for part, value in made.items()}
        return term.function(Embeddings(None, None, None, None, named), {}, mesh)

    return run


def parameters(fx, name) -> dict:
    def norm(prefix):
        return {"scale": fx[f"{prefix}_weight"], "bias": fx[f"{prefix}_bias"]}

    def attention(prefix):
        """in_proj is [Wq; Wk; Wv], each [out, in]."""
        parts = zip(np.split(fx[f"{prefix}_in_proj_weight"], 3), np.split(fx[f"{prefix}_in_proj_bias"], 3))
        found = {
            key: {"kernel": weight.T, "bias": bias} for key, (weight, bias) in zip(("query", "key", "value"), parts)
        }
        return found | {"out": {"kernel": fx[f"{prefix}_out_proj_weight"].T, "bias": fx[f"{prefix}_out_proj_bias"]}}

    found = {"norm": norm(f"{name}_patch_ln")}
    for i in (1, 2):
        found[f"attention{i}"] = attention(f"{name}_view_attn{i}")
        if CASES[name].get("pooling") == "attention":
            prefix = f"{name}_merge_patch{i}"
            found[f"pooler{i}"] = {
                "query": fx[f"{prefix}_query"],
                "query_norm": norm(f"{prefix}_ln_q"),
                "key_norm": norm(f"{prefix}_ln_k"),
                "attention": attention(f"{prefix}_attn"),
            }
    return found
