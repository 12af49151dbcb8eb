"""The heads of MaMA's and GLAM's loss terms in their state dicts; GLAM has MaMA's towers (XYPB/MaMA, XYPB/GLAM: model.py).

img_encoder_q.local_embed.head.N            "local" of patches; of sentences below text_encoder_q; local_scale
simclr_proj.layers.N                        "simclr"
view_attn1  view_attn2  patch_ln            "cross_view"; patch_scale; with its pooler of free queries
merge_patch1  merge_patch2                  too. 1 is of CC, 2 of MLO
"""

from collections.abc import Mapping

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.naming import Leaf, State, from_torch, to_torch

TRACKED = "num_batches_tracked"  # beside every running mean of PyTorch: a count that nothing here needs
# An array that a head always has.
SIGNS = {
    "local": "img_encoder_q.local_embed.head.0.weight",
    "simclr": "simclr_proj.layers.0.weight",
    "cross_view": "view_attn1.in_proj_weight",
}
POOLER = "merge_patch1.query"  # of the cross-view head with free queries


def leaves(state: State) -> dict[str, Leaf]:
    """Our path, "params/heads/local/patches/hidden/kernel", and theirs, of the heads that the file has."""
    there = {name for name, sign in SIGNS.items() if sign in state}
    table: dict[str, Leaf] = {}
    if "local" in there:
        table |= _mlp("local/patches", "img_encoder_q.local_embed.head.", bias=True, affine=False)
        table |= _mlp("local/sentences", "text_encoder_q.local_embed.head.", bias=True, affine=False)
        table["params/heads/local/logit_scale"] = Leaf("local_scale")
    if "simclr" in there:
        table |= _mlp("simclr/projection", "simclr_proj.layers.", bias=False, affine=True)
    if "cross_view" in there:
        table |= _attention("cross_view/attention1", "view_attn1.") | _attention("cross_view/attention2", "view_attn2.")
        table |= _norm("cross_view/norm", "patch_ln.")
        table["params/heads/cross_view/logit_scale"] = Leaf("patch_scale")
        for ours, theirs in (("pooler1", "merge_patch1."), ("pooler2", "merge_patch2.")) if POOLER in state else ():
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
    table = leaves(state)
    if missing := sorted({leaf.key for leaf in table.values()} - set(state)):
        raise UserError(f"the file has no {missing[0]} beside the rest of that head: is it a whole checkpoint?")
    arrays = {path: from_torch(leaf, _flat(state[leaf.key])) for path, leaf in table.items()}
    arrays |= {path: array.reshape(()) for path, array in arrays.items() if path.endswith("/logit_scale")}
    options: dict[str, dict] = {}
    for name, path in (("local", "local/patches"), ("simclr", "simclr/projection")):
        if (kernel := arrays.get(f"params/heads/{path}/out/kernel")) is not None:
            options[name] = {"hidden": kernel.shape[0], "dim": kernel.shape[1]}
    if "local" in options:
        options["local"]["stage"] = "last"
    if SIGNS["cross_view"] in state:
        options["cross_view"] = {"stage": "last", "pooling": "attention" if POOLER in state else "average"}
    used = {leaf.key for leaf in table.values()}
    counts = {f"{key.removesuffix('running_mean')}{TRACKED}" for key in used if key.endswith("running_mean")}
    return arrays, options, used | counts & set(state)


def write(arrays: Mapping[str, np.ndarray], state: State) -> dict[str, np.ndarray]:
    """The way back from `read`: the arrays under the names, and in the shapes, that they have in `state`."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in leaves(state).items():
        parts.setdefault(leaf.key, {})[leaf.part[0]] = to_torch(leaf, np.asarray(arrays[path]))
    return {
        key: np.concatenate([values[i] for i in sorted(values)]).reshape(state[key].shape)
        if len(values) > 1
        else values[0].reshape(np.shape(state[key]))
        for key, values in parts.items()
    }


def _flat(value: np.ndarray) -> np.ndarray:
    """A kernel of a 1 x 1 convolution along one axis, [out, in, 1], as the linear map it is."""
    return value[..., 0] if np.ndim(value) == 3 else value


def _mlp(path: str, prefix: str, bias: bool, affine: bool) -> dict[str, Leaf]:
    """`vectors.NormalisedMLP`: their layers 0 and 3 are linear, 1 and 4 batch norms."""
    table = {}
    for layer, at, scaled in (("hidden", 0, True), ("out", 3, affine)):
        table[f"params/heads/{path}/{layer}/kernel"] = Leaf(f"{prefix}{at}.weight", "dense")
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
