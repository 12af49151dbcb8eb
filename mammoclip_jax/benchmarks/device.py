"""One device in minutes: is what it computes right, how fast are a stage's convolutions, whole steps and PyTorch's.

Parts run one after another, each in a process of its own with a time limit (device_parts.py, device_torch_peer.py): what
runs out of memory or time, or fails, is a row that says so. This module itself starts no device, whose memory the parts
need. Batches grow until memory is full.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mammoclip_jax import provenance
from mammoclip_jax.benchmarks.device_process import FULL, environment, gpu_facts, part
from mammoclip_jax.errors import UserError

OURS, PEER = "mammoclip_jax.benchmarks.device_parts", "mammoclip_jax.benchmarks.device_torch_peer"
# Of one part, in seconds; a step's compilation on a GPU tries many kernels.
LIMITS = {"right": 120, "depthwise": 100, "step": 150}
TRIAL = "This was a trial of the command: its figures say nothing."
LEAST = 10  # seconds; no part starts with less left
# The flag that jax's "GPU performance tips" name and no default has: more kernels for XLA to try for each product.
TRITON = "--xla_gpu_triton_gemm_any=true"


class Model(NamedTuple):
    """What is measured: the encoder's options, the images' size, batches to begin with, timm's name for the same."""

    name: str
    image: dict
    size: tuple[int, int]
    batches: tuple[int, ...]
    peer: tuple[str, dict] | None
    variants: tuple[dict, ...]  # options in place of the platform's choice, tried last at the first batch
    remat: str  # tried where the memory was full


class Plan(NamedTuple):
    """Of a whole run; `dtype` of products and activations."""

    models: tuple[Model, ...]
    depthwise: dict
    dtype: str
    steps: int
    warm_up: int
    small: bool


def plan(
    *, small: bool = False, height: int = 1520, width: int = 912, batches: Sequence[int] = (), steps: int, warm_up: int
) -> Plan:
    """EfficientNet-B5 at `height` x `width` and ViT-B/14 with registers at 1022 x 1022; `small`: a trial in a minute.

    Args:
        batches: those to measure, of both; () begins at 8.
    """
    growing = tuple(batches) or ((2,) if small else (8, 32, 64, 128, 256))
    if small:
        b0 = dict(name="efficientnet", variant="b0", width=0.25, depth=0.25)
        tiny = dict(name="vit", variant="tiny", depth=2, size=96)
        models = (
            Model("small EfficientNet", b0, (64, 48), growing, None, (), "expand"),
            Model(
                "small ViT", tiny, (96, 96), growing, ("vit_tiny_patch16_224", dict(depth=2, img_size=96)), (), "block"
            ),
        )
        shapes = dict(variant="b0", options=dict(width=0.25, depth=0.25), batch=1, height=32, width=32, first=2)
    else:
        b5 = dict(name="efficientnet", variant="b5")
        b14 = dict(name="dinov2", variant="base", registers=4, size=1022)
        models = (
            Model(
                "EfficientNet-B5",
                b5,
                (height, width),
                growing,
                ("efficientnet_b5", dict(drop_rate=0.4, drop_path_rate=0.2)),
                ({"depthwise": "native"}, {"flags": TRITON}),
                "expand",
            ),
            Model(
                "ViT-B/14",
                b14,
                (1022, 1022),
                growing,
                ("vit_base_patch14_reg4_dinov2", dict(img_size=1022)),
                ({"attention": "chunked"},),
                "block",
            ),
        )
        shapes = dict(variant="b5", options={}, batch=8, height=height, width=width, first=None)
    return Plan(models, shapes, "bfloat16", steps, warm_up, small)


def measure(
    whole: Plan,
    *,
    seconds: float,
    only: Sequence[str] = (),
    run: Callable | None = None,
    say: Callable[[str], None] | None = None,
) -> dict:
    """Everything, in this order: checks, convolutions, steps batch by batch with the peer beside each, variants.

    Args:
        seconds: of all parts together.
        only: of "right", "depthwise" and "step", () for all.
        run: in place of `part`, for tests.
        say: told of each part that is done; None prints to standard error.

    Returns:
        rows (of steps, see `row`), checks, depthwise (lines of device_parts.py), advice (list of str), wrong (checks that
        failed), unfinished {part: why}.

    Raises:
        UserError: a part in `only` does not exist, or nothing at all could be measured.
    """
    if unknown := set(only) - LIMITS.keys():
        raise UserError(f"--parts={sorted(unknown)[0]} does not exist. Known: {', '.join(LIMITS)}.")
    run = run or part
    parts = _Parts(whole, time.monotonic(), seconds, run, say or _print)
    wanted = [name for name in LIMITS if name in only or not only]
    found, unfinished = {"right": [], "depthwise": []}, {}
    for name, specification in (
        ("right", {"small": whole.small}),
        ("depthwise", whole.depthwise | {"dtype": whole.dtype, "steps": whole.steps}),
    ):
        if name in wanted:
            found[name], ended = parts.lines(OURS, name, specification)
            failed = sum(not line.get("right", True) for line in found[name])
            parts.done(f"{name}: {len(found[name])} rows, {failed} wrong" + (f" ({ended})" if ended else ""))
            unfinished |= {name: ended} if ended else {}
    checks, depthwise = found.values()
    rows = parts.steps() if "step" in wanted else []
    if not (checks or depthwise or rows):
        raise UserError(f"nothing was measured within {seconds:.0f} s.")
    wrong = [f"{check['what']} {check['dtype']}".strip() for check in checks if not check["right"]]
    return {
        "rows": rows,
        "checks": checks,
        "depthwise": depthwise,
        "advice": [*advice(rows, depthwise, wrong, unfinished), *[TRIAL] * whole.small],
        "wrong": wrong,
        "unfinished": unfinished,
    }


class _Parts:
    """The parts of one run: its clock, the facts about its machine, and the rows so far."""

    def __init__(self, whole, begun, seconds, run, say):
        self.plan, self.begun, self.seconds, self.run, self.say = whole, begun, seconds, run, say
        self.facts, self.flops, self.platform, self.peak = gpu_facts(), {}, "cpu", None

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    def done(self, what: str) -> None:
        self.say(f"{time.monotonic() - self.begun:5.0f} s  {what}")

    def lines(self, module, name, specification, flags="") -> tuple[list[dict], str]:
        limit = min(LIMITS[name] * (3 if self.plan.small else 1), self.left())  # a trial is on slow CPUs
        if limit < LEAST:
            return [], "no time left"
        return self.run(module, name, specification, limit, environment(self.plan.small, flags))

    def steps(self) -> list[dict]:
        """Each batch of each model, ours and the peer's, until memory or time is at an end; then what is left to try."""
        rows, ended = [], set()
        has_peer = all(importlib.util.find_spec(package) for package in ("torch", "timm"))
        largest = max(len(model.batches) for model in self.plan.models)
        for number in range(largest):
            for model in self.plan.models:
                for side in ("jax", "torch"):
                    if number >= len(model.batches) or (side, model.name) in ended:
                        continue
                    if side == "torch" and not (has_peer and model.peer):
                        continue
                    batch = model.batches[number]
                    rows.append(self.step(model, side, batch))
                    if rows[-1]["status"] != "ok":
                        ended.add((side, model.name))
                    if side == "jax" and rows[-1]["status"].startswith(FULL):
                        rows.append(self.step(model, side, batch, {"remat": model.remat}))
        for model in self.plan.models:
            ours, theirs = ([row["batch"] for row in rows if _fits(row, side, model.name)] for side in ("jax", "torch"))
            if theirs and not self.plan.small:
                rows.append(self.step(model, "torch", max(theirs), compiled=True))
            for variant in model.variants if ours and self.platform == "gpu" else ():
                rows.append(self.step(model, "jax", min(ours), variant))
        return rows

    def step(self, model, side, batch, variant: Mapping[str, str] = {}, compiled=False) -> dict:
        """A row; what was known when the process ended is in it, whatever ended it."""
        options = {name: value for name, value in variant.items() if name != "flags"}
        specification = {
            "image": model.image | options,
            "peer": model.peer,
            "batch": batch,
            "height": model.size[0],
            "width": model.size[1],
            "dtype": self.plan.dtype,
            "steps": self.plan.steps,
            "warm_up": self.plan.warm_up,
            "count": model.name not in self.flops,
            "compiled": compiled,
            "platform": self.platform,
        }
        lines, ended = self.lines(OURS if side == "jax" else PEER, "step", specification, variant.get("flags", ""))
        found: dict[str, Any] = {}
        for line in lines:
            found |= line
        self.platform, self.peak = found.get("platform", self.platform), found.get("peak_flops", self.peak)
        if "flops" in found:
            self.flops[model.name] = found["flops"]
        found |= {"flops": self.flops.get(model.name), "peak_flops": self.peak}  # of PyTorch's rows too
        made = row(model, side, specification, found, ended, self.facts, variant.get("flags", ""))
        rate = made["images_per_second"]
        self.done(
            f"{side} {model.name}, {batch} images, {made['form'] or 'not begun'}: {made['status']}"
            + (f", {rate} images/s" if rate else "")
        )
        return made


def row(model: Model, side: str, specification: dict, found: Mapping, ended: str, facts: dict, flags: str = "") -> dict:
    """A row of the table: one encoder at one batch size; None is what was not measured.

    forward_images_per_second is of inference, images_per_second of training, ms a training step, peak_gib of what was
    allocated on the device (of a process on CPU); compile_seconds of the training step, of PyTorch its first step; mfu
    the share of the device's bfloat16 peak that three forward passes of the model's products are (aot/flops.py).
    """
    seconds, forward = found.get("seconds"), found.get("forward_seconds")
    batch, image = specification["batch"], specification["image"]
    packages = ("jax", "jaxlib", "flax") if side == "jax" else ("torch", "timm")
    peak = found.get("peak_bytes")
    known = seconds and found.get("flops") and found.get("peak_flops")  # bfloat16's peak says nothing of other products
    share = 3 * batch * found["flops"] / seconds / found["peak_flops"] if known else None
    return {
        "side": side,
        "model": model.name,
        "size": "x".join(map(str, model.size)),
        "batch": batch,
        "dtype": specification["dtype"],
        "form": found.get("form"),
        "remat": image.get("remat", "none") if side == "jax" else "none",
        "forward_images_per_second": _digits(forward and batch / forward),
        "images_per_second": _digits(seconds and batch / seconds),
        "ms": _digits(seconds and 1e3 * seconds),
        "p90_ms": _digits(found.get("p90") and 1e3 * found["p90"]),
        "peak_gib": None if peak is None else round(peak / 2**30, 2),
        "compile_seconds": _digits(found.get("compile_seconds")),
        "mfu": _digits(share),
        "parameters": found.get("parameters"),
        "status": ended or ("ok" if seconds else "ended early"),
        "peak_of": found.get("peak_of"),
        "flags": flags,
        "device": found.get("device"),
        **facts,
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions(packages).items()),
    }


def _digits(value) -> float | None:
    return float(f"{value:.4g}") if value else None


def advice(
    rows: Sequence[dict], depthwise: Sequence[dict], wrong: Sequence[str], unfinished: Mapping[str, str] = {}
) -> list[str]:
    """A line a model: which batch, remat and form train the most images a second, and what PyTorch does at best.

    What a check found wrong is said first; the fastest formulation of each pass of the depthwise convolutions last.
    """
    lines = [f"WRONG on this device, do not train with it: {', '.join(wrong)}."] if wrong else []
    lines += [f"Not all of {part} was done: {why}." for part, why in unfinished.items()]
    for name in dict.fromkeys(row["model"] for row in rows):
        best = {side: _best(rows, side, name) for side in ("jax", "torch")}
        if not (ours := best["jax"]):
            lines.append(f"{name}: no step was measured.")
            continue
        line = (
            f"{name}: {ours['batch']} images a step, remat {ours['remat']}, {ours['form']}"
            f"{', ' + ours['flags'] if ours['flags'] else ''}: {ours['images_per_second']} images/s in training"
        )
        if peer := best["torch"]:
            ratio = peer["images_per_second"] / ours["images_per_second"]
            line += (
                f"; PyTorch at best {peer['images_per_second']} ({peer['form']}, {peer['batch']} images): ours take "
                f"{ratio:.2f} of its time an image"
            )
            if abs(peer["parameters"] / ours["parameters"] - 1) > 0.01:
                line += f". NOT the same work: {ours['parameters']} and {peer['parameters']} parameters"
        lines.append(line + ".")
    if fastest := _fastest(depthwise, wrong):
        lines.append(f"Depthwise convolutions, all blocks: {fastest}.")
    return lines


def _fits(row, side, name) -> bool:
    return (row["side"], row["model"], row["status"]) == (side, name, "ok")


def _best(rows, side, name) -> dict | None:
    fitting = [row for row in rows if _fits(row, side, name)]
    return max(fitting, key=lambda row: row["images_per_second"], default=None)


def _fastest(depthwise, wrong) -> str:
    """The formulation that takes the least time over the shapes that all of a pass's formulations were measured at."""
    said = []
    for name in ("forward", "dx", "dk"):
        times: dict[str, dict[tuple, float]] = {}
        for line in depthwise:
            if line[f"{name}_ms"] is not None and not any(line["form"] in what for what in wrong):
                place = line["where"], line["map"]
                times.setdefault(line["form"], {})[place] = line["blocks"] * line[f"{name}_ms"]
        shared = set.intersection(*map(set, times.values())) if times else set()
        totals = {form: sum(values[place] for place in shared) for form, values in times.items()}
        if shared:
            said.append(
                f"{name} " + ", ".join(f"{form} {ms:.3g} ms" for form, ms in sorted(totals.items(), key=lambda t: t[1]))
            )
    return "; ".join(said)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
