"""What every image encoder must do: equal its original in torch, live or stored, and behave as models/__init__ says.

A new encoder gets its forms in image_contract.py, its counterpart in torch_images.py and its line in FAMILIES; what is
its own is tested in its own file. The golden files hold what torch returns in float64 for the small forms, whose
weights `Form.variables` draws from fixed seeds. To make them again (needs torch, transformers, efficientnet_pytorch
and efficientnet_lite_pytorch): `PYTHONPATH=tests python tests/models/test_image_encoders.py`.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import close, close_gradients, one_and_eight
from image_contract import (
    FORMS,
    FULL,
    GOLDEN,
    OTHERS,
    evaluated,
    exact,
    gradients,
    image,
    outputs_at,
    run,
    shapes,
    trained,
)

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import efficientnet
from mammoclip_jax.models.vit import DINOV2


@dataclasses.dataclass(frozen=True)
class Family:
    """Published sizes and what the encoders have in different places.

    Attributes:
        form: the name of that whose behaviour is tested.
        published: parameters of each variant without classifier and pooler, as the originals count them.
        names: some parameters that every variant has.
        stem: kernel of the first convolution.
        shifted: stage that an offset is tried at.
        mean: the stage that the pooled vector ends with the mean of, None where a norm comes between.
        remats: ways to compute again.
        drop: options with which whole paths are dropped at random, and stages before and behind the first of them.
        statistic: running mean that is alike in bfloat16.
    """

    form: str
    published: dict[str, int]
    names: set[str]
    stem: str
    shifted: str
    mean: str | None = None
    remats: tuple[str, ...] = ("block",)
    drop: tuple[dict, str, str] | None = None
    statistic: str | None = None
    correlation: float = 0.98


TOKENS = {
    "embeddings/cls_token",
    "embeddings/position_embeddings",
    "embeddings/patch_embeddings/projection/kernel",
    "encoder/layer_0/attention/attention/query/kernel",
    "encoder/layer_1/attention/output/dense/bias",
    "encoder/layer_0/norm1/scale",
    "layernorm/bias",
}
PATCHES = "embeddings/patch_embeddings/projection/kernel"
FAMILIES = {
    "efficientnet": Family(
        "efficientnet",
        # efficientnet_pytorch 0.7.1 and efficientnet_lite_pytorch 0.1.0 without _fc
        {
            "b0": 4_007_548,
            "b1": 6_513_184,
            "b2": 7_700_994,
            "b3": 10_696_232,
            "b4": 17_548_616,
            "b5": 28_340_784,
            "b6": 40_735_704,
            "b7": 63_786_960,
            "lite0": 3_371_008,
            "lite1": 4_135_680,
            "lite2": 4_811_072,
            "lite3": 6_916_096,
            "lite4": 11_725_568,
        },
        {
            "stem/kernel",
            "stem_bn/scale",
            "block05/expand/kernel",
            "block00/depthwise/kernel",
            "block00/project_bn/bias",
            "head/kernel",
        },
        "stem/kernel",
        "stage5",
        mean="head",
        remats=("block", "conv"),
        # depth for blocks with a shortcut
        drop=({"drop_connect_rate": 0.9, "depth": 0.4}, "stage1", "stage6"),
        statistic="stem_bn",
    ),
    "resnet": Family(
        "resnet",  # torchvision's without fc
        {"18": 11_176_512, "34": 21_284_672, "50": 23_508_032, "101": 42_500_160, "152": 58_143_808},
        {"conv1/kernel", "bn1/scale", "layer2_0/downsample_0/kernel", "layer4_1/conv2/kernel"},
        "conv1/kernel",
        "stage2",
        mean="stage4",
        statistic="bn1",
    ),
    "clip_resnet": Family(
        "clip_resnet",  # OpenAI's visual encoders with their attention pool, counted by hand
        {"RN50": 38_316_896, "RN101": 56_259_936, "RN50x4": 87_137_080, "RN50x16": 167_328_912, "RN50x64": 420_380_352},
        {
            "conv3/kernel",
            "bn3/scale",
            "layer1_0/downsample_0/kernel",
            "layer4_2/conv2/kernel",
            "attnpool/positional_embedding",
            "attnpool/c_proj/bias",
        },
        "conv1/kernel",
        "stage2",
        statistic="bn1",
    ),
    "swin": Family(
        "swin",  # timm's and the authors' without head
        {"tiny": 27_519_354, "small": 48_837_258, "base": 86_743_224, "large": 194_995_476},
        {
            PATCHES,
            "embeddings/norm/scale",
            "layernorm/bias",
            "encoder/layers_0/downsample/reduction/kernel",
            "encoder/layers_2/downsample/norm/bias",
            "encoder/layers_2/blocks_5/attention/self/relative_position_bias_table",
            "encoder/layers_3/blocks_1/attention/output/dense/bias",
            "encoder/layers_0/blocks_1/layernorm_after/scale",
            "encoder/layers_1/blocks_0/intermediate/dense/kernel",
        },
        PATCHES,
        "stage1",
        drop=({"drop_path_rate": 0.9, "depths": (1, 2)}, "stage1", "stage2"),
    ),
    "convnext": Family(
        "convnext",  # the authors' without head
        {"tiny": 27_820_128, "small": 49_454_688, "base": 87_566_464, "large": 196_230_336},
        {
            "embeddings/patch_embeddings/kernel",
            "embeddings/layernorm/scale",
            "layernorm/bias",
            "encoder/stages_1/downsampling_layer_1/bias",
            "encoder/stages_2/layers_8/dwconv/kernel",
            "encoder/stages_0/layers_2/layer_scale_parameter",
            "encoder/stages_3/layers_0/pwconv2/bias",
        },
        "embeddings/patch_embeddings/kernel",
        "stage2",
        drop=({"drop_path_rate": 0.9}, "stage1", "stage2"),
    ),
    # transformers' without the pooler; their mask token, which only pretraining uses, is not ours
    "vit": Family(
        "vit",
        {"tiny": 5_524_416, "small": 21_665_664, "base": 85_798_656, "large": 303_301_632, "huge": 630_764_800},
        TOKENS | {"encoder/layer_0/mlp/fc2/kernel"},
        PATCHES,
        "block1",
        mean="last",
        drop=({"drop_path": 0.9}, "block1", "block2"),
        correlation=0.999,
    ),
    "clip_vit": Family(
        "clip_vit",  # OpenAI's visual encoders without proj, which is the dual encoder's
        {"base": 86_192_640 - 768 * 512, "large": 303_966_208 - 1024 * 768},
        TOKENS | {"pre_layernorm/scale"},
        PATCHES,
        "block1",
        mean="last",
        remats=(),
        correlation=0.999,
    ),
    "dinov2": Family(
        "dinov2",
        {"small": 22_056_576, "base": 86_580_480, "large": 304_368_640, "giant": 1_136_480_768},
        TOKENS | {"encoder/layer_0/layer_scale2/lambda1"},
        PATCHES,
        "block1",
        mean="last",
        drop=({"drop_path": 0.9}, "block1", "block2"),
        correlation=0.999,
    ),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
VARIANTS = [(name, variant) for name, family in FAMILIES.items() for variant in family.published]
# In the slow run, since they take long to trace: those that differ from others in numbers of a table alone.
MAJOR = {"b0", "b5", "lite0", "18", "50", "RN50", "tiny", "base"}


def build(name, **options):
    return models.image_encoder({"name": name} | options)


def test_every_encoder_is_here():
    assert set(FAMILIES) == set(models.IMAGE_ENCODERS)


# --- against torch ----------------------------------------------------------------------------------------------------


def compared(form, outputs):
    """Those that torch gives too."""
    return {name: outputs[name] for name in form.compared or outputs}


def equal(form, ours, theirs, tolerance):
    ours = compared(form, ours)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        close(ours[name], expected, tolerance)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parity
@pytest.mark.parametrize("name", [*FORMS, *OTHERS, *map(slow, FULL)])
def test_features_equal_torch(name):
    """In float32 rounding; a full one at an odd size too, where it has statistics in training."""
    form = (FORMS | OTHERS | FULL)[name]
    model, variables = form.model(), form.variables()
    for size in (form.even,) if name in FORMS else (form.even, form.size):
        theirs, x = form.theirs.model(model, variables), image(size)
        train = size == form.size and "batch_stats" in variables
        ours, stats = run(model, variables, x, train)
        outputs, buffers, _ = form.theirs.run(theirs, x, train)
        equal(form, ours, outputs, 1e-4)
    for name, value in form.theirs.state(stats).items():
        close(value, buffers[name], 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", [*FORMS, slow("efficientnet_b0")])
def test_gradients_equal_torch(name):
    """In float64: features in evaluation, features, statistics and every parameter's gradient in training."""
    form = (FORMS | FULL)[name]
    model, variables, x, weights = exact(form)
    outputs, _, _ = form.theirs.run(form.theirs.model(model, variables), x)
    equal(form, evaluated(form), outputs, 1e-6)
    slopes, ours, stats = trained(form)
    outputs, buffers, theirs = form.theirs.run(form.theirs.model(model, variables), x, True, weights)
    equal(form, ours, outputs, 1e-6)
    for name, value in form.theirs.state(stats).items():
        close(value, buffers[name], 1e-6)
    close_gradients(form.theirs.state(slopes), theirs, form.tolerance)


def mean(value):
    """Over the pixels of a map."""
    return value.mean((1, 2)) if value.ndim == 4 else value


def write_golden(folder=GOLDEN):
    """Maps averaged over pixels, in both modes where they differ, running statistics, norms of the gradients."""
    files = {}
    for form in FORMS.values():
        if form.golden is None:
            continue
        file, prefix = form.golden
        model, variables, x, weights = exact(form)
        outputs, _, _ = form.theirs.run(form.theirs.model(model, variables), x)
        again, buffers, slopes = form.theirs.run(form.theirs.model(model, variables), x, True, weights)
        modes = {"evaluated/": outputs, "trained/": again} if "batch_stats" in variables else {"": outputs}
        arrays = {f"{mode}{name}": mean(value) for mode, found in modes.items() for name, value in found.items()}
        for name, leaf in shapes(model).items():
            key = next(iter(form.theirs.state({name: np.zeros(leaf.shape)})))
            if name.startswith("batch_stats/"):
                arrays[name] = buffers[key]
            else:
                arrays[f"gradient_norm/{form.name(name)}"] = np.linalg.norm(slopes[key])
        files.setdefault(file, {}).update({prefix + name: np.float32(value) for name, value in arrays.items()})
    for file, arrays in files.items():
        np.savez_compressed(folder / f"{file}.npz", **arrays)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.golden])
def test_small_form_equals_golden(name):
    form = FORMS[name]
    file, prefix = form.golden
    golden = {
        key.removeprefix(prefix): value
        for key, value in np.load(GOLDEN / f"{file}.npz").items()
        if key.startswith(prefix)
    }
    slopes, outputs, stats = trained(form)
    modes = ("evaluated/", "trained/") if stats else ("", "")
    ours = [
        (f"{mode}{key}", mean(value))
        for mode, found in zip(modes, (evaluated(form), outputs), strict=True)
        for key, value in compared(form, found).items()
    ]
    ours += stats.items()
    ours += [(f"gradient_norm/{form.name(key)}", np.linalg.norm(value)) for key, value in slopes.items()]
    assert set(golden) == {key for key, _ in ours}
    largest = max(value for key, value in golden.items() if key.startswith("gradient_norm")) if stats else 1.0
    for key, value in ours:
        close(value, golden[key], 1e-6, 1e-9 * largest if key.startswith("gradient_norm") or not stats else 0)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, variant",
    [pytest.param(*pair, marks=[] if pair[1] in MAJOR else [pytest.mark.slow], id="-".join(pair)) for pair in VARIANTS],
)
def test_parameter_counts_and_names(name, variant):
    leaves = {
        key.removeprefix("params/"): leaf
        for key, leaf in shapes(build(name, variant=variant)).items()
        if key.startswith("params/")
    }
    mask_token = DINOV2[variant].width if name == "dinov2" else 0
    assert sum(leaf.size for leaf in leaves.values()) + mask_token == FAMILIES[name].published[variant]
    assert FAMILIES[name].names <= set(leaves)
    if name == "efficientnet":
        for key in ("block00/se/reduce/kernel", "block00/se/expand/bias"):
            assert (key in leaves) != efficientnet.VARIANTS[variant].lite


@pytest.mark.parametrize(
    "name, options, channels, maps",
    [
        ("efficientnet", {"variant": "b5"}, 2048, {"head": (48, 29, 2048)}),
        ("efficientnet", {"variant": "b2"}, 1408, {"head": (48, 29, 1408)}),
        ("resnet", {"variant": "50", "fc": 512}, 512, {"stage4": (48, 29, 2048)}),
        ("clip_resnet", {}, 1024, {"stage3": (95, 57, 1024), "stage4": (47, 28, 2048)}),
        ("clip_vit", {}, 768, {"last": (95, 57, 768)}),
        ("swin", {}, 768, {"stage1": (380, 228, 96), "stage4": (48, 29, 768)}),
        ("convnext", {}, 768, {"stage4": (47, 28, 768)}),
    ],
)
def test_maps_of_the_published_size(name, options, channels, maps):
    model = build(name, **options)
    outputs = outputs_at(model, (1, 1520, 912, 3))
    assert outputs.pop("pooled").shape == (1, channels)
    assert set(outputs) == set(model.stage_names)
    for stage, shape in maps.items():
        assert outputs[stage].shape == (1, *shape)


@pytest.mark.parametrize(
    "name, changes, size, cells",
    [
        ("resnet_basic", {"width": 2, "depths": (1, 1, 1, 1)}, (96, 32), {"stem": 6, "stage1": 6, "stage2": 6}),
        ("convnext", {"width": 2, "depths": (1, 1)}, (128, 32), {"stem": 6, "stage1": 9, "stage2": 7}),
    ],
    ids=["resnet", "convnext"],
)
def test_stage_grids_say_where_a_cell_looks(name, changes, size, cells):
    """A NaN in row p reaches the cells that see row p: the mean of a cell's rows is its centre."""
    form = dataclasses.replace(FORMS[name], options=FORMS[name].options | changes)
    model, (height, width) = form.model(), size
    x = np.zeros((height, height, width, 1), np.float32)
    x[np.arange(height), np.arange(height)] = np.nan
    outputs, _ = run(model, form.variables(channels=1), x)
    for stage, i in cells.items():
        stride, centre = model.stage_grids(height, width)[stage]
        rows = np.flatnonzero(np.isnan(outputs[stage][:, i]).any((1, 2)))
        assert rows[0] > 0 and rows[-1] < height - 1 and rows.mean() + 0.5 == stride * i + centre[0]


@families
def test_any_number_of_channels(family):
    """They change the stem's kernel and nothing else."""
    model = FORMS[family.form].model()
    stem = f"params/{family.stem}"
    three = shapes(model)
    for channels in (1, 4):
        leaves = dict(shapes(model, channels))
        assert leaves.pop(stem).shape == (*three[stem].shape[:2], channels, three[stem].shape[3])
        assert leaves == {name: leaf for name, leaf in three.items() if name != stem}


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, changes, size",
    [
        # The formulations have a partition each: the one that compiles sooner is in every run.
        slow("efficientnet", {"width": 0.24, "depthwise": "shifted"}, (8, 32, 24, 3)),
        ("efficientnet", {"width": 0.24, "depthwise": "native"}, (8, 32, 24, 3)),
        slow("resnet", {}, (8, 40, 32, 3)),
        slow("clip_resnet", {"depths": (1, 1, 1, 1)}, (8, 64, 32, 3)),
        slow("swin", {"depths": (2, 1)}, (8, 40, 72, 3)),
        slow("convnext", {"depths": (1, 1), "depthwise": "shifted"}, (8, 16, 24, 3)),
        slow("convnext", {"depths": (1, 1), "depthwise": "native"}, (8, 16, 24, 3)),
        ("dinov2", {"attention": "chunked"}, (8, 12, 16, 3)),
    ],
    ids=str,
)
def test_gradients_on_eight_devices_equal_one(name, changes, size, monkeypatch):
    """Every parameter: the partitioner multiplies depthwise gradients when the batch is not over all mesh axes."""
    monkeypatch.setattr(efficientnet, "STAGES", tiny.STAGES)
    with jax.enable_x64(True):
        form = dataclasses.replace(
            FORMS[name], options=FORMS[name].options | changes | ({"depth": 1.0} if name == "efficientnet" else {})
        )
        model, variables, x = form.model(jnp.float64), form.variables(np.float64), image(size, dtype=np.float64)
        like = outputs_at(model, size)
        weights = {key: np.random.default_rng(7).normal(size=like[key].shape) for key in form.objective}
        alone, together = one_and_eight(functools.partial(gradients, model), variables, x, weights)
    close_gradients(together[0], alone[0], 1e-9)
    jax.tree.map(functools.partial(close, tolerance=1e-10), together[1:], alone[1:])


@functools.partial(jax.jit, static_argnums=0)
def energy(model, variables, x, weights, offsets):
    """The sum of `weights` times the pooled vector, its gradient by the offsets, and the stages."""

    def objective(offsets):
        pooled, stages = model.apply(variables, x, train=False, offsets=offsets)
        return jnp.sum(pooled * weights), stages

    return jax.value_and_grad(objective, has_aux=True)(offsets)


@families
def test_offsets_are_added_and_give_the_gradient_of_a_stage(family):
    form, stage = FORMS[family.form], family.shifted
    model, variables, x, _ = exact(form)
    stages = dict(evaluated(form))
    pooled = stages.pop("pooled")
    weights = np.random.default_rng(8).normal(size=pooled.shape)
    with jax.enable_x64(True):
        zeros = jax.tree.map(np.zeros_like, stages)
        (before, _), slopes = energy(model, variables, x, weights, zeros)
        shift = 1e-6 * image(stages[stage].shape, 1, np.float64)
        (after, moved), _ = energy(model, variables, x, weights, zeros | {stage: shift})
    assert set(slopes) == set(model.stage_names)
    assert all(np.abs(slope).max() > 0 for slope in slopes.values())
    close(moved[stage], stages[stage] + shift, 1e-10)
    assert np.isclose(after - before, np.sum(slopes[stage] * shift), rtol=1e-3)
    if family.mean:
        last = stages[family.mean]
        _, height, width, channels = last.shape
        close(pooled[:, -channels:], last.mean((1, 2)), 1e-10)
        share = weights[:, None, None, -channels:] / (height * width)
        close(slopes[family.mean], np.broadcast_to(share, last.shape), 1e-10)
    with pytest.raises(UserError, match="stage99"):
        jax.eval_shape(lambda: form.model().apply(form.variables(), image(form.size), offsets={"stage99": 0}))


@pytest.mark.slow
@pytest.mark.parametrize("name, remat", [(name, remat) for name in FAMILIES for remat in FAMILIES[name].remats])
def test_recomputation_changes_no_gradient(name, remat):
    form = FORMS[FAMILIES[name].form]
    plain, variables, x, weights = exact(form)
    with jax.enable_x64(True):
        again = form.model(jnp.float64, remat=remat)
        assert shapes(plain).keys() == shapes(again).keys()
        assert "remat" in str(gradients.trace(again, variables, x, weights).jaxpr)
        assert "remat" not in str(gradients.trace(plain, variables, x, weights).jaxpr)
        slopes = jax.device_get(gradients(again, variables, x, weights))[0]
    close_gradients(slopes, trained(form)[0], 1e-9)


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES.values() if family.drop],
    ids=[name for name, family in FAMILIES.items() if family.drop],
)
def test_training_drops_whole_paths_more_often_in_later_blocks(family):
    """And evaluation none: its program is that of an encoder that drops nothing."""
    form = FORMS[family.form]
    changes, before, behind = family.drop
    model, still = form.model(**changes), form.model(**{**changes, next(iter(changes)): 0.0})
    variables = dataclasses.replace(form, options=form.options | changes).variables()
    x = image((4, *form.even[1:]))

    @jax.jit
    def apply(key):
        (pooled, stages), _ = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return stages | {"pooled": pooled}

    first, again, other = (apply(jax.random.key(i)) for i in (0, 0, 1))
    assert np.array_equal(first["pooled"], again["pooled"]) and not np.allclose(first["pooled"], other["pooled"])
    assert np.array_equal(first[before], other[before])  # the first block's rate is 0
    assert not np.allclose(first[behind], other[behind])
    programs = {re.sub(" at 0x[0-9a-f]+", "", str(run.trace(which, variables, x).jaxpr)) for which in (model, still)}
    assert len(programs) == 1


@families
def test_low_precision_keeps_float32_parameters_and_pooled(family):
    form = FORMS[family.form]
    low = form.model(jnp.dtype("bfloat16"))
    assert {leaf.dtype for leaf in shapes(low).values()} == {jnp.dtype(jnp.float32)}
    outputs, stats = run(low, form.variables(), image(form.size), True)
    _, expected, expected_stats = trained(form)
    assert outputs["pooled"].dtype == jnp.float32
    assert {value.dtype for name, value in outputs.items() if name != "pooled"} == {jnp.dtype("bfloat16")}
    assert np.corrcoef(np.ravel(outputs["pooled"]), np.ravel(expected["pooled"]))[0, 1] > family.correlation
    if family.statistic:
        name = f"batch_stats/{family.statistic}/mean"
        close(stats[name], expected_stats[name], 1e-2)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("efficientnet", {"variant": "b9"}, "variant 'b9'.*b0"),
        ("efficientnet", {"pads": "nominl"}, "Did you mean 'nominal'"),
        ("efficientnet", {"remat": "all"}, "remat='all' must be one of"),
        ("efficientnet", {"remat": "block,block"}, "one a stage"),
        ("efficientnet", {"pooling": "mean"}, "pooling 'mean'"),
        ("efficientnet", {"output_stride": 4}, "no output_stride 4.* Known: 8, 16, 32"),
        ("resnet", {"variant": "51"}, "variant '51'.*Known: 18"),
        ("resnet", {"remat": "blok"}, "'block'"),
        ("clip_resnet", {"variant": "RN5O"}, "Did you mean 'RN50'"),
        ("clip_resnet", {"remat": "blok"}, "'block'"),
        ("clip_vit", {"variant": "huge"}, "variant 'huge'.*large"),
        ("clip_vit", {"act": "quick"}, "act 'quick'"),
        ("swin", {"variant": "tyny"}, "Did you mean 'tiny'"),
        ("swin", {"remat": "all"}, "remat 'all'"),
        ("swin", {"depths": (2, 1)}, "2 stages and heads=.* for 4"),
        ("swin", {"width": 100}, "stage 1 has 100 channels.* 3 heads"),
        ("swin", {"window": 0}, "window=0"),
        ("convnext", {"variant": "tyny"}, "Did you mean 'tiny'"),
        ("convnext", {"remat": "all"}, "remat 'all'"),
        ("vit", {"variant": "bse"}, "Did you mean 'base'"),
        ("dinov2", {"variant": "huge"}, "variant 'huge'.*giant"),
        ("vit", {"pooling": "max"}, "pooling 'max'"),
        ("vit", {"remat": "blok"}, "Did you mean 'block'"),
        ("dinov2", {"register": 4}, "Did you mean 'registers'"),
        ("vit", {"stages": (13,)}, "block 13"),
        ("vit", {"heads": 5}, "multiple of heads"),
        ("vit", {"attention": "flsh"}, "attention 'flsh'"),
    ],
)
def test_wrong_options_name_the_right_ones(name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, **options)


if __name__ == "__main__":
    from live import declare_operators

    declare_operators()
    write_golden()
