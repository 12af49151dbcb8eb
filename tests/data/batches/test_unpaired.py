"""Rows of images and texts that are no pairs: whose texts stand where, what is known of them, and the stream's position."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from fake_sets import FakeDataset, Spy

from mammoclip_jax.data.batches import image_text, unpaired
from mammoclip_jax.data.batches.targets import Targets
from mammoclip_jax.data.batches.texts import Augment, TextOptions
from mammoclip_jax.data.batches.units import Partner
from mammoclip_jax.data.batches.unpaired import Unpaired
from mammoclip_jax.data.text import concepts
from mammoclip_jax.errors import UserError

FIELDS = ("mass", "calcification", "mass_shape")
LABELS = Targets("labels", FIELDS)
PROMPTS = {prompt: dict(c.values) for c in concepts.load("phantom:presence") for prompt in c.prompts}
OFF = Augment(0.0, 0.0, 0.0)


def _rows(count=12):
    """CC and MLO of so many breasts, every third without text."""
    return [
        dict(
            study=f"s{number}",
            view=view,
            texts=[] if number % 3 == 0 else [f"A mass. Number {number}.", f"Number {number}, again."],
            labels=json.dumps({"mass": number % 2, "calcification": number // 2 % 2, "mass_shape": "oval"}),
            boxes="[]",
        )
        for number in range(count)
        for view in ("CC", "MLO")
    ]


def _draws(wanted, count=4, rows=None, own=None, iterator=False, **options):
    """(row's study, its texts, the row) of each row of so many batches."""
    spy, options = Spy(), dict(augment=OFF, targets=LABELS) | options
    given = image_text.Options(4, unpaired=wanted, **options)
    made = image_text.train_iterator(
        [FakeDataset(rows or _rows())], spy, given, batch_size=6, rows=own, seed=3, read_threads=0
    )
    if iterator:
        return made
    found = []
    for _ in range(count):
        spy.texts.clear()
        batch = next(made)
        found += [
            (f"s{row['record'][0] // 2}", texts, row)
            for texts, row in zip(spy.texts, ({k: x[i] for k, x in batch.items()} for i in range(len(batch["mask"]))))
        ]
    return found


def test_prompts_take_the_place_of_texts_that_are_not_there():
    seen = set()
    for study, texts, row in _draws(Unpaired(images=True, texts="phantom:presence"), 8):
        number = int(study[1:])
        assert row["paired"] == (number % 3 > 0) and row["has_text"]
        np.testing.assert_array_equal(row["target"], [[number % 2, number // 2 % 2, 0]] * 2)
        assert row["known"].all()
        if row["paired"]:
            assert all(f"umber {number}" in text for text in texts)
            np.testing.assert_array_equal(row["text_target"], row["target"])
            np.testing.assert_array_equal(row["text_known"], row["known"])
            continue
        for text, target, known in zip(texts, row["text_target"], row["text_known"], strict=True):
            labels = PROMPTS[text]
            assert {f: v for f, v, k in zip(FIELDS, target, known) if k} == labels
            seen.add(tuple(labels.items()))
    assert len(seen) == 4, "each concept but the background, and what denies it"


def test_without_a_pool_a_row_has_no_text_and_its_image_counts():
    found = _draws(Unpaired(images=True), 8)
    assert {study for study, *_ in found} == {f"s{number}" for number in range(12)}
    for study, texts, row in found:
        there = int(study[1:]) % 3 > 0
        assert row["paired"] == row["has_text"] == there == any(texts)
        assert row["text_known"].any() == there and row["known"].any()
    assert {study for study, *_ in _draws(Unpaired(), 8)} == {f"s{number}" for number in range(12) if number % 3}
    assert "paired" not in _draws(Unpaired(), 1)[0][2]


def test_a_share_of_the_breasts_with_texts_gets_others():
    paired = [row["paired"] for _, _, row in _draws(Unpaired(texts="phantom", share=0.4), 25)]
    assert abs(np.mean(paired) - 0.6) < 3 * np.sqrt(0.24 / len(paired))
    assert not any(row["paired"] for _, _, row in _draws(Unpaired(texts="phantom", share=1.0)))


def test_labels_may_be_read_from_the_texts():
    fields = ("mass", "calcification")
    for _, texts, row in _draws(Unpaired(texts="phantom:presence", share=0.5), targets=Targets("text", fields)):
        assert row["known"].tolist() == [[True, False]] * 2, "of an image, from its own texts"
        for text, target, known in zip(texts, row["text_target"], row["text_known"]):
            expected = {"mass": 1} if row["paired"] else PROMPTS[text]
            assert {f: v for f, v, k in zip(fields, target, known) if k} == expected


def test_reports_without_image_are_those_of_the_split_with_their_labels(tmp_path):
    """What their labels do not say is read."""
    alone = [
        dict(split="train", texts=["Coarse calcifications. No mass."], labels=json.dumps({"mass_shape": "oval"})),
        dict(split="train", texts=["B one.", "B two."], labels=json.dumps({"mass": 1, "mass_shape": "round"})),
        dict(split="test", texts=["Of the test set."], labels="{}"),
    ]
    frame = pd.DataFrame(
        [
            dict(dataset="d", patient=f"p{i}", study="s", laterality="L", image=str(i), sections=["a"] * 2) | row
            for i, row in enumerate(alone)
        ]
    )
    frame.to_parquet(tmp_path / "texts.parquet")
    dataset, wanted = FakeDataset(_rows(), path=tmp_path), Unpaired(images=True, texts="reports")
    pool = unpaired.pool([dataset], "train", wanted, TextOptions())
    assert [one.texts for one in pool] == [("Coarse calcifications. No mass.",), ("B one.", "B two.")]
    labels = image_text.targets.reader([dataset], "train", LABELS)
    draw = pickle.loads(pickle.dumps(unpaired.Decoupled(pool, 0.0, labels)))
    found = {}
    for seed in range(20):
        texts, row = draw(["", ""], labels(0, [0, 1], []), np.random.default_rng(seed))
        assert not row["paired"] and row["has_text"]
        for text, target, known in zip(texts, row["text_target"].tolist(), row["text_known"]):
            found[text] = [value if k else None for value, k in zip(target, known)]
    assert found == {"Coarse calcifications. No mass.": [0, 1, 0], "B one.": [1, None, None], "B two.": [1, None, None]}
    assert unpaired.drawable([dataset], "train", wanted, TextOptions()) == set(found)
    assert unpaired.drawable([dataset], "train", Unpaired(images=True), TextOptions()) == {""}
    with pytest.raises(UserError, match="no report without image in split 'val'"):
        unpaired.pool([dataset], "val", wanted, TextOptions())
    with pytest.raises(UserError, match="texts.parquet is missing: no report of this data set lacks its image"):
        unpaired.pool([FakeDataset([dict()])], "train", wanted, TextOptions())


def test_rows_do_not_depend_on_processes_and_a_run_goes_on_where_it_stopped():
    wanted = Unpaired(images=True, texts="phantom", share=0.3)
    whole, part = (_draws(wanted, iterator=True, own=own) for own in (None, [1, 4]))
    state = None
    for number in range(3):
        state = whole.get_state() if number == 2 else state
        batch, own = next(whole), next(part)
        for name in batch:
            np.testing.assert_array_equal(batch[name][[1, 4]], own[name], err_msg=name)
    again = _draws(wanted, iterator=True)
    again.set_state(state)
    for name, values in next(again).items():
        np.testing.assert_array_equal(values, batch[name], err_msg=name)


def test_what_does_not_go_together_is_refused():
    for options, message in (
        (dict(partner=Partner(exam=1.0)), "unpaired does not go with config.data.partner"),
        (dict(targets=Targets("text", ("mass",))), 'source="text" reads the labels of images in their texts'),
    ):
        with pytest.raises(UserError, match=message):
            _draws(Unpaired(images=True), **options)
    full = [row for row in _rows() if row["texts"]]
    with pytest.raises(UserError, match="texts='phantom': every breast has a text of its own"):
        _draws(Unpaired(images=True, texts="phantom"), rows=full)
