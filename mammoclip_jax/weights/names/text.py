"""Text encoders as Hugging Face's transformers name them.

Ours are named after theirs: dots turned into slashes, list numbers joined to the name. Where there is no config.json,
sizes come from the shapes and the rest is what the published models have.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from mammoclip_jax.models.bert import BertConfig
from mammoclip_jax.models.clip_text import ClipTextConfig
from mammoclip_jax.models.gpt2 import Gpt2Config
from mammoclip_jax.models.modernbert import ModernBertConfig
from mammoclip_jax.weights.names.shapes import Shapes, shape_of
from mammoclip_jax.weights.naming import Leaf, Naming, State

HfConfig = Mapping[str, Any] | None
_shape = functools.partial(shape_of, what="text encoder of this kind")

_MINILM = 384  # width of MiniLM, whose 12 heads are 32 wide; all others of BERT's kind have heads of 64
_BIOMEDLM = 2560  # width of BioMedLM: 20 heads of 128, and scores divided by the layer's number


def strip(state: State) -> dict[str, np.ndarray]:
    """A state dict without the prefix under which a model with a head keeps its text encoder (`bert.`, ...).

    LayerNorms of files from the days of TensorFlow, `gamma` and `beta`, get today's names. Keys of heads stay.
    """
    state = {
        re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)): value
        for key, value in state.items()
    }
    for prefix, naming in (("bert.", BERT), ("model.", MODERNBERT), ("transformer.", GPT2), ("text_model.", CLIP_TEXT)):
        if all(prefix + sign in state for sign in naming.signs):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _linear(path: str) -> Leaf:
    """PyTorch's Linear, [out, in]; embeddings and norms as they are."""
    *modules, last = path.split("/")
    key = ".".join(re.sub(r"^(layers?|h)_(\d+)$", r"\1.\2", module) for module in modules)
    return Leaf(f"{key}.{'bias' if last == 'bias' else 'weight'}", "dense" if last == "kernel" else "same")


def _conv1d(path: str) -> Leaf:
    """GPT-2's Conv1D, [in, out] as ours."""
    return _linear(path)._replace(kind="same")


def fields_of(config: Any) -> dict:
    """The fields that differ from the defaults, and the vocabulary."""
    return {
        f.name: getattr(config, f.name)
        for f in fields(config)
        if f.name == "vocab_size" or getattr(config, f.name) != f.default
    }


def count(shapes: Iterable[str], prefix: str) -> int:
    """The layers `prefix`0., `prefix`1., ..."""
    return len({match[1] for key in shapes if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))})


def _bert_options(shapes: Shapes, config: HfConfig) -> dict:
    if config:
        return fields_of(BertConfig.from_hf(config))
    vocabulary, width = _shape(shapes, "embeddings.word_embeddings.weight")
    return fields_of(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=count(shapes, "encoder.layer."),
            num_attention_heads=12 if width == _MINILM else max(width // 64, 1),
            intermediate_size=_shape(shapes, "encoder.layer.0.intermediate.dense.weight")[0],
            max_position_embeddings=_shape(shapes, "embeddings.position_embeddings.weight")[0],
            type_vocab_size=_shape(shapes, "embeddings.token_type_embeddings.weight")[0],
        )
    )


def _bert_pooler(options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    width = options.get("hidden_size", BertConfig.hidden_size)
    return {
        "pooler.dense.weight": np.zeros((width, width), np.float32),
        "pooler.dense.bias": np.zeros(width, np.float32),
    }


def _modernbert_options(shapes: Shapes, config: HfConfig) -> dict:
    if config:
        return fields_of(ModernBertConfig.from_hf(config))
    vocabulary, width = _shape(shapes, "embeddings.tok_embeddings.weight")
    return fields_of(
        ModernBertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=count(shapes, "layers."),
            num_attention_heads=max(width // 64, 1),
            intermediate_size=_shape(shapes, "layers.0.mlp.Wi.weight")[0] // 2,
            norm_bias="embeddings.norm.bias" in shapes,
            attention_bias="layers.0.attn.Wqkv.bias" in shapes,
            mlp_bias="layers.0.mlp.Wi.bias" in shapes,
        )
    )


def _gpt2_options(shapes: Shapes, config: HfConfig) -> dict:
    if config:
        return fields_of(Gpt2Config.from_hf(config))
    vocabulary, width = _shape(shapes, "wte.weight")
    inner = _shape(shapes, "h.0.mlp.c_fc.weight")[1]
    return fields_of(
        Gpt2Config(
            vocab_size=vocabulary,
            n_positions=_shape(shapes, "wpe.weight")[0],
            n_embd=width,
            n_layer=count(shapes, "h."),
            n_head=20 if width == _BIOMEDLM else max(width // 64, 1),
            n_inner=None if inner == 4 * width else inner,
            scale_attn_by_inverse_layer_idx=width == _BIOMEDLM,
        )
    )


def _clip_options(shapes: Shapes, config: HfConfig) -> dict:
    if config:
        return fields_of(ClipTextConfig.from_hf(config))
    vocabulary, width = _shape(shapes, "embeddings.token_embedding.weight")
    return fields_of(
        ClipTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=count(shapes, "encoder.layers."),
            num_attention_heads=max(width // 64, 1),
            intermediate_size=_shape(shapes, "encoder.layers.0.mlp.fc1.weight")[0],
            max_position_embeddings=_shape(shapes, "embeddings.position_embedding.weight")[0],
        )
    )


BERT = Naming(
    "bert",
    _linear,
    _bert_options,
    ("embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"),
    unused=r"(pooler|cls|classifier|qa_outputs)\..*|embeddings\.position_ids",
    filled=_bert_pooler,
)
MODERNBERT = Naming(
    "modernbert",
    _linear,
    _modernbert_options,
    ("embeddings.tok_embeddings.weight", "layers.0.attn.Wqkv.weight"),
    unused=r"(head|decoder|classifier)\..*",
)
# As Mammo-FM uses it: without the last LayerNorm, which is in its files all the same.
MODERNBERT_NO_FINAL_NORM = MODERNBERT._replace(
    options=lambda shapes, config: _modernbert_options(shapes, config) | {"final_norm": False},
    unused=MODERNBERT.unused + r"|final_norm\.weight",
    filled=lambda options: {
        "final_norm.weight": np.ones(options.get("hidden_size", ModernBertConfig.hidden_size), np.float32)
    },
)
GPT2 = Naming(
    "gpt2",
    _conv1d,
    _gpt2_options,
    ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"),
    unused=r"lm_head\.weight|h\.\d+\.attn\.(bias|masked_bias)",
)
CLIP_TEXT = Naming(
    "clip_text",
    _linear,
    _clip_options,
    ("embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight"),
    unused=r"embeddings\.position_ids|(text_projection|vision_model|visual_projection)\..*|logit_scale",
)
