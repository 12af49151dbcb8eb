"""The peer of device_parts.step in PyTorch: timm's encoder in channels_last, bfloat16 autocast, fused AdamW.

    python -m mammoclip_jax.benchmarks.device_torch_peer step SPECIFICATION

It shares no code with this package's models or training. Lines are those of `device_parts.step`. EfficientNet is
timm's of PyTorch origin, whose pads are part of the convolutions: the "tf_" ones pad every map before them, which takes longer.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

# timm imports torchvision, whose operators are built against CUDA: beside a PyTorch without it their declarations fail.
with contextlib.suppress(RuntimeError):
    _declared = torch.library.Library("torchvision", "DEF" if torch.version.cuda is None else "FRAGMENT")
    if torch.version.cuda is None:
        for operator in ("nms", "qnms"):
            _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402


def step(specification: dict) -> Iterator[dict]:
    """Of the specification: peer (name and options of timm's), batch, height, width, dtype, steps, warm_up, compiled,
    platform ("gpu" or "cpu").

    Raises:
        RuntimeError: this PyTorch does not have the platform.
    """
    kind = {"gpu": "cuda"}.get(specification["platform"], specification["platform"])
    if kind != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise RuntimeError(f"torch {torch.__version__} has no {specification['platform']} here")
    yield {
        "device": torch.cuda.get_device_name() if kind == "cuda" else "cpu",
        "form": "compiled" if specification["compiled"] else "eager",
    }
    torch.backends.cudnn.benchmark = True
    name, options = specification["peer"]
    model = timm.create_model(name, num_classes=0, **options).to(kind).to(memory_format=torch.channels_last)
    yield {"parameters": sum(p.numel() for p in model.parameters())}
    shape = specification["batch"], 3, specification["height"], specification["width"]
    images = torch.rand(shape, device=kind).contiguous(memory_format=torch.channels_last)
    call = torch.compile(model) if specification["compiled"] else model
    autocast = torch.autocast(kind, dtype=getattr(torch, specification["dtype"]))

    def forward():
        with torch.inference_mode(), autocast:
            call(images)
        _wait(kind)

    model.eval()
    yield {"forward_seconds": float(np.median(_seconds(forward, specification["steps"], 2)))}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = call(images).float().square().mean()
        loss.backward()
        optimizer.step()
        if not np.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}")
        _wait(kind)

    start = time.perf_counter()
    train()
    yield {"compile_seconds": time.perf_counter() - start}
    seconds = _seconds(train, specification["steps"], specification["warm_up"])
    found = {"seconds": float(np.median(seconds)), "p90": float(np.percentile(seconds, 90))}
    if kind == "cuda":
        found |= {"peak_bytes": torch.cuda.max_memory_allocated(), "peak_of": "device"}
    yield found


def _wait(kind):
    if kind == "cuda":
        torch.cuda.synchronize()


def _seconds(run, steps, warm_up):
    for _ in range(warm_up):
        run()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    for line in step(json.loads(sys.argv[2])):
        print(json.dumps(line), flush=True)
