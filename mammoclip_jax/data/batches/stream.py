"""A stream of examples cut into batches: each process makes its rows of every batch, and goes on where it stopped."""

import multiprocessing
from collections.abc import Sequence

import grain
import numpy as np

from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.store.shared import Shared
from mammoclip_jax.errors import UserError


def of_items(items: Sequence) -> grain.MapDataset:
    """The items as a stream, which reading processes share."""
    return grain.MapDataset.source(Shared(items))


class Part:
    """The `rows` of every batch of a stream, one after the other."""

    def __init__(self, stream: grain.MapDataset, batch_size: int, rows: tuple[int, ...]):
        self._stream, self._batch_size, self._rows = stream, batch_size, rows

    def __len__(self) -> int:
        return len(self._stream) // self._batch_size * len(self._rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        batch, place = divmod(i, len(self._rows))
        return self._stream[batch * self._batch_size + self._rows[place]]


class Batches(grain.IterDataset):
    """The batches of another stream, whose `mp_prefetch` has them read by processes that start at once.

    Grain spawns each, and each imports Grain, with it jax, pandas and this package again: 3 s of a core. Here they are
    forked from one process that has imported them, without jax, and never had threads (`forkserver` of multiprocessing).
    Grain has no option for it.
    """

    def __init__(self, batches: grain.IterDataset):
        super().__init__(batches)
        self._batches = batches

    def __iter__(self) -> grain.DatasetIterator:
        return iter(self._batches)

    def mp_prefetch(self, *options, **more) -> grain.IterDataset:
        """As Grain's. It holds for all of this process's streams from here on."""
        from grain._src.python.dataset.transformations import process_prefetch  # its own, as it has no option

        multiprocessing.set_forkserver_preload(["__main__", _READS])
        process_prefetch.mp = _ForkServer
        return super().mp_prefetch(*options, **more)


class _ForkServer:
    """What Grain asks `multiprocessing` for, which it asks for nothing else."""

    @staticmethod
    def get_context(method: str | None = None) -> multiprocessing.context.BaseContext:
        del method
        return multiprocessing.get_context("forkserver")


_READS = "mammoclip_jax.data.batches.reading_process"  # imports what is needed to read


class BatchIterator(grain.DatasetIterator):
    """The iterator over a `train_dataset`. Its state is {"batches": how many it has given}, read ahead or not: the same
    in every process and for any number of them, so that a run may go on with more or fewer."""

    def __init__(self, parts: grain.DatasetIterator, rows: int):
        self._parts, self._rows, self._given = parts, rows, 0
        super().__init__(parts)

    def __next__(self) -> dict[str, np.ndarray]:
        part = next(self._parts)
        self._given += 1
        return part

    def get_state(self) -> dict[str, int]:
        return {"batches": self._given}

    def set_state(self, state: dict[str, int]) -> None:
        self._given = int(state["batches"])
        self._parts.set_state({"next_index": self._given * self._rows})

    def close(self) -> None:
        self._parts.close()


def check_alike(datasets: Sequence[Dataset]) -> None:
    """Raise UserError where two data sets, named, hold images of different height, width or bits."""

    def form(dataset: Dataset) -> dict:
        return {key: dataset.info["preprocessing"][key] for key in ("height", "width", "bits")}

    for other in datasets[1:]:
        if form(other) != form(datasets[0]):
            raise UserError(
                f"images of one batch must be alike, but {datasets[0].path} has {form(datasets[0])} and "
                f"{other.path} has {form(other)}: prepare one of them again"
            )


def mixed(items: Sequence, datasets: Sequence[Dataset], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """An endless stream of items, each `source` of them (position of the data set) shuffled by itself, in the proportions
    of the weights.

    Raises:
        UserError: a weight is not positive, there are not as many as data sets, or one has no items.
    """
    if len(weights) != len(datasets) or min(weights) <= 0:
        raise UserError(f"weights={tuple(weights)} must be positive, one for each of the {len(datasets)} data sets")
    groups = [[item for item in items if item.source == source] for source in range(len(datasets))]
    for dataset, group in zip(datasets, groups, strict=True):
        if not group:
            raise UserError(f"{dataset.path} has a weight but no breast with images and text in this split: remove it")
    streams = [of_items(group).seed(seed + i).shuffle().repeat() for i, group in enumerate(groups)]
    return grain.MapDataset.mix(streams, weights=list(weights)).seed(seed)
