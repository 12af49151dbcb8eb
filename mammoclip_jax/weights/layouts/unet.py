"""A plain U-Net (milesial/Pytorch-UNet and the code that copies its names), with weights of whoever trained it.

Its outputs are read as yes/no channels of their own, by sigmoid; `--labels` names them. A network that was trained with
softmax over classes has other probabilities.
"""

from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.layouts.parts import Layout, Model
from mammoclip_jax.weights.names import unet
from mammoclip_jax.weights.naming import State


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    image, channels, classes, variables, unused = unet.read(state)
    labels = list(rest.get("labels", ()))
    if labels and len(labels) != classes:
        raise UserError(f"--labels names {len(labels)} labels, {', '.join(labels)}; the file has {classes} outputs.")
    notes = ["The file does not say how its images were prepared: pixels of [0, 1] are assumed."]
    if not labels:
        labels = [f"output_{i}" for i in range(classes)]
        notes.append(f"The file does not name its outputs: they are called {', '.join(labels)}.")
    return Model(
        "segmenter",
        model={"image": image, "labels": labels, "dtype": "float32"},
        variables=variables,
        image={"mean": 0.0, "std": 1.0, "channels": channels, "intensity": "range"},
        preprocessing={"geometry": "fit", "height": 512, "width": 320, "intensity": "voi", "bits": 8},
        text_length=0,
        tokenizer="",
        notes=notes,
        unused=unused,
    )


def _write(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    image = meta["config"]["model"]["image"]
    if image["name"] != "unet":
        raise UserError(
            f"only a U-Net has a file of plain PyTorch code, this is a pyramid on {image['name']}: export it with "
            "--format=folder."
        )
    return {"state_dict": unet.write(variables)}


UNET = Layout("U-Net", "unknown", unet.is_unet, _read, _write)
