"""TorchScript archives (torch.jit.save), as OpenAI publishes CLIP: the arrays of the pickled modules, and none of their code.

`data.pkl` holds the module as an object of a class that the archive's `code/` defines ("__torch__.clip.model.CLIP"); its
attributes are arrays, plain values and further modules (torch/csrc/jit/serialization/pickler.cpp).
"""

from typing import Any

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.unpickle import HARMLESS, Opaque

CLASSES = (*HARMLESS, "__torch__")  # whose instances are inert `Opaque` here
_MODULES = 1_000_000  # times that a module is looked into: one may stand at many names, and hold others that do


def state_dict(module: Any) -> dict[str, np.ndarray]:
    """{"visual.conv1.weight": array, ...}: parameters and buffers, as `state_dict()` of the loaded module names them.

    Raises:
        UserError: it is no module, or holds no array; or modules within modules more often than any network does.
    """
    if not isinstance(module, Opaque) or not isinstance(module.state, dict):
        raise UserError("a TorchScript archive that holds no module. Where you have PyTorch: save its state_dict().")
    found: dict[str, np.ndarray] = {}
    left = [("", module)]
    for _ in range(_MODULES):
        if not left:
            break
        prefix, part = left.pop()
        for name, value in part.state.items():
            if isinstance(value, np.ndarray):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Opaque) and isinstance(value.state, dict):
                left.append((f"{prefix}{name}.", value))
    if left:
        raise UserError(f"refused: a TorchScript archive of more than {_MODULES:,} modules.")
    if not found:
        raise UserError("a TorchScript archive whose modules hold no arrays.")
    return found
