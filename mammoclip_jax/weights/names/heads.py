"""The heads of MaMA's and GLAM's loss terms in their state dicts; GLAM has MaMA's towers (XYPB/MaMA, XYPB/GLAM: model.py).

img_encoder_q.local_embed.head.N            "local" of patches; of sentences below text_encoder_q; local_scale
simclr_proj.layers.N                        "simclr"
view_attn1  view_attn2  patch_ln            "cross_view"; patch_scale; with its pooler of free queries
merge_patch1  merge_patch2                  too. 1 is of CC, 2 of MLO
"""

from collections.abc import Mapping

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.naming import TRACKED, Leaf, State, from_torch, to_state

# An array that a head always has.
SIGNS = {
    "local": "img_encoder_q.local_embed.head.0.weight",
    "simclr": "simclr_proj.layers.0.weight",
    "cross_view": "view_attn1.in_proj_weight",
}
POOLER = "merge_patch1.query"  # of the cross-view head with free queries


def leaves(options: Mapping[str, Mapping]) -> dict[str, Leaf]:
    """Our path, "params/heads/local/patches/hidden/kernel", and theirs, of the heads of config.model.heads."""
    table: dict[str, Leaf] = {}
    if "local" in options:
        table |= _mlp("local/patches", "img_encoder_q.local_embed.head.", "pointwise1d", bias=True, affine=False)
        table |= _mlp("local/sentences", "text_encoder_q.local_embed.head.", "pointwise1d", bias=True, affine=False)
        table["params/heads/local/logit_scale"] = Leaf("local_scale")
    if "simclr" in options:
        table |= _mlp("simclr/projection", "simclr_proj.layers.", "dense", bias=False, affine=True)
    if "cross_view" in options:
        table |= _attention("cross_view/attention1", "view_attn1.") | _attention("cross_view/attention2", "view_attn2.")
        table |= _norm("cross_view/norm", "patch_ln.")
        table["params/heads/cross_view/logit_scale"] = Leaf("patch_scale")
        poolers = (("pooler1", "merge_patch1."), ("pooler2", "merge_patch2."))
        for ours, theirs in poolers if options["cross_view"].get("pooling") == "attention" else ():
            table[f"params/heads/cross_view/{ours}/query"] = Leaf(f"{theirs}query")
            table |= _attention(f"cross_view/{ours}/attention", f"{theirs}attn.")
            table |= _norm(f"cross_view/{ours}/query_norm", f"{theirs}ln_q.")
            table |= _norm(f"cross_view/{ours}/key_norm", f"{theirs}ln_k.")
    return table


def read(state: State) -> tuple[dict[str, np.ndarray], dict[str, dict], set[str]]:
    """({our path: array}, config.model.heads, keys that were used, counts of batches among them).

    Raises:
        UserError: a head is there in part.
    """
    options: dict[str, dict] = {name: {} for name, sign in SIGNS.items() if sign in state}
    if "cross_view" in options:
        options["cross_view"] = {"stage": "last", "pooling": "attention" if POOLER in state else "average"}
    table = leaves(options)
    if missing := sorted({leaf.key for leaf in table.values()} - set(state)):
        raise UserError(f"the file has no {missing[0]} beside the rest of that head: is it a whole checkpoint?")
    arrays = {path: from_torch(leaf, state[leaf.key]) for path, leaf in table.items()}
    arrays |= {path: array.reshape(()) for path, array in arrays.items() if path.endswith("/logit_scale")}
    for name, path in (("local", "local/patches"), ("simclr", "simclr/projection")):
        if name in options:
            options[name]["hidden"], options[name]["dim"] = arrays[f"params/heads/{path}/out/kernel"].shape
    if "local" in options:
        options["local"]["stage"] = "last"
    used = {leaf.key for leaf in table.values()}
    counts = {f"{key.removesuffix('running_mean')}{TRACKED}" for key in used if key.endswith("running_mean")}
    return arrays, options, used | counts & set(state)


def write(arrays: Mapping[str, np.ndarray], options: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The way back from `read`: the state dict of the heads of config.model.heads."""
    return to_state(leaves(options), arrays)


def _mlp(path: str, prefix: str, kernel: str, bias: bool, affine: bool) -> dict[str, Leaf]:
    """`vectors.NormalisedMLP`: their layers 0 and 3 are linear, 1 and 4 batch norms."""
    table = {}
    for layer, at, scaled in (("hidden", 0, True), ("out", 3, affine)):
        table[f"params/heads/{path}/{layer}/kernel"] = Leaf(f"{prefix}{at}.weight", kernel)
        if bias:
            table[f"params/heads/{path}/{layer}/bias"] = Leaf(f"{prefix}{at}.bias")
        if scaled:
            table |= _norm(f"{path}/{layer}_norm", f"{prefix}{at + 1}.")
        for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
            table[f"batch_stats/heads/{path}/{layer}_norm/{ours}"] = Leaf(f"{prefix}{at + 1}.{theirs}")
    return table


def _norm(path: str, prefix: str) -> dict[str, Leaf]:
    return {f"params/heads/{path}/{ours}": Leaf(prefix + key) for ours, key in (("scale", "weight"), ("bias", "bias"))}


def _attention(path: str, prefix: str) -> dict[str, Leaf]:
    """`cross_view.CrossAttention`: query, key and value are parts of one array of torch's MultiheadAttention."""
    table = {
        f"params/heads/{path}/out/kernel": Leaf(f"{prefix}out_proj.weight", "dense"),
        f"params/heads/{path}/out/bias": Leaf(f"{prefix}out_proj.bias"),
    }
    for i, part in enumerate(("query", "key", "value")):
        table[f"params/heads/{path}/{part}/kernel"] = Leaf(f"{prefix}in_proj_weight", "dense", (i, 3))
        table[f"params/heads/{path}/{part}/bias"] = Leaf(f"{prefix}in_proj_bias", "same", (i, 3))
    return table
