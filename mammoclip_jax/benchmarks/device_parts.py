"""What device.py has measured with JAX, each part in a process of its own: lines of JSON on standard output.

    right      each formulation and attention on the device, values and gradients, against float32 on this CPU
    depthwise  every formulation's three passes, at the shapes of an EfficientNet's stages
    step       an image encoder, forward alone and in training: mean square of its features, gradient, AdamW

Few packages are needed (jax, flax, optax, jaxtyping, NumPy), and no config: a GPU that is lent for minutes has no more.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mammoclip_jax.aot import flops
from mammoclip_jax.benchmarks.resident import Peak, give_back
from mammoclip_jax.models import depthwise as convolution
from mammoclip_jax.models import image_encoder
from mammoclip_jax.models.attention import attention, kernels_for
from mammoclip_jax.models.efficientnet import VARIANTS, block_specs, same_pad

LIMITS = {"float32": 5e-5, "bfloat16": 2e-2}  # errors as a share of the largest value
PASSES = ("forward", "dx", "dk")
# Kernel size, stride, pads of the depthwise convolutions that are checked.
CASES = ((3, 1, ((1, 1), (1, 1))), (5, 2, ((1, 2), (2, 2))), (5, 1, ((2, 2), (2, 2))), (3, 2, ((0, 1), (0, 1))))


def right(specification: dict) -> Iterator[dict]:
    """A line a case: what, dtype, error, limit, right. `small`: fewer and smaller ones."""
    yield from _right_convolutions(specification["small"])
    yield from _right_attention(specification["small"])
    yield _right_model(specification["small"])


def _line(what: str, dtype: str, error: float, limit: float) -> dict:
    return {"what": what, "dtype": dtype, "error": float(f"{error:.2g}"), "limit": limit, "right": bool(error <= limit)}


def _error(values, references) -> float:
    """The largest difference in any of the arrays, as a share of that array's largest value; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(references), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def _on_cpu(function: Callable, *arrays):
    """In float32 on this machine's CPU."""
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(function)(*(np.asarray(x, np.float32) for x in arrays)))


def _on_device(function: Callable, *arrays):
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(function)(*arrays))


def _with_gradients(function: Callable, *arrays):
    """Value, and what a given gradient of it (the last array) makes of all inputs."""
    *inputs, gradient = arrays
    value, back = jax.vjp(function, *inputs)
    return value, back(gradient.astype(value.dtype))


def _right_convolutions(small):
    rng = np.random.default_rng(0)
    for k, stride, padding in CASES[: 2 if small else 4]:
        size = (2, 9, 8, 16) if small else (2, 37, 29, 48)
        x, kernel = rng.standard_normal(size, np.float32), rng.standard_normal((k, k, size[-1]), np.float32)
        outputs = [(n + sum(pads) - k) // stride + 1 for n, pads in zip(size[1:3], padding)]
        gradient = rng.standard_normal((size[0], *outputs, size[-1]), np.float32)

        def reference(x, kernel, stride=stride, padding=padding):
            numbers = ("NHWC", "HWIO", "NHWC")
            options = dict(dimension_numbers=numbers, feature_group_count=x.shape[-1])
            return lax.conv_general_dilated(x, kernel[:, :, None], (stride, stride), padding, **options)

        for dtype in LIMITS:
            arrays = [
                np.asarray(x, dtype),
                np.asarray(np.asarray(kernel, dtype), np.float32),
                np.asarray(gradient, dtype),
            ]
            expected = _on_cpu(functools.partial(_with_gradients, reference), *arrays)
            for form in convolution.FORMULATIONS:
                ours = functools.partial(convolution.depthwise_conv, stride=stride, padding=padding, formulation=form)
                found = _on_device(functools.partial(_with_gradients, ours), *arrays)
                yield _line(f"depthwise {form} {k}x{k} stride {stride}", dtype, _error(found, expected), LIMITS[dtype])


def _right_attention(small):
    rng = np.random.default_rng(1)
    queries, keys, d = (70, 61, 8) if small else (640, 577, 64)
    sizes = ((2, 2, queries, d), (2, 2, keys, d), (2, 2, keys, d), (2, 2, queries, d))
    whole = [rng.standard_normal(size, np.float32) for size in sizes]
    for dtype in LIMITS:
        arrays = [np.asarray(x, dtype) for x in whole]
        expected = _on_cpu(functools.partial(_with_gradients, functools.partial(attention, how="plain")), *arrays)
        for how in ("plain", "chunked", "flash"):
            ours = functools.partial(attention, how=how, chunk=32 if small else 256)
            found = _on_device(functools.partial(_with_gradients, ours), *arrays)
            kernel = "cuDNN" if "cuda" in kernels_for(how, *arrays[:2]) else ""
            yield _line(f"attention {how} {kernel}".strip(), dtype, _error(found, expected), LIMITS[dtype])


def _right_model(small):
    """Loss and gradients of a small EfficientNet: the loss to 1e-4, half of the gradients to 1e-3."""
    options = dict(width=0.25, depth=0.25) if small else dict(width=0.5, depth=0.5)
    encoder = image_encoder(dict(name="efficientnet", variant="b0") | options, jnp.float32)
    size = (2, 32, 48, 3) if small else (2, 128, 96, 3)
    images = np.random.default_rng(2).random(size, np.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        start = jax.jit(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, *size[1:])), train=False))
        variables = jax.device_get(start())

    def objective(images):
        return jax.value_and_grad(_loss_of(encoder, variables["batch_stats"], images), has_aux=True)(
            variables["params"]
        )

    (loss, _), gradients = _on_device(objective, images)
    (expected, _), references = _on_cpu(objective, images)
    errors = sorted(_error(a, b) for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(references)))
    line = _line("small EfficientNet, loss and gradients", "float32", errors[len(errors) // 2], 1e-3)
    return line | {"right": line["right"] and _error(loss, expected) < 1e-4}


def _loss_of(encoder, statistics, images):
    """Of parameters: the mean square of the features, and the new statistics."""

    def loss(params):
        rngs = {"dropout": jax.random.key(2)}
        variables = {"params": params} | ({"batch_stats": statistics} if statistics else {})
        (features, _), updated = encoder.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
        return jnp.square(features).mean(), updated.get("batch_stats", {})

    return loss


def depthwise(specification: dict) -> Iterator[dict]:
    """A line a shape and formulation: milliseconds of each pass, None where it was left out.

    Of the specification: variant, options (width, depth), batch, height, width, dtype, steps, first (how many shapes; None
    for all). bound_ms is what reading one map and writing another takes at the device's bandwidth, where that is known.
    """
    known = flops.peak(jax.devices()[0].device_kind)
    dtype = jnp.dtype(specification["dtype"])
    for where, spec, count, (height, width) in stages(specification)[: specification["first"]]:
        padding = tuple(same_pad(n, spec.size, spec.stride) for n in (height, width))
        outputs = [-(-n // spec.stride) for n in (height, width)]
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (specification["batch"], height, width, spec.expanded)).astype(dtype)
        kernel = jax.random.normal(keys[1], (spec.size, spec.size, spec.expanded))
        gradient = jax.random.normal(keys[2], (len(x), *outputs, spec.expanded)).astype(dtype)
        moved = x.nbytes + gradient.nbytes
        for form in convolution.FORMULATIONS:
            line = {
                "where": where,
                "map": "x".join(map(str, x.shape)),
                "kernel": spec.size,
                "stride": spec.stride,
                "blocks": count,
                "form": form,
                "bound_ms": round(1e3 * moved / known.bandwidth, 3) if known else None,
            }
            conv = functools.partial(convolution.depthwise_conv, stride=spec.stride, padding=padding, formulation=form)
            for name in PASSES:
                # The shifted kernel gradient is a loop of small kernels, thousands for a map: CPUs alone run it well.
                left_out = (form, name) == ("shifted", "dk") and jax.default_backend() != "cpu"
                line[f"{name}_ms"] = (
                    None if left_out else _pass_ms(name, conv, x, kernel, gradient, specification["steps"])
                )
            yield line


def stages(specification: dict):
    """(name, block, how many there are, (rows, columns) of their input), the stages with most to do first."""
    scaling, options = VARIANTS[specification["variant"]], specification["options"]
    size = [-(-n // 2) for n in (specification["height"], specification["width"])]
    found: dict[tuple, list] = {}
    for spec in block_specs(options.get("width", scaling.width), options.get("depth", scaling.depth), scaling.lite):
        key = (spec.stage, spec.size, spec.stride, spec.expanded, *size)
        found.setdefault(key, [f"stage {spec.stage}", spec, 0, tuple(size)])[2] += 1
        size = [-(-n // spec.stride) for n in size]
    return sorted(map(tuple, found.values()), key=lambda row: -row[2] * row[1].expanded * row[3][0] * row[3][1])


def _pass_ms(name, conv, x, kernel, gradient, steps):
    run = {
        "forward": lambda x, kernel, gradient: conv(x, kernel),
        "dx": lambda x, kernel, gradient: jax.vjp(lambda x: conv(x, kernel), x)[1](gradient),
        "dk": lambda x, kernel, gradient: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](gradient),
    }[name]
    program = jax.jit(run)
    seconds = _seconds(lambda: jax.block_until_ready(program(x, kernel, gradient)), steps, 2)
    return round(1e3 * float(np.median(seconds)), 3)


def _seconds(step: Callable[[], object], steps: int, warm_up: int) -> list[float]:
    """Of each step that counts; a step ends when the device has done it."""
    for _ in range(warm_up):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def step(specification: dict) -> Iterator[dict]:
    """Lines about one encoder at one batch size, each with what is known by then, so that one cut short says the rest.

    Of the specification: image (options of the encoder), batch, height, width, dtype, steps, warm_up, count (whether FLOPs
    are to be counted). Images lie on the device already.
    """
    device = jax.devices()[0]
    known = flops.peak(device.device_kind)
    about = {"device": device.device_kind, "platform": device.platform, "form": form_of(specification)}
    yield about | ({"peak_flops": known.flops} if known else {})
    encoder = image_encoder(specification["image"], jnp.dtype(specification["dtype"]))
    shape = (specification["batch"], specification["height"], specification["width"], 3)
    variables = jax.jit(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, *shape[1:])), train=False))()
    images = jax.random.uniform(jax.random.key(1), shape)
    yield {"parameters": sum(x.size for x in jax.tree.leaves(variables["params"]))}
    if specification["count"]:
        one = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
        yield {"flops": flops.model_flops(lambda v, x: encoder.apply(v, x, train=False)[0], variables, one)}
    forward = jax.jit(lambda variables, images: encoder.apply(variables, images, train=False)[0])
    seconds = _seconds(lambda: jax.block_until_ready(forward(variables, images)), specification["steps"], 2)
    yield {"forward_seconds": float(np.median(seconds))}
    optimizer = optax.adamw(1e-4)
    state = (variables["params"], variables.get("batch_stats", {}), jax.jit(optimizer.init)(variables["params"]))

    def update(state, images):
        params, statistics, opt_state = state
        loss, gradients = jax.value_and_grad(_loss_of(encoder, statistics, images), has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), loss[1], opt_state), loss[0]

    start = time.perf_counter()
    program = jax.jit(update, donate_argnums=0).lower(state, images).compile()
    yield {"compile_seconds": time.perf_counter() - start}
    give_back()
    resident, held = Peak(), [state]

    def train():
        held[0], loss = program(held[0], images)
        if not np.isfinite(float(loss)):
            raise ArithmeticError(f"the loss is {loss}")
        jax.block_until_ready(held[0])

    seconds = _seconds(train, specification["steps"], specification["warm_up"])
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    yield {
        "seconds": float(np.median(seconds)),
        "p90": float(np.percentile(seconds, 90)),
        "peak_bytes": peak or resident.bytes(),
        "peak_of": "device" if peak else "process",
    }


def form_of(specification: dict) -> str:
    """The formulation of the depthwise convolutions, or of attention, that this device gets."""
    image = specification["image"]
    if image["name"] == "efficientnet":
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        return image.get("depthwise") or f"auto: {convolution.PLATFORMS.get(platform, 'native')}"
    how = image.get("attention", "auto")
    heads = jax.ShapeDtypeStruct((1, 1, 1, 64), jnp.dtype(specification["dtype"]))
    return f"{how}: cuDNN" if "cuda" in kernels_for(how, heads, heads) else how


PARTS = {"right": right, "depthwise": depthwise, "step": step}

if __name__ == "__main__":
    for line in PARTS[sys.argv[1]](json.loads(sys.argv[2])):
        print(json.dumps(line), flush=True)
