"""Speed and memory of a config's training: the step, its input, or both together (the works of `programs.py`).

Each row is measured in a process of its own, so that malloc settings hold from its start and memory is its alone.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mammoclip_jax.aot import flops
from mammoclip_jax.benchmarks import against
from mammoclip_jax.benchmarks.worker import Worker


def rows(
    config,
    work: str,
    *,
    devices: Sequence[int] = (),
    images: int = 0,
    height: int,
    width: int,
    lengths: Sequence[int],
    vocab_size: int,
    steps: int,
    warm_up: int,
    tunables: str,
    workdir: str = "",
    start=Worker,
) -> list[dict]:
    """A row for each number of devices.

    Args:
        devices: numbers of devices with the same images on each (weak scaling); () takes all at once, as the config
            says. On CPU they are parts of this machine and share its cores.
        images: of a step, on each of `devices`; 0 takes the config's batch. Real data always have the config's.
        lengths: tokens of the texts of the batch that "pretrain" repeats, taken in turn.
        tunables: GLIBC_TUNABLES of the processes; "" leaves the environment as it is.
        workdir: of "input" and "end_to_end", for data that the config makes; "" is a temporary one.
    """
    table = []
    environment = {"GLIBC_TUNABLES": tunables} if tunables else {}
    one = images or config.train.batch_size * config.data.views
    with tempfile.TemporaryDirectory() as scratch:
        for count in devices or (0,):
            if work in against.WORKS:
                specification = against.specification(
                    config,
                    work,
                    images=one * (count or 1),
                    height=height,
                    width=width,
                    lengths=lengths,
                    vocab_size=vocab_size,
                    folder=Path(scratch),
                    devices=count,
                )
            else:
                whole = config.to_dict()
                whole["train"]["batch_size"] *= count or 1
                specification = {"work": work, "config": whole, "devices": count, "workdir": workdir or scratch}
                if work == "inference":
                    specification |= {"height": height, "width": width, "images": one * (count or 1)}
                if work == "attributes":
                    whole["train"]["batch_size"] = (images or config.train.batch_size) * (count or 1)
                    specification |= {"height": height, "width": width}
            with start(against.OURS, specification, environment) as worker:
                worker.warm_up(warm_up)
                for _ in range(steps):
                    worker.step()
                table.append(row(config, work, worker, tunables, (height, width)))
    for each in table:
        each["scaling"] = round(each["images_per_second_per_device"] / table[0]["images_per_second_per_device"], 3)
    return table


def row(config, work: str, worker, tunables: str, size: tuple[int, int]) -> dict:
    """Figures of a worker's steps; what is not known there, such as FLOPs of the input, is None.

    mfu is that of the devices' bfloat16 peak. What the compiler says, compiled_*, counts a loop's body once. peak_gib
    is of the fullest device where the platform counts, since the process began, else of the process, after warm-up.
    """
    about, seconds = worker.about, np.array(worker.seconds)
    low, median, high = np.percentile(seconds, [10, 50, 90])
    rate, devices = about["images"] / median, about["devices"]
    waits = [figures["data_wait_seconds"] for figures in worker.figures if "data_wait_seconds" in figures]
    device_peak = worker.figures[-1].get("device_peak_bytes")
    peak = worker.peak()
    work_flops = about.get("model_flops")
    mfu = flops.mfu(work_flops, median, devices, about["device_kind"]) if work_flops else None
    height, width = about.get("size", size)
    image = config.model.image
    maps = {"maps": about["grid"], "map_mib_an_image": _rounded(about["map_bytes"] / 2**20)} if "grid" in about else {}
    return maps | {
        "model": " ".join([image.name, image.get("variant", "")]).strip(),
        "work": work,
        "device_kind": about["device_kind"],
        "devices": devices,
        "images": about["images"],
        "height": height,
        "width": width,
        "seconds": _rounded(median),
        "p10": _rounded(low),
        "p90": _rounded(high),
        "images_per_second": _rounded(rate),
        "images_per_second_per_device": _rounded(rate / devices),
        "model_gflops": _giga(work_flops),
        "model_gflops_per_second": _giga(work_flops and work_flops / median),
        "mfu": _rounded(mfu),
        "compiled_gflops": _giga(about.get("compiled_flops")),
        "compiled_gbytes": _giga(about.get("compiled_bytes")),
        "peak_gib": round((device_peak or peak["bytes"]) / 2**30, 2),
        "peak_of": "device" if device_peak else f"process since {peak['since']}",
        "data_wait_share": _rounded(sum(waits) / seconds.sum()) if waits else None,
        "compile_seconds": _rounded(about.get("compile_seconds")),
        "parameters": about.get("parameters"),
        "micro_batches": f"{config.train.micro_batches.image}/{config.train.micro_batches.text}",
        "remat": image.get("remat", "none").replace(",", "+"),
        "scan": image.get("scan", False),
        "dtype": config.model.dtype,
        "matmul": config.model.matmul,
        "kernels": image.get("kernels", "xla"),
        "steps": len(seconds),
        "malloc": tunables or "mallopt",
    }


def _rounded(value) -> float | None:
    """To four digits that count."""
    return None if value is None else float(f"{value:.4g}")


def _giga(value) -> float | None:
    return None if value is None else _rounded(value / 1e9)
