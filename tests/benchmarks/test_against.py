"""The comparison with PyTorch: ratios from fake workers, and, live, that both sides do the same work."""

import pytest
from fake_worker import FakeWorker

from mammoclip_jax.benchmarks import against, load
from mammoclip_jax.errors import UserError


@pytest.fixture(autouse=True)
def empty_log():
    FakeWorker.log.clear()
    FakeWorker.alive = 0


def side(*seconds, gib=1, others=(), **about):
    return {"others": others, "seconds": seconds, "bytes": gib * 2**30, "about": about}


def test_ratios_are_of_neighbours_and_of_medians():
    (ours, tuned), _ = against.compare(
        side(1, 2, 30, gib=3), {"tuned": side(2, 5, 40, gib=4)}, steps=3, warm_up=1, start=FakeWorker
    )
    assert (ours["side"], ours["seconds"], ours["time_ratio"], ours["memory_ratio"]) == ("jax", 2.0, 1.0, 1.0)
    assert tuned["time_ratio"] == 0.5  # the median of 1/2, 2/5 and 30/40
    assert tuned["ratio_of_medians"] == 0.4  # 2 to 5
    assert tuned["memory_ratio"] == 0.75 and tuned["peak_gib"] == 4
    assert (tuned["p10"], tuned["p90"], tuned["steps"]) == (2.6, 33.0, 3)


def test_every_side_of_ours_is_held_against_the_fastest_and_the_smallest_peer():
    (ours, other, slow, large), found = against.compare(
        side(4, gib=2),
        {"slow": side(8, gib=3), "large": side(5, gib=8)},
        also={"scan": side(3, gib=1)},
        steps=1,
        warm_up=0,
        start=FakeWorker,
    )
    assert (ours["fastest_peer"], ours["time_of_fastest"]) == ("large", 0.8)
    assert (other["smallest_peer"], other["memory_of_smallest"], other["time_ratio"]) == ("slow", 0.333, 1.333)
    assert found["scan"]["time"] == {"slow": 0.375, "large": 0.6} and found["jax"]["memory"]["large"] == 0.25
    assert slow["fastest_peer"] is None and large["memory_ratio"] == 0.25


def test_steps_that_others_disturbed_do_not_count():
    """Neighbours count as a pair; where everything is disturbed, the three quietest do."""
    quiet, busy = load.QUIET, 2 * load.QUIET
    ours = side(1, 2, 9, 2, others=[0.0, quiet, busy, 0.01])
    theirs = side(2, 9, 9, 8, others=[0.0, busy, 0.0, None])
    (ours, peer), _ = against.compare(ours, {"tuned": theirs}, steps=4, warm_up=0, start=FakeWorker)
    assert (ours["seconds"], ours["steps"], ours["disturbed_steps"], ours["other_load"]) == (2.0, 3, 1, 0.02)
    assert peer["steps"] == 3 and peer["time_ratio"] == 0.375  # of 1/2 and 2/8
    assert load.quiet([0.5, 0.3, 0.9, 0.4]).tolist() == [True, True, False, True]
    assert load.quiet([None, None]).tolist() == [True, True]


def test_the_load_of_others_is_measured():
    others = load.Others()
    sum(range(10**6))
    assert others.seconds() is None or 0 <= others.seconds() < 60
    assert load.share(2.0, None) is None and load.share(0.5, 1e6) == 1


def test_another_side_is_the_config_with_other_fields(config):
    other = against.changed(config, "model.image.scan=True model.pooling=mean train.lr=0.5")
    assert (other.model.image.scan, other.model.pooling, other.train.lr) == (True, "mean", 0.5)
    assert "scan" not in config.model.image
    for text, message in (("model.dim", "NAME=VALUE"), ("model.dimension=3", "dimension")):
        with pytest.raises(UserError, match=message):
            against.changed(config, text)


def test_steps_take_turns_and_the_order_turns_with_them():
    against.compare(side(1, 1, 1), {"tuned": side(1, 1, 1)}, steps=3, warm_up=2, start=FakeWorker)
    assert FakeWorker.log == [
        "start programs 1",
        "warm 2",
        "start torch_peer 2",
        "warm 2",
        "programs",
        "torch_peer",
        "torch_peer",
        "programs",
        "programs",
        "torch_peer",
    ]
    assert FakeWorker.alive == 0


def test_with_alternating_processes_one_lives_at_a_time():
    (ours, peer), _ = against.compare(
        side(1, 3, 2), {"reference": side(4, 4, 2)}, steps=3, warm_up=1, alternate="process", rounds=2, start=FakeWorker
    )
    starts = [line for line in FakeWorker.log if line.startswith("start")]
    assert starts == ["start programs 1", "start torch_peer 1", "start torch_peer 1", "start programs 1"]
    assert peer["steps"] == 6 and peer["time_ratio"] == 0.5  # 2 to 4 in each round


def test_other_numbers_of_parameters_are_other_work():
    with pytest.raises(UserError, match="do not do the same work.*'jax': 7, 'tuned': 8"):
        against.compare(side(1), {"tuned": side(1, parameters=8)}, steps=1, warm_up=0, start=FakeWorker)
    assert FakeWorker.alive == 0


def test_both_sides_get_the_malloc_setting():
    seen = []

    class Watched(FakeWorker):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self.environment)

    for tunables in ("a=1", ""):
        against.compare(side(1), {"tuned": side(1)}, steps=1, warm_up=0, tunables=tunables, start=Watched)
    assert seen == [{"GLIBC_TUNABLES": "a=1"}] * 2 + [{}] * 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.image.name": "resnet"}, "an efficientnet"),
        ({"model.text.name": "gpt2"}, "a bert"),
        ({"image.intensity": "range"}, "minmax"),
        ({"model.dtype": "bfloat16"}, "float32"),
        ({"train.clip_norm": 1.0}, "clip_norm"),
        ({"model.frozen": ("text",)}, "frozen"),
        ({"train.optimizer": "sgd"}, "adamw"),
        ({"data.views": 1}, "2 views"),
    ],
)
def test_what_pytorch_does_not_have_here_is_refused(config, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=f"--against=torch needs.*{message}"):
        against.peer_specification(config, "pretrain", setting="tuned", vocab_size=50)


def test_images_fill_breasts(config, tmp_path):
    with pytest.raises(UserError, match="--images=3 must be a multiple"):
        against.specification(
            config, "pretrain", images=3, height=64, width=48, lengths=(8,), vocab_size=50, folder=tmp_path
        )
