"""torchvision and timm beside a PyTorch without CUDA, for the tests that compare with them.

The wheels of torchvision hold operators built against CUDA, which do not load there; importing it, which transformers
does too where it is installed, then fails at two of them that no network here uses. Declaring both is enough.
"""

import importlib.util
from types import ModuleType

import pytest

_declared = []  # keeps the declarations alive


def declare_operators() -> None:
    """Declares them where torchvision is installed and PyTorch has none; before anything imports torchvision."""
    if importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("torch") is None or _declared:
        return
    import torch

    if torch.version.cuda is None:
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _declared[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def library(name: str) -> ModuleType:
    """The module `name`; skips the test where it is not installed."""
    return pytest.importorskip(name)
