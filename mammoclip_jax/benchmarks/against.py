"""Our training step beside PyTorch's: the same work in two processes that take turns.

Each side is a worker (`worker.py`): ours is `programs.py`, the other `torch_peer.py`, which needs the extra "parity".
"""

import ast
import contextlib
import importlib.util
import operator
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mammoclip_jax.benchmarks import ratios
from mammoclip_jax.benchmarks.worker import HUGE_PAGES, Worker
from mammoclip_jax.errors import UserError

OURS, PEER = "mammoclip_jax.benchmarks.programs", "mammoclip_jax.benchmarks.torch_peer"
WORKS = ("pretrain", "image_tower", "text_tower")
FIRST = "jax"  # our side that is the config as it is
_BERT = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_act",
)


def write_inputs(
    path, *, images: int, height: int, width: int, lengths: Sequence[int] = (), vocab_size: int = 0, seed: int = 0
) -> None:
    """An .npz file of image uint8 [N, H, W] and, with `lengths`, token_ids int32 and token_mask bool [T, longest]."""
    rng = np.random.default_rng(seed)
    arrays = {"image": rng.integers(0, 256, (images, height, width), dtype=np.uint8)}
    if lengths:
        longest = max(lengths)
        # Not 0, which is padding to transformers and not learnt there.
        arrays["token_ids"] = rng.integers(1, vocab_size, (len(lengths), longest), dtype=np.int32)
        arrays["token_mask"] = np.arange(longest) < np.array(lengths)[:, None]
    np.savez(path, **arrays)


def peer_specification(config, work: str, *, setting: str, vocab_size: int, checkpoint: bool = False) -> dict:
    """A config's work for torch_peer.py, but for `inputs` and `weights`, the paths of files.

    Raises:
        UserError: the config has a part that PyTorch's side has not.
    """
    image, text = config.model.image.to_dict(), config.model.text.to_dict()
    _require(
        config.model.image.name == "efficientnet" and image.get("pads", "nominal") == "nominal",
        "an efficientnet with nominal pads as config.model.image",
        image,
    )
    _require(
        config.image.intensity == "minmax" and config.image.channels == 3,
        "config.image of 3 channels and minmax",
        config.image.to_dict(),
    )
    _require(config.model.dtype == "float32", "config.model.dtype float32", config.model.dtype)
    _require(
        not config.train.clip_norm
        and not config.train.no_decay
        and not config.train.frozen
        and not config.model.frozen,
        "no clip_norm, no_decay or frozen parts",
        config.train.to_dict(),
    )
    _require(config.train.optimizer == "adamw", "adamw as config.train.optimizer", config.train.optimizer)
    theirs = {
        "width": "width_coefficient",
        "depth": "depth_coefficient",
        "drop_rate": "dropout_rate",
        "drop_connect_rate": "drop_connect_rate",
    }
    specification = {
        "work": work,
        "setting": setting,
        "checkpoint": checkpoint,
        "seed": config.seed,
        "weights": "",
        "mean": config.image.mean,
        "std": config.image.std,
        "image": {"variant": config.model.image.variant}
        | {name: image[ours] for ours, name in theirs.items() if image.get(ours) is not None},
        "adamw": {name: config.train[name] for name in ("lr", "b1", "b2", "eps", "weight_decay")},
    }
    if work == "image_tower":
        return specification
    _require(text.get("name") == "bert", "a bert as config.model.text", text)
    _require(list(config.losses) == ["mammo_clip"], "config.losses.mammo_clip alone", list(config.losses))
    _require((config.data.views, config.data.texts) == (2, 2), "2 views and 2 texts", config.data.to_dict())
    loss = config.losses.mammo_clip
    return specification | {
        "text": {"vocab_size": vocab_size} | {name: text[name] for name in _BERT if name in text},
        "dim": config.model.dim,
        "loss": {
            "image_text": loss.get("image_text", 1.0),
            "image_image": loss.get("image_image", 1.0),
            "text_text": loss.get("text_text", 0.5),
        },
    }


def _require(holds, what, value) -> None:
    if not holds:
        raise UserError(f"--against=torch needs {what}; this config has {value}.")


def compare(
    ours: dict,
    peers: Mapping[str, dict],
    *,
    also: Mapping[str, dict] = {},
    steps: int,
    warm_up: int,
    alternate: str = "step",
    rounds: int = 3,
    tunables: str = HUGE_PAGES,
    start=Worker,
) -> tuple[list[dict], dict[str, dict]]:
    """Steps of all sides in turn: a row a side, ours first.

    Args:
        ours, peers: specifications of the workers; peers by name.
        also: further sides of ours by name, as the same work with another option.
        steps: that are timed, of each side; with alternate="process", in each of `rounds` rounds.
        warm_up: steps before them that do not count.
        alternate: "step": all processes live at once and take one step each, in turn; "process": one lives at a time,
            for steps that do not fit into memory together.
        tunables: GLIBC_TUNABLES of every worker; "" leaves the environment as it is.

    Returns:
        For each side what `ratios.row` says; and for each of ours what `ratios.against` does, of which its row has the
        fastest and the smallest peer.
    """
    our_sides = {FIRST: ours} | dict(also)
    sides = {name: (OURS, side) for name, side in our_sides.items()}
    sides |= {name: (PEER, peer) for name, peer in peers.items()}
    environment = {"GLIBC_TUNABLES": tunables} if tunables else {}
    runs = {name: [] for name in sides}
    for number in range(rounds if alternate == "process" else 1):
        workers = {}
        try:
            for name in _order(sides, number):
                workers[name] = start(*sides[name], environment)
                workers[name].warm_up(warm_up)
                if alternate == "process":
                    for _ in range(steps):
                        workers[name].step()
                    runs[name].append(_measured(workers[name]))
                    workers.pop(name).__exit__()
            if alternate == "step":
                _check_same_work({name: worker.about for name, worker in workers.items()})
                for step in range(steps):
                    for name in _order(workers, step):
                        workers[name].step()
                for name, worker in workers.items():
                    runs[name].append(_measured(worker))
        finally:
            for worker in workers.values():
                worker.__exit__()
        _check_same_work({name: reports[-1]["about"] for name, reports in runs.items()})
    theirs = {name: runs[name] for name in peers}
    found = {name: ratios.against(runs[name], theirs, alternate) for name in our_sides}
    judged = ("fastest_peer", "time_of_fastest", "smallest_peer", "memory_of_smallest")
    rows = [
        ratios.row(name, runs[name], runs[FIRST], alternate) | {key: found.get(name, {}).get(key) for key in judged}
        for name in sides
    ]
    return rows, found


def _order(sides, number) -> list[str]:
    """Every other round backwards, so that a machine that gets slower or faster does not favour a side."""
    return list(sides)[::-1] if number % 2 else list(sides)


def _measured(worker) -> dict:
    return {
        "about": worker.about,
        "seconds": list(worker.seconds),
        "others": [figures.get("others") for figures in worker.figures],
        "first": worker.first,
        "loss": worker.figures[-1]["loss"],
        **worker.peak(),
    }


def _check_same_work(about: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError unless all sides have as many parameters as ours."""
    counts = {name: facts["parameters"] for name, facts in about.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the sides do not do the same work, they have {counts} parameters: "
            "is an option of config.model unknown to benchmarks/torch_peer.py?"
        )


def run(
    config,
    work: str,
    peers: Sequence[str],
    *,
    images: int,
    height: int,
    width: int,
    lengths: Sequence[int],
    vocab_size: int,
    checkpoint: bool = False,
    also: Sequence[str] = (),
    **options,
) -> tuple[list[dict], dict[str, dict]]:
    """What `compare` says of a config's work at one size; rows begin with what was run.

    Args:
        config: taken without augmentation, which Mammo-CLIP does outside of the step.
        images: of a step; for "pretrain" two a breast; for "text_tower" its texts.
        lengths: tokens of the texts, taken in turn.
        checkpoint: whether PyTorch computes each block again in the backward pass.
        also: further sides of ours, each the config with other fields, "model.matmul=bf16 model.image.scan=True".
        options: of `compare`.

    Raises:
        UserError: PyTorch is not installed, or has no such network here.
    """
    for package in ("torch", "efficientnet_pytorch"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--against=torch needs {package}, which is not installed: pip install '.[parity]'.")
    config = config.copy_and_resolve_references()
    config.augment.update(affine_probability=0.0, contrast=0.0, brightness=0.0)
    size = {"images": images, "height": height, "width": width}
    with tempfile.TemporaryDirectory() as scratch:
        variants = {
            name: specification(each, work, **size, lengths=lengths, vocab_size=vocab_size, folder=Path(scratch))
            for name, each in ({FIRST: config} | {text: changed(config, text) for text in also}).items()
        }
        ours = variants.pop(FIRST)
        theirs = {
            setting: peer_specification(
                config, work, setting=setting, vocab_size=ours["vocab_size"], checkpoint=checkpoint
            )
            | {"inputs": ours["inputs"]}
            for setting in peers
        }
        rows, found = compare(ours, theirs, also=variants, **options)
    what = {"config": config.name, "work": work} | size
    used = {name: layout(each["config"]["model"]) for name, each in ({FIRST: ours} | variants).items()}
    theirs = dict.fromkeys(used[FIRST]) | {"remat": "block" if checkpoint else "none"}
    return [what | row | used.get(row["side"], theirs) for row in rows], found


def layout(model: Mapping[str, Any]) -> dict:
    """How a `config.model` is computed, for a row: precision of its products, recomputation, loops."""
    image = model["image"]
    return {
        "dtype": model["dtype"],
        "matmul": model["matmul"],
        "kernels": image.get("kernels", "xla"),
        "remat": image.get("remat", "none").replace(",", "+"),
        "scan": image.get("scan", False),
    }


def changed(config, text: str):
    """The config with the fields of "name=value name=value"; values are Python's, or else words.

    Raises:
        UserError: an item without "=", or a field that no config has.
    """
    config = config.copy_and_resolve_references()
    for item in text.split():
        name, equals, value = item.partition("=")
        path, _, last = name.rpartition(".")
        if not equals:
            raise UserError(f"--also={text}: write fields of the config as NAME=VALUE, with spaces between.")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        try:
            part = operator.attrgetter(path)(config) if path else config
            part[last] = value
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"--also={text}: {error}") from error
    return config


def specification(
    config,
    work: str,
    *,
    images: int,
    height: int,
    width: int,
    lengths: Sequence[int],
    vocab_size: int,
    folder: Path,
    devices: int = 0,
) -> dict:
    """For a worker of programs.py, with its inputs in `folder`: texts are padded to the longest of them."""
    config = config.copy_and_resolve_references()
    breasts, odd = divmod(images, config.data.views)
    if work == "pretrain":
        if odd or not breasts:
            raise UserError(f"--images={images} must be a multiple of config.data.views={config.data.views}.")
        texts = breasts * config.data.texts
        lengths = [lengths[i % len(lengths)] for i in range(texts)]
        config.train.batch_size, config.data.text_length = breasts, max(lengths)
    elif work == "text_tower":
        lengths, images = [lengths[i % len(lengths)] for i in range(images)], 0
    rows = int(config.model.text.get("vocab_size", vocab_size))
    path = folder / f"{work}_{images}.npz"
    texts = () if work == "image_tower" else lengths
    write_inputs(path, images=images, height=height, width=width, lengths=texts, vocab_size=rows)
    return {
        "work": work,
        "config": config.to_dict(),
        "devices": devices,
        "inputs": str(path),
        "vocab_size": rows,
        "height": height,
        "width": width,
    }
