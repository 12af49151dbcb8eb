"""The vision transformers' four namings: ViT and DINOv2 of transformers, DINOv2 of its authors, and timm's.

Live (parity): networks with random weights, read through their naming, give the same tokens; what is written loads
strictly. The authors' own code is not installable: timm, which reads their files, stands for it. All published variants
have the keys and shapes that the tables say, and timm has none that is accepted and computes something else.
Without PyTorch: what is written is read back bit for bit, counts of parameters, places by hand, and the errors.
"""

import functools

import jax
import numpy as np
import pytest
from comparison import close
from flax.traverse_util import flatten_dict, unflatten_dict
from live import library
from traced import abstract

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.vit import DINOV2, VIT
from mammoclip_jax.weights import names, naming
from mammoclip_jax.weights.names.vit import AUTHORS_DINOV2, HUGGINGFACE_DINOV2, HUGGINGFACE_VIT, TIMM

NAMINGS = {"vit": HUGGINGFACE_VIT, "dinov2": HUGGINGFACE_DINOV2, "authors": AUTHORS_DINOV2, "timm": TIMM}
FILLED = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token", "mask_token"}
SMALL = {"width": 192, "depth": 2, "heads": 3, "patch": 4, "size": 20}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "image_size": 20}


def layout(table, options, channels=3):
    """{key: shape} of what would be written, without memory for it."""
    found = {key: value.shape for key, value in table.filled(options).items()}
    for path, value in abstract(table, options, channels).items():
        leaf = table.leaf(path.partition("/")[2])
        rows, *rest = naming.to_torch(leaf, np.broadcast_to(np.int8(0), value.shape)).shape
        found[leaf.key] = (leaf.part[1] * rows, *rest)
    return found


def random_variables(table, options, channels=3):
    """Kernels that keep the size of activations, scales near one; large enough that attention is far from uniform."""
    random, values = np.random.default_rng(0), {}
    for path, leaf in abstract(table, options, channels).items():
        kind = path.rpartition("/")[2]
        if kind in ("scale", "lambda1"):
            value = random.uniform(0.6, 1.4, leaf.shape)
        else:
            spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if kind == "kernel" else 0.3
            value = random.normal(size=leaf.shape) * spread
        values[path] = value.astype(np.float32)
    return unflatten_dict(values, sep="/")


def random_state(who, channels=3, **options):
    table = NAMINGS[who]
    options = SMALL | options
    return naming.write(table, random_variables(table, options, channels), options)


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# --- live -------------------------------------------------------------------------------------------------------------


def torch_state(state):
    torch = pytest.importorskip("torch")
    return {key: torch.as_tensor(value) for key, value in state.items()}


class HuggingFace:
    """A model of transformers with random weights, by way of the folder that it saves and loads."""

    def __init__(self, folder, kind, with_config, **options):
        package = library("transformers")
        self.folder, self.kind = folder, getattr(package, f"{kind}Model")
        self.model = self.kind(getattr(package, f"{kind}Config")(**options))
        randomise(self.model)
        self.model.save_pretrained(folder)
        self.config = self.model.config.to_dict() if with_config else None
        self.resampled = {"interpolate_pos_encoding": True} if kind == "ViT" else {}

    def state(self):
        return library("safetensors.numpy").load_file(self.folder / "model.safetensors")

    def tokens(self, x):
        return self.model.eval()(x, **self.resampled).last_hidden_state

    def load(self, state):
        """Strictly, and into the arrays that there were."""
        library("safetensors.numpy").save_file(state, self.folder / "model.safetensors", {"format": "pt"})
        loaded, info = self.kind.from_pretrained(self.folder, output_loading_info=True)
        assert not any(info.values()), info
        for key, value in loaded.state_dict().items():
            assert key in FILLED or value.equal(self.model.state_dict()[key]), key


class Timm:
    """A network of timm with random weights."""

    config = None

    def __init__(self, folder, architecture, **options):
        self.model = library("timm").create_model(
            architecture, num_classes=0, depth=2, dynamic_img_size=True, **options
        )
        randomise(self.model)

    def state(self):
        return {key: value.numpy().copy() for key, value in self.model.state_dict().items()}

    def tokens(self, x):
        return self.model.eval().forward_features(x)

    def load(self, state):
        self.model.load_state_dict(torch_state(state), strict=True)


class Authors(Timm):
    """DINOv2 in its authors' names, with random weights, and what timm makes of it."""

    def __init__(self, folder, architecture, variables, **options):
        super().__init__(folder, architecture, **options)
        self.random = random_state("authors", **variables)
        self.load(self.random)

    def state(self):
        return self.random

    def load(self, state):
        super().load(library("timm.models.vision_transformer").checkpoint_filter_fn(torch_state(state), self.model))


def randomise(model):
    import torch

    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if value.ndim in (2, 4) and "token" not in key:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.ndim == 1 and not key.endswith("bias"):
            value.uniform_(0.6, 1.4, generator=generator)
        else:
            value.normal_(0, 0.3, generator=generator)


# Of a width that is published, so that the heads are known without config.json.
WIDE = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 16, "image_size": 48}
TINY_OPTIONS = {"width": 32, "depth": 2, "heads": 4, "patch": 4, "size": 20}
SHRUNK = {"embed_dim": 192, "num_heads": 3, "img_size": 56}
CASES = {
    "vit with config": (
        HuggingFace,
        dict(kind="ViT", with_config=True, intermediate_size=128, layer_norm_eps=1e-3, **TINY),
        HUGGINGFACE_VIT,
        TINY_OPTIONS | {"eps": 1e-3},
    ),
    "vit": (
        HuggingFace,
        dict(kind="ViT", with_config=False, intermediate_size=768, **WIDE),
        HUGGINGFACE_VIT,
        {"variant": "tiny", "depth": 2, "size": 48},
    ),
    "dinov2 with config": (
        HuggingFace,
        dict(kind="Dinov2", with_config=True, layer_norm_eps=1e-3, **TINY),
        HUGGINGFACE_DINOV2,
        TINY_OPTIONS | {"eps": 1e-3},
    ),
    "dinov2, gated": (
        HuggingFace,
        dict(kind="Dinov2", with_config=False, use_swiglu_ffn=True, **WIDE),
        HUGGINGFACE_DINOV2,
        {"width": 192, "depth": 2, "heads": 3, "patch": 16, "size": 48, "feed_forward": "swiglu"},
    ),
    "registers": (
        HuggingFace,
        dict(kind="Dinov2WithRegisters", with_config=True, num_register_tokens=3, **TINY),
        HUGGINGFACE_DINOV2,
        TINY_OPTIONS | {"registers": 3},
    ),
    "timm": (
        Timm,
        dict(architecture="vit_tiny_patch16_224", img_size=48),
        TIMM,
        {"variant": "tiny", "depth": 2, "size": 48, "eps": 1e-6, "antialias": True},
    ),
    "timm dinov2": (
        Timm,
        dict(architecture="vit_small_patch14_dinov2", img_size=56),
        TIMM,
        {"variant": "small", "depth": 2, "patch": 14, "size": 56, "layer_scale": 1.0, "eps": 1e-6, "antialias": True},
    ),
    "timm dinov2, gated": (
        Timm,
        dict(architecture="vit_giant_patch14_dinov2", **SHRUNK),
        TIMM,
        {
            "variant": "tiny",
            "depth": 2,
            "patch": 14,
            "size": 56,
            "layer_scale": 1.0,
            "eps": 1e-6,
            "antialias": True,
            "feed_forward": "swiglu",
        },
    ),
    "authors": (
        Authors,
        dict(
            architecture="vit_small_patch14_dinov2",
            img_size=56,
            variables={"width": 384, "heads": 6, "patch": 14, "size": 56},
        ),
        AUTHORS_DINOV2,
        {"variant": "small", "depth": 2, "size": 56},
    ),
    "authors, registers, gated": (
        Authors,
        dict(
            architecture="vit_giant_patch14_reg4_dinov2",
            **SHRUNK,
            variables={"patch": 14, "size": 56, "registers": 4, "feed_forward": "swiglu"},
        ),
        AUTHORS_DINOV2,
        {"width": 192, "depth": 2, "heads": 3, "size": 56, "registers": 4, "feed_forward": "swiglu"},
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x):
    return model.apply(variables, x, train=False)


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_the_originals(case, tmp_path):
    """At the nominal size and one with fewer rows and more columns; written back, strictly.

    "authors" is compared at the nominal size alone: away from it timm resamples positions in another way.
    """
    build, arguments, table, expected_options = CASES[case]
    torch = pytest.importorskip("torch")
    theirs = build(tmp_path, **arguments)
    state = theirs.state()
    tower = naming.read(table, state, theirs.config)
    assert tower.options == {"name": table.encoder} | expected_options and tower.channels == 3
    assert set(tower.unused) <= FILLED
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    assert all(key in FILLED or np.array_equal(written[key], state[key]) for key in state)
    theirs.load(written)
    model = models.image_encoder(tower.options)
    first, random = 1 + model.registers, np.random.default_rng(3)
    for rows, columns in ((0, 0), (-1, 2))[: 1 if case == "authors" else 2]:
        size = model.size + rows * model.patch, model.size + columns * model.patch
        x = random.normal(size=(2, *size, 3)).astype(np.float32)
        pooled, stages = run(model, tower.variables, x)
        with torch.no_grad():
            tokens = theirs.tokens(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
        close(pooled, tokens[:, 0])
        close(stages["last"].reshape(2, -1, model.width), tokens[:, first:])


def huggingface_shapes(kind, **options):
    """Of the file that transformers would save."""
    package = library("transformers")
    model = getattr(package, f"{kind}Model")(getattr(package, f"{kind}Config")(**options))
    revert = library("transformers.core_model_loading").revert_weight_conversion
    return HUGGINGFACE_VIT if kind == "ViT" else HUGGINGFACE_DINOV2, shapes(revert(model, model.state_dict()))


def timm_shapes(architecture):
    return TIMM, shapes(library("timm").create_model(architecture, num_classes=0).state_dict())


def authors_shapes(architecture):
    """Of a state dict that timm turns into all of its own."""
    import torch

    model = library("timm").create_model(architecture, num_classes=0)
    size, registers = architecture.split("_")[1], 4 * ("reg4" in architecture)
    found = layout(AUTHORS_DINOV2, {"variant": size, "registers": registers})
    filtered = library("timm.models.vision_transformer").checkpoint_filter_fn(
        {key: torch.empty(shape) for key, shape in found.items()}, model
    )
    assert shapes(filtered) == shapes(model.state_dict())
    return AUTHORS_DINOV2, found


def huggingface_sizes(variant):
    return {"hidden_size": variant.width, "num_hidden_layers": variant.depth, "num_attention_heads": variant.heads}


@pytest.mark.parity
@pytest.mark.parametrize(
    "build, arguments, expected",
    [
        *(
            (
                huggingface_shapes,
                dict(
                    kind="ViT",
                    intermediate_size=4 * variant.width,
                    patch_size=14 if name == "huge" else 16,
                    **huggingface_sizes(variant),
                ),
                {"variant": name, "size": 224},
            )
            for name, variant in VIT.items()
        ),
        *(
            (
                huggingface_shapes,
                dict(
                    kind=kind,
                    use_swiglu_ffn=name == "giant",
                    patch_size=14,
                    image_size=518,
                    **huggingface_sizes(variant),
                ),
                {"variant": name, "size": 518} | ({} if kind == "Dinov2" else {"registers": 4}),
            )
            for name, variant in DINOV2.items()
            for kind in ("Dinov2", "Dinov2WithRegisters")
        ),
        *(
            (
                timm_shapes,
                {"architecture": f"vit_{name}_patch{14 if name == 'huge' else 16}_224"},
                {"variant": name, "size": 224, "eps": 1e-6, "antialias": True},
            )
            for name in VIT
        ),
        *(
            (
                authors_shapes,
                {"architecture": f"vit_{name}_patch14_{kind}dinov2"},
                {"variant": name, "size": 518} | ({"registers": 4} if kind else {}),
            )
            for name in DINOV2
            for kind in ("", "reg4_")
        ),
    ],
)
def test_every_variant_has_the_keys_and_shapes_of_the_originals(build, arguments, expected):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        table, theirs = build(**arguments)
    options = table.options(theirs, None)
    assert options == expected
    assert layout(table, options) == theirs


@pytest.mark.parity
@pytest.mark.slow
def test_no_network_of_timm_is_taken_for_another():
    """Those that are accepted have what our network has and no key tells; with one block each, as all are alike."""
    torch, timm = pytest.importorskip("torch"), library("timm")
    accepted = []
    for module in ("vision_transformer", "vision_transformer_hybrid", "deit"):
        for architecture in timm.list_models(module=module):
            with torch.device("meta"):
                theirs = timm.create_model(architecture, num_classes=0, depth=1)
            found = shapes(theirs.state_dict())
            try:
                options = TIMM.options(found, None)
            except UserError:
                continue
            if layout(TIMM, options) != found:
                continue
            accepted.append(architecture)
            block = theirs.blocks[0]
            assert block.attn.num_heads == models.image_encoder({"name": "vit"} | options).heads
            assert block.norm1.eps == block.norm2.eps == theirs.norm.eps == options["eps"]
            assert type(block.mlp.act) is (torch.nn.SiLU if "feed_forward" in options else torch.nn.GELU)
            assert (block.mlp.act.approximate if "feed_forward" not in options else "none") == "none"
            assert theirs.has_class_token and not theirs.no_embed_class
    assert {
        "vit_base_patch16_224",
        "vit_base_patch8_224",
        "vit_huge_patch14_224",
        "deit_small_patch16_224",
        "vit_small_patch16_36x1_224",
        "vit_giant_patch14_dinov2",
    } <= set(accepted)


# --- without PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "who, options, count",
    [
        ("vit", {"variant": "base"}, 86_389_248),
        ("timm", {"variant": "base"}, 85_798_656),
        ("dinov2", {"variant": "small"}, 22_056_576),
        ("dinov2", {"variant": "base", "registers": 4}, 86_583_552),
        ("authors", {"variant": "base", "registers": 4}, 86_583_552),
        ("authors", {"variant": "giant"}, 1_136_480_768),
    ],
)
def test_numbers_of_parameters(who, options, count):
    """Those of transformers' models, with the pooler and the mask token, and of timm's without a classifier."""
    assert sum(int(np.prod(shape)) for shape in layout(NAMINGS[who], options).values()) == count


@pytest.mark.parametrize(
    "who, options, channels",
    [
        ("vit", {}, 1),
        ("dinov2", {"registers": 2}, 3),
        ("dinov2", {"feed_forward": "swiglu"}, 1),
        ("authors", {}, 3),
        ("authors", {"registers": 4, "feed_forward": "swiglu"}, 1),
        ("timm", {}, 3),
        ("timm", {"layer_scale": 1.0, "feed_forward": "swiglu"}, 4),
    ],
)
def test_what_is_read_is_written_bit_for_bit(who, options, channels):
    table, state = NAMINGS[who], random_state(who, channels, **options)
    tower = naming.read(table, state)
    model = models.image_encoder(tower.options)
    assert {key: getattr(model, key) for key in SMALL | options} == SMALL | options and tower.channels == channels
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    assert all(np.array_equal(written[key], state[key]) for key in state)
    assert set(tower.unused) == FILLED & set(state)
    assert len(flatten_dict(tower.variables)) == len(abstract(table, tower.options, channels))
    if who != "authors":
        classifier = "head.weight" if who == "timm" else "classifier.weight"
        assert classifier in naming.read(table, state | {classifier: np.zeros((5, 7))}).unused


def test_signs_tell_the_namings_apart():
    """In the order of `names.NAMINGS`; DINOv2's authors before timm."""
    known = [*(names.naming(name) for name in names.NAMINGS), *NAMINGS.values()]
    for who, options in (
        ("vit", {}),
        ("dinov2", {"registers": 4}),
        ("authors", {}),
        ("authors", {"registers": 4}),
        ("timm", {}),
        ("timm", {"layer_scale": 1.0}),
    ):
        keys = set(random_state(who, **options))
        fitting = [table for table in known if keys.issuperset(table.signs)]
        assert fitting[0] is NAMINGS[who]
        assert all(table in (NAMINGS[who], TIMM) for table in fitting)


def test_places_of_some_arrays():
    """By hand, after the published files."""
    query, key, value = (f"encoder/layer_11/attention/attention/{name}/kernel" for name in ("query", "key", "value"))
    assert HUGGINGFACE_VIT.leaf(key) == ("encoder.layer.11.attention.attention.key.weight", "dense", (0, 1))
    assert HUGGINGFACE_VIT.leaf("encoder/layer_0/mlp/fc2/kernel") == (
        "encoder.layer.0.output.dense.weight",
        "dense",
        (0, 1),
    )
    assert HUGGINGFACE_VIT.leaf("encoder/layer_0/attention/output/dense/bias").key == (
        "encoder.layer.0.attention.output.dense.bias"
    )
    assert HUGGINGFACE_VIT.leaf("encoder/layer_3/norm2/scale").key == "encoder.layer.3.layernorm_after.weight"
    assert HUGGINGFACE_DINOV2.leaf("embeddings/patch_embeddings/projection/kernel") == (
        "embeddings.patch_embeddings.projection.weight",
        "conv",
        (0, 1),
    )
    assert HUGGINGFACE_DINOV2.leaf("encoder/layer_0/layer_scale2/lambda1").key == "encoder.layer.0.layer_scale2.lambda1"
    for table in (AUTHORS_DINOV2, TIMM):
        assert [table.leaf(path) for path in (query, key, value)] == [
            ("blocks.11.attn.qkv.weight", "dense", (i, 3)) for i in range(3)
        ]
        assert table.leaf("encoder/layer_0/layer_scale1/lambda1").key == "blocks.0.ls1.gamma"
        assert table.leaf("layernorm/scale").key == "norm.weight"
    assert AUTHORS_DINOV2.leaf("embeddings/register_tokens").key == "register_tokens"
    assert AUTHORS_DINOV2.leaf("encoder/layer_0/mlp/weights_out/kernel").key == "blocks.0.mlp.w3.weight"


def test_fused_rows_are_query_key_value():
    state = random_state("authors")
    layer = naming.read(AUTHORS_DINOV2, state).variables["params"]["encoder"]["layer_1"]["attention"]["attention"]
    for i, name in enumerate(("query", "key", "value")):
        rows = slice(192 * i, 192 * (i + 1))
        np.testing.assert_array_equal(layer[name]["kernel"], state["blocks.1.attn.qkv.weight"][rows].T)
        np.testing.assert_array_equal(layer[name]["bias"], state["blocks.1.attn.qkv.bias"][rows])


CONFIG = {
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": 20,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "num_register_tokens": 0,
}


@pytest.mark.parametrize(
    "change, told",
    [
        ({}, {}),
        ({"num_attention_heads": 6}, {"heads": 6}),
        ({"layer_norm_eps": 1e-5}, {"eps": 1e-5}),
        ({"patch_size": [4, 4], "image_size": [20, 22]}, {}),  # pixels that fill no patch have no position
    ],
)
def test_config_of_transformers_tells_what_shapes_do_not(change, told):
    found = HUGGINGFACE_DINOV2.options(shapes(random_state("dinov2")), CONFIG | change)
    assert found == {"width": 192, "depth": 2, "heads": 3, "patch": 4, "size": 20} | told


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu_new"}, "hidden_act gelu_new; .* gelu"),
        ({"qkv_bias": False}, "qkv_bias False; .* True"),
        ({"patch_size": 14}, "patch_size 14; the arrays of the file are of 4"),
        ({"patch_size": [4, 8]}, r"\[4, 8\]"),
        ({"image_size": 24}, "image_size 24; .* 20"),
        ({"image_size": [20, 28]}, r"image_size \[20, 28\]"),
        ({"num_register_tokens": 4}, "num_register_tokens 4; .* 0"),
        ({"hidden_size": 768}, "hidden_size 768; .* 192"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12; .* 2"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn True; .* False"),
    ],
)
def test_configs_of_transformers_that_are_another_network(change, message):
    with pytest.raises(UserError, match=message):
        HUGGINGFACE_DINOV2.options(shapes(random_state("dinov2")), CONFIG | change)


@pytest.mark.parametrize(
    "who, spoil, message",
    [
        ("dinov2", lambda s: s.pop("encoder.layer.1.mlp.fc2.bias"), "missing encoder.layer.1.mlp.fc2.bias"),
        ("dinov2", lambda s: s.update({"embeddings.extra": np.zeros(2)}), "unused embeddings.extra"),
        ("dinov2", lambda s: s.pop("embeddings.position_embeddings"), "no embeddings.position_embeddings"),
        ("vit", lambda s: s.update({"layernorm.bias": np.zeros(191)}), r"layernorm.bias has the shape \(191,\)"),
        ("vit", lambda s: s.update({"embeddings.position_embeddings": np.zeros((1, 27, 192))}), "27 positions"),
        (
            "vit",
            lambda s: s.update({"embeddings.patch_embeddings.projection.weight": np.zeros((80, 3, 4, 4))}),
            "80 wide.*Known: 192, 384.*config.json",
        ),
        ("authors", lambda s: s.update({"patch_embed.proj.weight": np.zeros((192, 3, 4, 8))}), r"\(192, 3, 4, 8\)"),
        ("authors", lambda s: s.pop("blocks.0.attn.qkv.bias"), "missing blocks.0.attn.qkv.bias"),
        ("authors", lambda s: s.update({"blocks.0.attn.q_norm.weight": np.zeros(8)}), "unused blocks.0.attn.q_norm"),
        ("timm", lambda s: s.update({"reg_token": np.zeros((1, 4, 192))}), "reg_token.*authors"),
        ("timm", lambda s: s.update({"pos_embed": np.zeros((1, 25, 192))}), "pos_embed has 25 positions.*class token"),
        ("timm", lambda s: s.update({"fc_norm.weight": np.zeros(192)}), "fc_norm.weight.*behind the pooling"),
        ("timm", lambda s: s.update({"norm_pre.weight": np.zeros(192)}), "norm_pre.weight.*before the blocks"),
    ],
)
def test_what_does_not_fit_is_named(who, spoil, message):
    state = random_state(who)
    spoil(state)
    with pytest.raises(UserError, match=message):
        naming.read(NAMINGS[who], state)


@pytest.mark.parametrize(
    "who, options, path",
    [
        ("vit", {"layer_scale": 1.0}, "layer_scale1/lambda1"),
        ("vit", {"registers": 4}, "register_tokens"),
        ("vit", {"feed_forward": "swiglu"}, "weights_in"),
        ("timm", {"registers": 4}, "register_tokens"),
    ],
)
def test_what_others_have_no_place_for_is_not_written(who, options, path):
    with pytest.raises(UserError, match=f"no place for .*{path}"):
        random_state(who, **options)
