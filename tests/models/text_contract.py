"""Small forms of the text encoders, their counterparts in transformers, and programs compiled once a file."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.models import bert, clip_text, gpt2, modernbert
from mammoclip_jax.models.pooling import pool

GOLDEN = Path(__file__).parent.parent / "golden"
SEP = 3
EOT = 60


def squares(states, ids, mask):
    """Of the states of real tokens, summed."""
    return (jnp.where(mask[..., None], states, 0) ** 2).sum()


def squares_of_pooled(states, ids, mask):
    return (pool(states, ids, mask, "eot", EOT) ** 2).sum()


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """A network to test.

    Attributes:
        build: encoder of a number of tokens, a dtype, `remat` and the options of transformers' config.
        options: the small network's.
        theirs: (names of the config and the model in transformers, more options of that config).
        texts: {key of their states in the golden file: (ids, mask)}.
        stored: texts and changes of the options in the golden file, where they are others.
        objective: of (states, ids, mask), what gradients are of; for the last of the texts.
        centred: scales of norms are drawn around 1 in transformers, not 0.
    """

    build: Callable
    options: dict
    theirs: tuple[str, str, dict]
    texts: dict
    golden: str
    stored: tuple[dict, dict] | None = None
    objective: Callable = squares
    centred: bool = False

    def model(self, dtype=jnp.float32, remat="none", **changes):
        return self.build(dtype=dtype, remat=remat, **self.options | changes)

    def params(self, scale=0.3, dtype=np.float32, **changes):
        """Larger than the initial values, so that the attention is far from uniform."""
        rng = np.random.default_rng(0)
        return jax.tree.map(
            lambda leaf: (rng.standard_normal(leaf.shape) * scale).astype(np.float32).astype(dtype),
            shapes(self.model(**changes)),
        )

    def text(self):
        """The last, longest texts: (ids, mask)."""
        return list(self.texts.values())[-1]

    def torch_model(self, final_norm=True, **changes):
        """With weights from a fixed seed; without `final_norm` it is taken out, as in ModernBERT of Mammo-FM."""
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        config, model, options = self.theirs
        torch.manual_seed(0)
        config = getattr(transformers, f"{config}Config")(**self.options | options | changes)
        options = {"add_pooling_layer": False} if model == "Bert" else {}
        theirs = getattr(transformers, f"{model}Model")(config, **options).eval()
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                parameter.normal_(float(self.centred and "norm" in name and name.endswith("weight")), 0.3)
        if not final_norm:
            theirs.final_norm = torch.nn.Identity()
        return torch, theirs

    def torch_reference(self, texts=None, **changes):
        """{"params:...", "states...", "pooled...", "grads:..."}: gradients of the objective of the last text."""
        torch, theirs = self.torch_model(**changes)
        out = {f"params:{name}": p.detach().numpy() for name, p in theirs.named_parameters()}
        for key, (ids, mask) in (texts or self.texts).items():
            ids, real = torch.tensor(ids), torch.tensor(mask)
            places = {"position_ids": (real.cumsum(1) - 1).clamp(min=0)} if self.build is gpt2.from_options else {}
            output = theirs(ids, attention_mask=real.long(), **places)
            out[f"states{key}"] = output.last_hidden_state.detach().numpy()
            if self.objective is squares_of_pooled:
                out[f"pooled{key}"] = output.pooler_output.detach().numpy()
        pooled = self.objective is squares_of_pooled
        ((output.pooler_output if pooled else output.last_hidden_state[real]) ** 2).sum().backward()
        return out | {f"grads:{name}": p.grad.numpy() for name, p in theirs.named_parameters()}


def to_jax(state):
    """Hugging Face names and layouts to ours, by rule alone; `Conv1D`s of GPT-2 have our layout already."""
    flat = {}
    for name, value in state.items():
        path = re.sub(r"\b(layers?|h)\.([0-9]+)", r"\1_\2", name.removeprefix("text_model.")).split(".")
        parent, leaf = path[-2:]
        if leaf == "weight":
            leaf = (
                "embedding"
                if re.search("_embeddings?$|^w[tp]e$", parent)
                else "scale"
                if re.search("norm|^ln_", parent.lower())
                else "kernel"
            )
        turned = leaf == "kernel" and not parent.startswith("c_")
        flat[(*path[:-1], leaf)] = np.asarray(value).T if turned else np.asarray(value)
    return flax.traverse_util.unflatten_dict(flat)


def part(stored, kind):
    """What is stored under names that begin with `kind`."""
    return {name.removeprefix(kind): value for name, value in stored.items() if name.startswith(kind)}


@functools.cache
def shapes(model):
    """Of the parameters."""
    like = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    return jax.eval_shape(lambda ids: model.init(jax.random.key(0), ids, ids > 0, train=False)["params"], like)


@functools.partial(jax.jit, static_argnums=0)
def states(model, params, ids, mask):
    """In evaluation."""
    return model.apply({"params": params}, ids, mask, train=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(model, objective, params, ids, mask):
    """Of the objective of the states, by every parameter."""
    return jax.grad(lambda p: objective(states(model, p, ids, mask), ids, mask))(params)


def _lengths(length, counts, seed, last, high, end=False):
    """Texts of so many tokens; behind them, and with `end` as their last one, stands `last`."""
    counts = np.array(counts)[:, None]
    mask = np.arange(length) < counts
    ids = np.where(mask, np.random.default_rng(seed).integers(1, high, mask.shape), last)
    return np.where(np.arange(length) == counts - 1, last, ids) if end else ids, mask


def _texts(ids):
    return ids, ids != 0


_SIZES = dict(hidden_size=16, num_attention_heads=2)
RIGHT = _texts(np.array([[2, 5, 17, 3, 40, 3, 0, 0], [2, 40, 41, 3, 43, 44, 3, 96], [2, 3, 0, 0, 0, 0, 0, 0]]))
LEFT = _texts(np.array([[0, 0, 2, 5, 17, 3, 40, 3], [2, 40, 41, 3, 43, 44, 3, 96], [0, 0, 0, 0, 0, 0, 2, 3]]))
FORMS = {
    "bert": Form(
        bert.from_options,
        dict(
            vocab_size=97,
            num_hidden_layers=2,
            intermediate_size=24,
            max_position_embeddings=20,
            type_vocab_size=2,
            layer_norm_eps=1e-6,
            **_SIZES,
        ),
        ("Bert", "Bert", {}),
        {"": _texts(np.array([[2, 5, 17, 96, 3, 0, 0], [2, 40, 41, 42, 43, 44, 3], [2, 3, 0, 0, 0, 0, 0]]))},
        "bert",
    ),
    "gpt2": Form(
        gpt2.from_options,
        dict(vocab_size=97, n_positions=20, n_embd=16, n_layer=2, n_head=2),
        ("GPT2", "GPT2", dict(bos_token_id=2, eos_token_id=3)),
        {"": RIGHT},
        "gpt2",
        stored=({"": LEFT}, dict(scale_attn_by_inverse_layer_idx=True)),
    ),
    # A window of 2 tokens on either side: the long texts go through it in blocks, the short ones in one piece.
    "modernbert": Form(
        modernbert.from_options,
        dict(
            vocab_size=61,
            num_hidden_layers=4,
            intermediate_size=20,
            max_position_embeddings=32,
            local_attention=4,
            global_attn_every_n_layers=3,
            norm_eps=1e-5,
            **_SIZES,
        ),
        (
            "ModernBert",
            "ModernBert",
            dict(
                attn_implementation="eager",
                **dict.fromkeys(["pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"], 60),
            ),
        ),
        {":5": _lengths(5, (5, 2, 3), 5, 60, 60), ":15": _lengths(15, (15, 9, 4), 15, 60, 60)},
        "modernbert",
        centred=True,
    ),
    # Texts end with the end-of-text token and are padded with it, as CLIP's tokenizer does.
    "clip_text": Form(
        clip_text.from_options,
        dict(
            vocab_size=61,
            num_hidden_layers=3,
            intermediate_size=24,
            max_position_embeddings=20,
            layer_norm_eps=1e-5,
            **_SIZES,
        ),
        ("CLIPText", "CLIPText", dict(eos_token_id=EOT, bos_token_id=59, attn_implementation="eager")),
        {":6": _lengths(6, (6, 2, 3), 6, EOT, 59, True), ":13": _lengths(13, (13, 9, 4), 13, EOT, 59, True)},
        "clip_text",
        objective=squares_of_pooled,
        centred=True,
    ),
}


def compare(form, stored, texts=None, eot=EOT, **changes):
    """States of real tokens as they are, gradients relative to the greatest of their parameter."""
    model, params = form.model(**changes), to_jax(part(stored, "params:"))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes(model))
    for key, (ids, mask) in (texts or form.texts).items():
        ours = states(model, params, ids, mask)
        np.testing.assert_allclose(ours[mask], stored[f"states{key}"][mask], rtol=1e-5, atol=1e-5)
        if f"pooled{key}" in stored:
            pooled = pool(ours, ids, mask, "eot", eot)
            np.testing.assert_allclose(pooled, stored[f"pooled{key}"], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(pooled, pool(ours, ids, mask, "eos"))
    ours = flax.traverse_util.flatten_dict(gradients(model, form.objective, params, ids, mask), sep="/")
    theirs = flax.traverse_util.flatten_dict(to_jax(part(stored, "grads:")), sep="/")
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():  # a key's bias has no gradient, only rounding
        assert np.abs(ours[path] - value).max() / (np.abs(value).max() + 1.0) < 2e-5, path
