"""What a compiled training step costs, as figures a chip, an image and a step."""

import math

import jax

from mammoclip_jax.aot import collectives, cycles, device_memory, flops, hlo, traffic
from mammoclip_jax.aot.program import Compiled
from mammoclip_jax.aot.topology import Topology
from mammoclip_jax.tasks.trainer import Trainer
from mammoclip_jax.training.optimizer import frozen_parameters


def describe(config, trainer: Trainer, compiled: Compiled, target: Topology) -> dict:
    """All figures of one program; those after `fits` only where it does.

    Returns:
        topology, chips, device_kind, images_per_chip, breasts_per_chip, arguments {kind: bytes}, hbm_bytes, fits,
        memory {kind: bytes}, compile_seconds, versions, key; and of one chip in one step
        xla_flops, xla_bytes: XLA's figures with loops counted as often as they run; `loops` is what that multiplied
        them by, unknown_loops those that count once; flops_per_image and bytes_per_image are the same by image;
        model_flops, model_flops_per_image; counted_bytes and counted_hbm_bytes (traffic.Sums), heaviest;
        estimated_cycles, estimated_seconds (None without a clock or a note), unknown_kernels: names of kernels without
        cycles; images_per_second {bandwidth, flops, cycles, bound}; collectives (see `_collectives`).
    """
    breasts, views = trainer.batch["image"].shape[:2]
    chips = trainer.mesh.size
    images = breasts * views / chips
    kind = target.devices[0].device_kind
    figures = {
        "topology": target.name,
        "chips": chips,
        "device_kind": kind,
        "images_per_chip": images,
        "breasts_per_chip": breasts / chips,
        "arguments": device_memory.arguments(trainer.state, trainer.batch),
        "hbm_bytes": compiled.memory.get("available", target.hbm),
        "fits": compiled.fits,
        "memory": compiled.memory,
        "compile_seconds": compiled.seconds,
        "versions": compiled.versions,
        "key": compiled.key,
    }
    if not compiled.fits:
        return figures
    program = hlo.parse(compiled.text)
    costs = traffic.costs(program)
    once, often = traffic.total(costs, loops=False), traffic.total(costs)
    loops = {name: getattr(often, name) / max(getattr(once, name), 1) for name in ("flops", "bytes")}
    moved, computed = compiled.cost["bytes"] * loops["bytes"], compiled.cost["flops"] * loops["flops"]
    model = flops.training_flops(trainer, config) / chips
    expected = cycles.total(program)
    seconds = estimated_seconds(kind, expected)
    figures |= {
        "xla_flops": computed,
        "model_flops": model,
        "xla_bytes": moved,
        "loops": loops,
        "unknown_loops": list(program.unknown_loops),
        "counted_bytes": often.bytes,
        "counted_hbm_bytes": often.hbm,
        "flops_per_image": computed / images,
        "model_flops_per_image": model / images,
        "bytes_per_image": moved / images,
        "estimated_cycles": expected.cycles,
        "estimated_seconds": seconds,
        "unknown_kernels": list(expected.kernels),
        "images_per_second": bounds(kind, images, moved, computed, seconds),
        "collectives": _collectives(config, trainer, program),
        "heaviest": traffic.heaviest(costs, 20),
    }
    return figures


def estimated_seconds(kind: str, expected: cycles.Estimate) -> float | None:
    """Of one step, by the compiler's cycles at the chip's clock; None where either is not known."""
    peak = flops.peak(kind)
    return expected.cycles / peak.clock if peak and peak.clock and expected.noted else None


def bounds(kind: str, images: float, moved: float, computed: float, seconds: float | None = None) -> dict[str, float]:
    """Images per second and chip that memory bandwidth, FLOPs, `seconds` a step and the scarcest of them allow.

    {} without known peaks.
    """
    peak = flops.peak(kind)
    if peak is None or not moved or not computed:
        return {}
    rates = {"bandwidth": images * peak.bandwidth / moved, "flops": images * peak.flops / computed}
    if seconds:
        rates["cycles"] = images / seconds
    return rates | {"bound": min(rates.values())}


def _collectives(config, trainer, program) -> dict:
    """Sums by kind, the largest, and what they are compared with.

    Expected are one pass of all trained parameters' gradients, each in the type it travels in, and the float32 vectors
    of the global batch. `image_batch_bytes` are the stored images of one chip: a collective of that size would be
    moving images or maps, unless it has the shape of a parameter.
    """
    ops = collectives.find(program)
    frozen = frozen_parameters(config.train, trainer.state.params, config.model.frozen)
    trained = [x for x, still in zip(jax.tree.leaves(trainer.state.params), jax.tree.leaves(frozen)) if not still]
    image_batch = device_memory.shard_bytes(trainer.batch["image"])
    breasts, views = trainer.batch["image"].shape[:2]
    vectors = breasts * (views + trainer.batch["token_ids"].shape[1]) * config.model.dim * 4
    gradients = gradient_bytes(trained, ops)
    total = sum(collective.total for collective in ops)
    return {
        "by_kind": collectives.by_kind(ops),
        "bytes": total,
        "gradient_bytes": gradients,
        "embedding_bytes": vectors,
        "ratio": total / (gradients + vectors),
        "image_batch_bytes": image_batch,
        "gradient_bytes_float32": sum(math.prod(x.shape) * 4 for x in trained),
        "largest": str(ops[0]) if ops else "",
        "largest_bytes": ops[0].bytes if ops else 0,
        "as_large_as_images": [str(each) for each in large(trainer.state.params, ops, image_batch)],
    }


def gradient_bytes(parameters, ops) -> int:
    """Bytes of one gradient of each parameter, in the type that an array of its size has in `ops`; else float32."""
    travelling = {}
    for collective in ops:
        for array in collective.arrays:
            travelling.setdefault(math.prod(array.shape), []).append(array.bytes)
    total = 0
    for x in parameters:
        sizes = travelling.get(x.size)
        total += min(sizes) if sizes else x.size * 4
    return total


def large(parameters, ops, size: int) -> list:
    """Collectives with an array of `size` bytes or more that has no parameter's shape.

    Nor that of a stack of equal parameters; axes of one and the order of axes are the compiler's.
    """
    forms = {_form(x.shape) for x in jax.tree.leaves(parameters)}
    return [
        each
        for each in ops
        if any(
            array.bytes >= size and not {_form(array.shape), _form(array.shape[1:])} & forms for array in each.arrays
        )
    ]


def _form(shape):
    return tuple(sorted(n for n in shape if n > 1))
