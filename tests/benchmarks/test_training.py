"""Rows of a config's training, from fake workers."""

import pytest
from fake_worker import FakeWorker

from mammoclip_jax.benchmarks import training

OPTIONS = {"height": 64, "width": 48, "lengths": (8,), "vocab_size": 50, "steps": 3, "warm_up": 1, "tunables": ""}


def rows(config, about, figures={}, seconds=(2.0, 1.0, 4.0), work="pretrain", **options):
    class Worker(FakeWorker):
        def __init__(self, module, specification, environment):
            batch = specification["config"]["train"]["batch_size"]
            more = {"images": 2 * batch, "devices": specification["devices"] or 1}
            super().__init__(
                module,
                specification | {"seconds": seconds, "bytes": 2**30, "figures": figures, "about": more | about},
                environment,
            )

    return training.rows(config, work, start=Worker, **OPTIONS | options)


def test_figures_are_medians_with_percentiles(config):
    (row,) = rows(config, {"model_flops": 4e9})
    assert (row["seconds"], row["p10"], row["p90"], row["steps"]) == (2.0, 1.2, 3.6, 3)
    assert row["images"] == 4 and row["images_per_second"] == 2.0 and row["model_gflops_per_second"] == 2.0
    assert row["mfu"] is None and row["peak_gib"] == 1.0 and row["peak_of"] == "process since reset"
    assert (row["model"], row["malloc"], row["micro_batches"]) == ("efficientnet b0", "mallopt", "1/1")


def test_utilisation_and_memory_are_the_devices_where_they_are_known(config):
    (row,) = rows(
        config, {"model_flops": 197e12, "device_kind": "TPU v5 lite", "devices": 2}, {"device_peak_bytes": 3 * 2**30}
    )
    assert row["mfu"] == 0.25 and row["peak_gib"] == 3.0 and row["peak_of"] == "device"


def test_each_device_has_the_same_work(config):
    found = rows(config, {}, devices=(1, 2, 4), images=2)
    assert [row["images"] for row in found] == [2, 4, 8] and [row["devices"] for row in found] == [1, 2, 4]
    assert [row["scaling"] for row in found] == [1.0, 1.0, 1.0]
    real = rows(config, {}, devices=(1, 2), work="input")
    assert [row["images"] for row in real] == [4, 8]


def test_the_share_of_waiting_is_of_all_seconds(config):
    (row,) = rows(config, {}, {"data_wait_seconds": 0.7}, work="end_to_end")
    assert row["data_wait_share"] == pytest.approx(0.3)
