"""The image encoders' counterparts in torch: the same network with the same variables, its outputs and gradients."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mammoclip_jax.models.convnext import VARIANTS as CONVNEXT_VARIANTS
from mammoclip_jax.models.efficientnet import VARIANTS as EFFICIENTNET_VARIANTS
from mammoclip_jax.models.resnet import VARIANTS as RESNET_VARIANTS

# What their networks have and ours not.
UNUSED = re.compile(r"^_fc\.|num_batches_tracked$|^embeddings\.mask_token$")
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Counterpart(NamedTuple):
    """`state` gives {their name: array in their layout} of our {name: array}; `outputs` {our name: tensor N h w c}."""

    build: Callable
    state: Callable
    outputs: Callable

    def model(self, model, variables):
        """The same network in torch, strictly loaded."""
        torch = pytest.importorskip("torch")
        theirs = self.build(model)
        state = {name: torch.tensor(value) for name, value in self.state(flatten_dict(variables, sep="/")).items()}
        theirs = theirs.to(next(iter(state.values())).dtype)
        missing, unexpected = theirs.load_state_dict(state, strict=False)
        assert not unexpected and all(map(UNUSED.search, missing))
        return theirs

    def run(self, theirs, x, train=False, weights=None):
        """Outputs by our names, buffers and, with `weights` of some outputs, gradients by theirs."""
        import torch

        theirs.train(train).zero_grad()
        outputs = self.outputs(theirs, torch.tensor(x.transpose(0, 3, 1, 2)))
        if weights is not None:
            sum((outputs[name] * torch.tensor(weight)).sum() for name, weight in weights.items()).backward()
        gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
        buffers = {name: buffer.numpy().copy() for name, buffer in theirs.named_buffers()}
        return {name: output.detach().numpy() for name, output in outputs.items()}, buffers, gradients


def layout(name, value, dense):
    """Of a kernel: torch has outputs first; layers that ours call dense are 1 x 1 convolutions where not `dense`."""
    if not name.endswith("kernel"):
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if value.ndim == 3:
        return value.transpose(2, 0, 1)[:, None]
    return value.T if dense else value.T[:, :, None, None]


def last(value):
    """Channels last."""
    return value.permute(0, 2, 3, 1)


# --- efficientnet_pytorch, efficientnet_lite_pytorch ------------------------------------------------------------------


def efficientnet(model):
    """Without drop-connect."""
    lite = "lite_" if EFFICIENTNET_VARIANTS[model.variant].lite else ""
    package = pytest.importorskip(f"efficientnet_{lite}pytorch")
    if model.width:
        build = package.utils.efficientnet_lite if lite else package.utils.efficientnet
        blocks, options = build(model.width, model.depth, image_size=EFFICIENTNET_VARIANTS[model.variant].size)
        theirs = package.EfficientNet(blocks, options)
    else:
        theirs = package.EfficientNet.from_name(f"efficientnet-{model.variant}")
    theirs._global_params = theirs._global_params._replace(drop_connect_rate=0.0)
    for block in theirs._blocks:  # a stage's first stride is [1], which they compare with 1: no shortcut in narrow ones
        block._block_args = block._block_args._replace(stride=int(np.max(block._block_args.stride)))
    return theirs


def efficientnet_name(name):
    """Of one of our variables ("params/block03/se/reduce/kernel", ...)."""
    _, *path, kind = name.split("/")
    top = {"stem": "_conv_stem", "stem_bn": "_bn0", "head": "_conv_head", "head_bn": "_bn1"}
    inner = {
        "expand": "_expand_conv",
        "expand_bn": "_bn0",
        "depthwise": "_depthwise_conv",
        "depthwise_bn": "_bn1",
        "se/reduce": "_se_reduce",
        "se/expand": "_se_expand",
        "project": "_project_conv",
        "project_bn": "_bn2",
    }
    if path[0] in top:
        return f"{top[path[0]]}.{KINDS[kind]}"
    return f"_blocks.{int(path[0].removeprefix('block'))}.{inner['/'.join(path[1:])]}.{KINDS[kind]}"


def efficientnet_state(flat):
    return {efficientnet_name(name): layout(name, value, dense=False) for name, value in flat.items()}


def efficientnet_outputs(theirs, x):
    """The head map, and where they give them the maps after each stage that has its own stride."""
    if not hasattr(theirs, "extract_endpoints"):
        return {"head": last(theirs.extract_features(x))}
    points, names = theirs.extract_endpoints(x), ("stage1", "stage2", "stage3", "stage5", "stage7", "head")
    return {name: last(points[f"reduction_{i}"]) for i, name in enumerate(names, 1) if f"reduction_{i}" in points}


# --- our own --------------------------------------------------------------------------------------------------------


def clip_resnet(model):
    pytest.importorskip("torch")
    from torch_clip import ResNet

    return ResNet(*model.sizes)


def clip_resnet_state(flat):
    state = {}
    for name, value in flat.items():
        _, *path, kind = name.split("/")
        key = re.sub(r"(layer\d|downsample)_(\d+)", r"\1.\2", ".".join(path))
        dense = "attnpool" in path
        key = f"{key}.{KINDS[kind]}" if kind in KINDS else f"{key}.{kind}"
        state[key] = layout(name, value, dense)
    return state


def clip_resnet_outputs(theirs, x):
    maps = theirs.maps(x)
    named = {f"stage{i}" if i else "stem": last(value) for i, value in enumerate(maps)}
    return named | {"pooled": theirs.attnpool(maps[-1])}


# --- transformers -----------------------------------------------------------------------------------------------------


def resnet(model):
    transformers = pytest.importorskip("transformers")
    bottleneck = RESNET_VARIANTS[model.variant].bottleneck
    return transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=model.width,
            hidden_sizes=[model.width * 2**i * (4 if bottleneck else 1) for i in range(4)],
            depths=list(model.depths or RESNET_VARIANTS[model.variant].depths),
            layer_type="bottleneck" if bottleneck else "basic",
        )
    )


def resnet_name(name):
    """Of one of our variables, which follow torchvision ("params/layer1_0/conv1/kernel", ...)."""
    _, *path, kind = name.split("/")
    part = "convolution" if path[-1].startswith("conv") or path[-1] == "downsample_0" else "normalization"
    if len(path) == 1:
        return f"embedder.embedder.{part}.{KINDS[kind]}"
    stage, block = path[0].removeprefix("layer").split("_")
    inner = "shortcut" if path[1].startswith("downsample") else f"layer.{int(path[1][-1]) - 1}"
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{inner}.{part}.{KINDS[kind]}"


def resnet_state(flat):
    return {resnet_name(name): layout(name, value, dense=False) for name, value in flat.items()}


def resnet_outputs(theirs, x):
    outputs = theirs(x, output_hidden_states=True)
    maps = {f"stage{i}" if i else "stem": last(value) for i, value in enumerate(outputs.hidden_states)}
    return maps | {"pooled": outputs.pooler_output[:, :, 0, 0]}


def swin(model):
    """One for each size: `SwinLayer` keeps the window and the shift that a small map has made it take."""
    transformers = pytest.importorskip("transformers")
    width, depths, heads = model.sizes
    return transformers.SwinModel(
        transformers.SwinConfig(
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=model.window,
            drop_path_rate=0.0,
            layer_norm_eps=model.layer_norm_eps,
        )
    )


# Modules of transformers 5, whose names differ from its published files.
SWIN_MODULES = {
    r"attention\.self\.(query|key|value)": lambda match: f"attention.{match[1][0]}_proj",
    r"attention\.self\.relative": "attention.relative_position_bias.relative",
    r"attention\.output\.dense": "attention.o_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}


def dotted(name):
    """Of one of our parameters, which follow transformers ("params/encoder/layers_1/layernorm/scale", ...)."""
    name = re.sub("_([0-9]+)(?=/)", r".\1", name.removeprefix("params/")).replace("/", ".")
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


def swin_state(flat):
    state = {}
    for name, value in flat.items():
        key = dotted(name)
        for ours, theirs in SWIN_MODULES.items():
            key = re.sub(ours, theirs, key)
        state[key] = layout(name, value, dense=True)
    return state


def swin_outputs(theirs, x, **options):
    outputs = theirs(x, output_hidden_states=True, output_hidden_states_before_downsampling=True, **options)
    maps = {f"stage{i}" if i else "stem": last(value) for i, value in enumerate(outputs.reshaped_hidden_states)}
    return maps | {"pooled": outputs.pooler_output}


def convnext(model):
    transformers = pytest.importorskip("transformers")
    published = CONVNEXT_VARIANTS[model.variant]
    width, depths = model.width or published.width, model.depths or published.depths
    return transformers.ConvNextModel(
        transformers.ConvNextConfig(
            hidden_sizes=[width * 2**i for i in range(len(depths))],
            depths=list(depths),
            num_stages=len(depths),
            layer_norm_eps=model.layer_norm_eps,
        )
    )


def convnext_state(flat):
    return {dotted(name): layout(name, value, dense=True) for name, value in flat.items()}


def convnext_outputs(theirs, x):
    """The stages before their successor's norm, which `hidden_states` are not."""
    maps, hooks = {}, []
    for i, module in enumerate([theirs.embeddings, *theirs.encoder.stages]):
        name = f"stage{i}" if i else "stem"
        hooks.append(
            module.register_forward_hook(lambda module, inputs, output, name=name: maps.update({name: last(output)}))
        )
    pooled = theirs(x).pooler_output
    for hook in hooks:
        hook.remove()
    return maps | {"pooled": pooled}


def vit_sizes(model):
    return dict(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        patch_size=model.patch,
        image_size=model.size,
    )


def vit(model):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(intermediate_size=4 * model.width, **vit_sizes(model))
    return transformers.ViTModel(config, add_pooling_layer=False)


def dinov2(model):
    transformers = pytest.importorskip("transformers")
    if model.registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=model.registers, **vit_sizes(model))
        return transformers.Dinov2WithRegistersModel(config)
    config = transformers.Dinov2Config(use_swiglu_ffn=model.feed_forward == "swiglu", **vit_sizes(model))
    return transformers.Dinov2Model(config)


def dinov2_state(flat):
    """Names and layouts of transformers 5.23, whose modules differ from its published files."""
    state = {}
    for name, value in flat.items():
        key, value = dotted(name), layout(name, value, dense=True)
        key = re.sub(r"attention\.attention\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj", key)
        key = key.replace("attention.output.dense", "attention.o_proj").replace("weights_out", "down_proj")
        if "weights_in" in key:
            for part, half in zip(("gate_proj", "up_proj"), np.split(value, 2), strict=True):
                state[key.replace("weights_in", part)] = half
        else:
            state[key] = value
    return state


def clip_vit(model):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(intermediate_size=4 * model.width, **vit_sizes(model))
    return transformers.CLIPVisionModel(config)


CLIP_MODULES = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding.weight",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "pre_layernorm": "pre_layrnorm",
    "encoder.layer.": "encoder.layers.",
    "attention.o_proj": "self_attn.out_proj",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}


def clip_vit_state(flat):
    state = {}
    for key, value in dinov2_state(flat).items():
        for ours, theirs in CLIP_MODULES.items():
            key = key.replace(ours, theirs)
        key = re.sub("^layernorm", "post_layernorm", key)
        state[key] = (
            value.reshape(value.shape[-1] if "class_embedding" in key else value.shape[-2:])
            if value.ndim == 3
            else value
        )
    return state


def clip_vit_outputs(theirs, x):
    """Of the pooling "cls+mean"; theirs has the last norm on the class token alone."""
    import torch

    out = theirs(x, output_hidden_states=True, interpolate_pos_encoding=True)
    grid = [length // theirs.config.patch_size for length in x.shape[2:]]
    final = theirs.post_layernorm(out.last_hidden_state)
    maps = {f"block{i}": value for i, value in enumerate(out.hidden_states) if i} | {"last": final}
    maps = {name: value[:, 1:].unflatten(1, grid) for name, value in maps.items()}
    return maps | {"pooled": torch.cat([out.pooler_output, final[:, 1:].mean(1)], -1)}


def vit_state(flat):
    return {
        key.replace("encoder.layer.", "layers.")
        .replace("norm1", "layernorm_before")
        .replace("norm2", "layernorm_after"): value
        for key, value in dinov2_state(flat).items()
    }


def tokens(theirs, x, **options):
    """Class token, patches as a map and all tokens, behind the last norm; patches behind every block; see POOLING."""
    import torch

    config = theirs.config
    first = 1 + getattr(config, "num_register_tokens", 0)
    grid = [length // config.patch_size for length in x.shape[2:]]
    out = theirs(x, output_hidden_states=True, **options)
    hidden, final = out.hidden_states, out.last_hidden_state
    maps = {f"block{i}": value for i, value in enumerate(hidden)} | {"last": final}
    maps = {name: value[:, first:].unflatten(1, grid) for name, value in maps.items() if name != "block0"}
    cls, mean = final[:, 0], final[:, first:].mean(1)
    return maps | {"cls": cls, "mean": mean, "all": hidden[-1].mean(1), "cls+mean": torch.cat([cls, mean], -1)}


def dinov2_outputs(theirs, x, **options):
    """Of an encoder with the pooling "cls+mean"."""
    outputs = tokens(theirs, x, **options)
    return {name: outputs[name] for name in outputs if name.startswith(("block", "last"))} | {
        "pooled": outputs["cls+mean"]
    }


def resampled(outputs):
    """With positions at any size, which ViTModel must be told."""
    return lambda theirs, x: outputs(theirs, x, interpolate_pos_encoding=True)


EFFICIENTNET = Counterpart(efficientnet, efficientnet_state, efficientnet_outputs)
RESNET = Counterpart(resnet, resnet_state, resnet_outputs)
CLIP_RESNET = Counterpart(clip_resnet, clip_resnet_state, clip_resnet_outputs)
CLIP_VIT = Counterpart(clip_vit, clip_vit_state, clip_vit_outputs)
SWIN = Counterpart(swin, swin_state, swin_outputs)
CONVNEXT = Counterpart(convnext, convnext_state, convnext_outputs)
VIT = Counterpart(vit, vit_state, resampled(dinov2_outputs))
DINOV2 = Counterpart(dinov2, dinov2_state, dinov2_outputs)
