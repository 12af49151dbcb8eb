"""Our training step beside PyTorch's: the same work in two processes that take turns.

Each side is a worker (`worker.py`): ours is `programs.py`, the other `torch_peer.py`, which needs the extra "parity".
"""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mammoclip_jax.benchmarks.worker import HUGE_PAGES, Worker
from mammoclip_jax.errors import UserError

OURS, PEER = "mammoclip_jax.benchmarks.programs", "mammoclip_jax.benchmarks.torch_peer"
WORKS = ("pretrain", "image_tower")
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
        arrays["token_ids"] = rng.integers(0, vocab_size, (len(lengths), longest), dtype=np.int32)
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
    steps: int,
    warm_up: int,
    alternate: str = "step",
    rounds: int = 3,
    tunables: str = HUGE_PAGES,
    start=Worker,
) -> list[dict]:
    """Steps of all sides in turn: a row a side, ours first.

    Args:
        ours, peers: specifications of the workers; peers by name.
        steps: that are timed, of each side; with alternate="process", in each of `rounds` rounds.
        warm_up: steps before them that do not count.
        alternate: "step": all processes live at once and take one step each, in turn; "process": one lives at a time,
            for steps that do not fit into memory together.
        tunables: GLIBC_TUNABLES of every worker; "" leaves the environment as it is.

    Returns:
        For each side what `row` says.
    """
    sides = {"jax": (OURS, ours)} | {name: (PEER, peer) for name, peer in peers.items()}
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
    return [row(name, runs[name], runs["jax"], alternate) for name in sides]


def _order(sides, number) -> list[str]:
    """Every other round backwards, so that a machine that gets slower or faster does not favour a side."""
    return list(sides)[::-1] if number % 2 else list(sides)


def _measured(worker) -> dict:
    return {
        "about": worker.about,
        "seconds": list(worker.seconds),
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


def row(name: str, runs: Sequence[dict], ours: Sequence[dict], alternate: str) -> dict:
    """A side's figures, and what ours are as a share of them (below 1: ours is faster, smaller).

    time_ratio is the median over neighbours, steps or, with alternate="process", the medians of processes.
    """
    seconds, our_seconds = (np.concatenate([run["seconds"] for run in side]) for side in (runs, ours))
    if alternate == "process":
        neighbours = [np.median(a["seconds"]) / np.median(b["seconds"]) for a, b in zip(ours, runs)]
    else:
        neighbours = our_seconds / seconds
    low, median, high = np.percentile(seconds, [10, 50, 90])
    peak, our_peak = (np.median([run["bytes"] for run in side]) for side in (runs, ours))
    return {
        "side": name,
        "seconds": round(float(median), 3),
        "p10": round(float(low), 3),
        "p90": round(float(high), 3),
        "steps": len(seconds),
        "peak_gib": round(float(peak) / 2**30, 2),
        "time_ratio": round(float(np.median(neighbours)), 3),
        "ratio_of_medians": round(float(np.median(our_seconds) / median), 3),
        "memory_ratio": round(float(our_peak / peak), 3),
        "peak_since": runs[0]["since"],
        "parameters": runs[0]["about"]["parameters"],
        "loss": round(runs[0]["loss"], 5),
        "compile_seconds": round(runs[0]["about"].get("compile_seconds", 0.0), 1),
        "first_step_seconds": round(runs[0]["first"], 1),
    }


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
    **options,
) -> list[dict]:
    """Rows of `compare` for a config's work at one size.

    Args:
        config: taken without augmentation, which Mammo-CLIP does outside of the step.
        images: of a step; for "pretrain" two a breast.
        lengths: tokens of the texts, taken in turn.
        checkpoint: whether PyTorch computes each block again in the backward pass.
        options: of `compare`.

    Raises:
        UserError: PyTorch is not installed, or has no such network here.
    """
    for package in ("torch", "efficientnet_pytorch"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--against=torch needs {package}, which is not installed: pip install '.[parity]'.")
    config = config.copy_and_resolve_references()
    config.augment.update(affine_probability=0.0, contrast=0.0, brightness=0.0)
    with tempfile.TemporaryDirectory() as scratch:
        ours = specification(
            config,
            work,
            images=images,
            height=height,
            width=width,
            lengths=lengths,
            vocab_size=vocab_size,
            folder=Path(scratch),
        )
        theirs = {
            setting: peer_specification(
                config, work, setting=setting, vocab_size=ours["vocab_size"], checkpoint=checkpoint
            )
            | {"inputs": ours["inputs"]}
            for setting in peers
        }
        return compare(ours, theirs, **options)


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
    rows = int(config.model.text.get("vocab_size", vocab_size))
    path = folder / f"{work}_{images}.npz"
    write_inputs(
        path, images=images, height=height, width=width, lengths=lengths if work == "pretrain" else (), vocab_size=rows
    )
    return {
        "work": work,
        "config": config.to_dict(),
        "devices": devices,
        "inputs": str(path),
        "vocab_size": rows,
        "height": height,
        "width": width,
    }
