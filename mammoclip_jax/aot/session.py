"""Compilations of one topology: a config as it is, or the largest batch of it that fits."""

import copy
import logging
import math
from typing import Any, NamedTuple

import jax

from mammoclip_jax.aot import figures, program, search, table
from mammoclip_jax.aot.topology import Topology
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import distributed


class Found(NamedTuple):
    """One program: its config, its figures, and the rows of all that were compiled to find it, its own last."""

    config: Any
    figures: dict
    rows: list[dict]
    text: str  # optimised HLO; "" where it does not fit


class Session(NamedTuple):
    """What all compilations of a call share.

    Attributes:
        preprocessing: height, width, bits of the images.
        options: XLA's compiler options.
    """

    target: Topology
    preprocessing: dict
    vocab_size: int
    cache: str
    options: dict

    def compile(self, config) -> Found:
        """The training step of `config`.

        Raises:
            UserError: the config does not describe a step on this topology.
        """
        distributed.choose_products(config.model.matmul)
        trainer = program.trainer_for(config, self.target.devices, self.preprocessing, self.vocab_size)
        image = config.model.image
        logging.info(
            "%g images a chip, remat %s, scan %s, image micro-batches %d",
            images_per_chip(config, self.target),
            image.get("remat", "none"),
            image.get("scan", False),
            config.train.micro_batches.image,
        )
        compiled = program.compile_step(trainer, self.target, self.cache, self.options)
        described = figures.describe(config, trainer, compiled, self.target)
        jax.clear_caches()  # programs of large models take gigabytes
        row = table.row(config, described, self.preprocessing, self.options)
        return Found(config, described, [row], compiled.text)

    def search(self, config, start: float = 0) -> Found:
        """The largest batch of `config` that fits; where none does, the smallest that was tried.

        Args:
            start: images a chip to begin with; 0 takes the config's.

        Raises:
            UserError: as `compile`.
        """
        tried = {}
        step = smallest_batch(config, self.target)

        def trial(size) -> search.Trial:
            tried[size] = compiled = self.compile(with_batch(config, size))
            memory = compiled.figures["memory"]
            used = memory.get("needed", memory.get("total"))
            logging.info(
                "%g images a chip: %s, %.2f of %.2f GiB",
                compiled.figures["images_per_chip"],
                "fits" if compiled.figures["fits"] else "does not fit",
                used / 2**30,
                compiled.figures["hbm_bytes"] / 2**30,
            )
            return search.Trial(compiled.figures["fits"], used, compiled.figures["hbm_bytes"])

        first = with_images(config, start, self.target).train.batch_size
        best = search.largest(trial, first, step)
        chosen = tried[best or min(tried)]
        others = [row for size, compiled in sorted(tried.items()) if compiled is not chosen for row in compiled.rows]
        return chosen._replace(rows=others + chosen.rows)


def variant(config, remat: str | None = None, scan: str | None = None, parts: int | None = None):
    """A copy of `config` with other options; None leaves what it has.

    Args:
        remat: of the image encoder; with commas one a stage.
        scan: of the image encoder, "true" or "false".
        parts: micro-batches of the images.
    """
    config = copy.deepcopy(config)
    if remat is not None:
        config.model.image.remat = remat
    if scan is not None:
        config.model.image.scan = scan == "true"
    if parts is not None:
        config.train.micro_batches.image = parts
    return config


def with_batch(config, breasts: int):
    """A copy of `config` with this global batch."""
    config = copy.deepcopy(config)
    config.train.batch_size = breasts
    return config


def with_images(config, images: float, target: Topology):
    """A copy of `config` with so many images a chip; 0 leaves its batch.

    Raises:
        UserError: that is no whole number of breasts.
    """
    if not images:
        return config
    breasts = images * len(target.devices) / config.data.views
    if breasts != int(breasts):
        raise UserError(
            f"--images_per_chip={images:g} on {len(target.devices)} chips is no whole number of breasts "
            f"with {config.data.views} images each."
        )
    return with_batch(config, int(breasts))


def images_per_chip(config, target: Topology) -> float:
    return config.train.batch_size * config.data.views / len(target.devices)


def smallest_batch(config, target: Topology) -> int:
    """Breasts, over all chips: every batch is a multiple of it (mesh.check_batch_size)."""
    rows = config.model.image.get("rows")
    devices = len(target.devices) // (config.mesh[rows] if rows else 1)
    parts = [
        devices * config.train.micro_batches[tower] // math.gcd(devices * config.train.micro_batches[tower], each)
        for tower, each in (("image", config.data.views), ("text", config.data.texts))
    ]
    return math.lcm(devices, *parts)
