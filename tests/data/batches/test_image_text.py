"""Sampling, sharding, exact resume and padding of the input pipeline."""

import json
import pickle
from collections import Counter

import grain
import numpy as np
import pandas as pd
import pytest
from fake_sets import FakeDataset, H, Spy, W

from mammoclip_jax.data.batches import image_text, texts
from mammoclip_jax.data.batches.texts import Augment, augment_texts, draw_texts
from mammoclip_jax.data.batches.units import draw_views
from mammoclip_jax.data.store import codecs, shards
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError

WORDS = "finding number left right breast upper outer no mass calcification " + " ".join(map(str, range(60)))
OFF = Augment(0.0, 0.0, 0.0)
ON = Augment(0.5, 0.5, 0.5)._asdict()


def _rows(breasts: int, **changes):
    """CC and MLO of `breasts` breasts, each with two texts that name it."""
    return [
        dict(study=f"s{b}", view=view, texts=[f"finding number {b}.", f"number {b} left breast."], **changes)
        for b in range(breasts)
        for view in ("CC", "MLO")
    ]


@pytest.fixture(scope="module")
def tokens():
    return tokenizer.Tokenize(tokenizer.train_wordpiece([WORDS, WORDS + "."], 400))


def _options(**changes):
    return {**dict(batch_size=3, text_length=8, seed=1, read_threads=2, **OFF._asdict()), **changes}


def train(datasets, tokens, **options):
    """The iterator of these options, of `Options` or of `train_iterator`."""
    augment = Augment(0.5, 0.5, 0.0)._asdict()
    augment = Augment(**augment | {name: options.pop(name) for name in augment if name in options})
    own = {name: options.pop(name) for name in list(options) if name in image_text.Options._fields}
    return image_text.train_iterator(datasets, tokens, image_text.Options(augment=augment, **own), **options)


def _take(iterator, n):
    return [next(iterator) for _ in range(n)]


def _equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# --- sampling ------------------------------------------------------------------------------------------------------


def _draws(views, count=2, n=300):
    rng = np.random.default_rng(0)
    return Counter(tuple(draw_views(views, count, rng)) for _ in range(n))


def test_two_views_give_both_in_random_order_with_a_random_image_of_each():
    draws = _draws(((0, 1), (2,)))
    assert set(draws) == {(0, 2), (2, 0), (1, 2), (2, 1)}
    assert min(draws.values()) > 50


def test_one_view_gives_two_different_images_where_there_are_two():
    assert set(_draws(((4, 5, 6),))) == {(a, b) for a in (4, 5, 6) for b in (4, 5, 6) if a != b}
    assert set(_draws(((4,),))) == {(4, 4)}


def test_more_images_asked_for_than_views():
    assert all(sorted(draw) == [0, 1, 2] for draw in _draws(((0, 1), (2,)), 3))
    assert set(_draws(((0,), (1,)), 1)) == {(0,), (1,)}


def test_texts_are_drawn_without_replacement():
    rng = np.random.default_rng(0)
    draws = Counter(tuple(draw_texts(("a", "b", "c"), 2, rng)) for _ in range(300))
    assert set(draws) == {(x, y) for x in "abc" for y in "abc" if x != y}
    assert min(draws.values()) > 25
    assert draw_texts(("a",), 2, rng) == ["a", "a"]
    assert sorted(draw_texts(("a", "b"), 3, rng)[:2]) == ["a", "b"]


def test_flips_never_contradict_the_text():
    rng = np.random.default_rng(0)
    both = Augment(1.0, 1.0, 0.0)
    texts, horizontal, vertical = augment_texts(["Left breast mass at 2 o'clock."], both, rng)
    assert (texts, horizontal, vertical) == (["Right breast mass at 10 o'clock."], True, False)
    assert augment_texts(["left mass"], both, rng) == (["right mass"], True, True)
    assert not augment_texts(["left mass", "upper outer quadrant"], both, rng)[2]
    assert augment_texts(["left mass"], OFF, rng) == (["left mass"], False, False)
    texts, horizontal, vertical = augment_texts(["left", "upper", "mass"], both._replace(each_view=True), rng)
    assert texts == ["right", "upper", "mass"]
    assert horizontal.tolist() == [True] * 3 and vertical.tolist() == [True, False, True]
    half = [augment_texts(["mass"], Augment(0.5, 0.25, 0), rng)[1:] for _ in range(800)]
    np.testing.assert_allclose(np.mean(half, axis=0), (0.5, 0.25), atol=0.06)


def test_sentence_shuffling_works():
    rng = np.random.default_rng(0)
    found = {augment_texts(["A one. B two. C three."], Augment(0, 0, 1.0), rng)[0][0] for _ in range(60)}
    assert len(found) == 6
    assert all(sorted(t.replace(".", "").split()) == sorted("A one B two C three".split()) for t in found)


# --- the training stream ---------------------------------------------------------------------------------------------


def test_batches_have_the_documented_form(tokens):
    batch = next(train([FakeDataset(_rows(7))], tokens, **_options(**ON)))
    forms = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert forms == {
        "image": ((3, 2, H, W), "uint8"),
        "record": ((3, 2), "int32"),
        "source": ((3,), "int32"),
        "token_ids": ((3, 2, 8), "int32"),
        "token_mask": ((3, 2, 8), "bool"),
        "flip_horizontal": ((3,), "bool"),
        "flip_vertical": ((3,), "bool"),
        "mask": ((3,), "bool"),
    }
    assert batch["mask"].all()
    np.testing.assert_array_equal(batch["image"][..., 0, 0], batch["record"])


def test_images_and_texts_belong_together(tokens):
    batch = next(train([FakeDataset(_rows(7))], tokens, **_options()))
    for records, ids, mask in zip(batch["record"], batch["token_ids"], batch["token_mask"], strict=True):
        assert records[0] // 2 == records[1] // 2 and records[0] != records[1]
        texts = {" ".join(tokens.tokens(i[m])) for i, m in zip(ids, mask, strict=True)}
        breast = records[0] // 2
        assert texts == {f"[CLS] finding number {breast} . [SEP]", f"[CLS] number {breast} left breast . [SEP]"}


def test_an_epoch_holds_every_breast_at_most_once_in_a_new_order(tokens):
    iterator = train([FakeDataset(_rows(10))], tokens, **_options())
    epochs = [[int(r) // 2 for batch in _take(iterator, 3) for r in batch["record"][:, 0]] for _ in range(8)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)  # 3 batches of 3; one breast is left over
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # not always the same one


def test_the_seed_decides_everything_and_threads_nothing(tokens):
    datasets = [FakeDataset(_rows(9))]
    options = _options(**ON)
    reference = _take(train(datasets, tokens, **options), 7)
    for threads in (0, 1, 4):
        again = _take(train(datasets, tokens, **{**options, "read_threads": threads}), 7)
        for a, b in zip(reference, again, strict=True):
            _equal(a, b)
    other = _take(train(datasets, tokens, **{**options, "seed": 2}), 7)
    assert any((a["record"] != b["record"]).any() for a, b in zip(reference, other, strict=True))


@pytest.mark.parametrize("rows", [[range(6)], [range(3), range(3, 6)], [[i] for i in range(6)], [[0, 3, 4], [1, 2, 5]]])
def test_processes_make_the_rows_of_the_same_batches(tokens, rows):
    """Whatever the number of processes and the rows that each has: contiguous ones, or those of scattered devices."""
    datasets, options = [FakeDataset(_rows(13))], _options(**ON, batch_size=6)
    alone = _take(train(datasets, tokens, **options), 5)
    parts = [_take(train(datasets, tokens, **options, rows=own), 5) for own in rows]
    for whole, *pieces in zip(alone, *parts, strict=True):
        for own, piece in zip(rows, pieces, strict=True):
            _equal({key: value[list(own)] for key, value in whole.items()}, piece)
        assert len(set(whole["record"][:, 0] // 2)) == 6


def test_the_position_is_the_number_of_batches_for_any_number_of_processes(tokens):
    def make(rows):
        return train([FakeDataset(_rows(13))], tokens, **_options(**ON, batch_size=4), rows=rows)

    alone = make(None)
    _take(alone, 5)
    states = []
    for rows in ([0, 1], [2, 3], [3]):
        part = make(rows)
        _take(part, 5)
        states.append(part.get_state())
    assert states == [alone.get_state()] * 3 == [{"batches": 5}] * 3
    expected = _take(alone, 3)
    for rows in ([0, 1], [2, 3], [1]):
        part = make(rows)
        part.set_state({"batches": 5})
        for whole, piece in zip(expected, _take(part, 3), strict=True):
            _equal({key: value[rows] for key, value in whole.items()}, piece)


def test_iterator_resumes_exactly(tokens):
    def make():
        return train([FakeDataset(_rows(8))], tokens, **_options(**ON))

    iterator = make()
    _take(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = _take(iterator, 5)
    fresh = make()
    fresh.set_state(state)
    for a, b in zip(expected, _take(fresh, 5), strict=True):
        _equal(a, b)


def test_iterator_resumes_from_an_orbax_checkpoint(tokens, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")

    def make():
        return train([FakeDataset(_rows(8))], tokens, **_options(**ON))

    iterator = make()
    _take(iterator, 3)
    state = {"step": np.zeros(1)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            3,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)),
        )
        expected = _take(iterator, 4)
        manager.wait_until_finished()
    fresh = make()
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.restore(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(state), data=grain.checkpoint.CheckpointRestore(fresh)
            ),
        )
    for a, b in zip(expected, _take(fresh, 4), strict=True):
        _equal(a, b)


def test_several_datasets_are_mixed_by_size_or_by_weight(tokens):
    datasets = [FakeDataset(_rows(6)), FakeDataset(_rows(18))]

    def share(**options):
        batches = _take(train(datasets, tokens, **_options(**options)), 40)
        return np.concatenate([batch["source"] for batch in batches]).mean()

    assert share() == 0.75
    np.testing.assert_allclose(share(weights=(3, 1)), 0.25, atol=0.02)
    for weights in ((1,), (1, 0)):
        with pytest.raises(UserError, match="weights"):
            share(weights=weights)


def test_weighted_mixture_resumes_and_does_not_depend_on_the_number_of_processes(tokens):
    datasets = [FakeDataset(_rows(6)), FakeDataset(_rows(18))]
    options = _options(**ON, weights=(1, 1))
    iterator = train(datasets, tokens, **options)
    _take(iterator, 3)
    state = iterator.get_state()
    expected = _take(iterator, 3)
    fresh = train(datasets, tokens, **options)
    fresh.set_state(state)
    for a, b in zip(expected, _take(fresh, 3), strict=True):
        _equal(a, b)
    alone = next(train(datasets, tokens, **options))
    last = next(train(datasets, tokens, **options, rows=[2]))
    _equal({k: v[2:] for k, v in alone.items()}, last)


@pytest.mark.parametrize("change", [dict(height=7), dict(width=5), dict(bits=16)])
def test_images_of_different_form_are_an_error_naming_both_folders(tokens, change):
    datasets = [FakeDataset(_rows(3), "one"), FakeDataset(_rows(3), "two", **change)]
    with pytest.raises(UserError, match="one.*two"):
        train(datasets, tokens, **_options())


def test_too_few_breasts_for_a_batch_is_an_error(tokens):
    with pytest.raises(UserError, match="batch of 6 breasts .* 5 "):
        train([FakeDataset(_rows(5))], tokens, **_options(batch_size=6))


# --- with real shards ----------------------------------------------------------------------------------------------


def test_reads_a_data_set_folder(tokens, tmp_path):
    rows = FakeDataset(_rows(4)).index.assign(sections=[[]] * 8, shard=[0, 1] * 4, position=np.arange(8) // 2)
    images = np.random.default_rng(0).integers(0, 2**16, (8, H, W), np.uint16)
    for shard in range(2):
        writer = shards.ShardWriter(tmp_path / shards.shard_name(shard, 2))
        for image in images[shard::2]:
            writer.write(codecs.encode(image, "png"))
        writer.close()
    rows.to_parquet(tmp_path / "index.parquet")
    info = dict(
        schema_version=shards.SCHEMA_VERSION,
        shards=2,
        counts={"images": 8},
        preprocessing=dict(height=H, width=W, bits=16),
    )
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    dataset = pickle.loads(pickle.dumps(shards.Dataset.open(tmp_path)))
    for batch in _take(train([dataset], tokens, **_options()), 4):
        assert batch["image"].dtype == np.uint16
        np.testing.assert_array_equal(batch["image"], images[batch["record"]])


# --- which texts are drawn -------------------------------------------------------------------------------------------


def _drawn(rows, n=40, path="fake", flip=0.0, **options):
    spy = Spy()
    iterator = train(
        [FakeDataset(rows, path)],
        spy,
        text=texts.TextOptions(**options),
        **_options(batch_size=1, read_threads=0, flip_horizontal=flip),
    )
    batches = _take(iterator, n)
    return spy.texts[:n], batches


LABELLED = [
    dict(view=view, texts=[], labels=json.dumps({"mass": 1, "density": "C"}), boxes="[]") for view in ("CC", "MLO")
]


def test_captions_are_rendered_anew_for_the_drawn_view():
    texts, batches = _drawn(LABELLED, captions="mama", captions_dropout=0.0)
    for pair, batch in zip(texts, batches, strict=True):
        for text, record in zip(pair, batch["record"][0], strict=True):
            assert f"left breast with {'CC' if record == 0 else 'MLO'} view" in text
    varied, _ = _drawn(LABELLED, captions="findings")
    assert len({text for pair in varied for text in pair}) > 5
    assert varied == _drawn(LABELLED, captions="findings")[0]
    assert all(
        "right" in text
        for pair in _drawn(LABELLED, captions="mama", captions_dropout=0.0, flip=1.0)[0]
        for text in pair
    )


def test_captions_beside_report_texts():
    rows = [row | dict(texts=["a report", "its end"]) for row in LABELLED]
    texts = [text for pair in _drawn(rows, 150, captions="mama", captions_share=0.3)[0] for text in pair]
    np.testing.assert_allclose(np.mean([text in ("a report", "its end") for text in texts]), 0.7, atol=0.1)
    nothing = [dict(texts=[], labels="{}", boxes="[]")]
    with pytest.raises(UserError, match="no breast"):
        _drawn(nothing, captions="mama")


def test_findings_and_impression_are_a_pair():
    rows = [dict(texts=["f1", "f2", "i1", "c"], sections=["findings", "findings", "impression", "comparison"])]
    texts = _drawn(rows, pairing="sections")[0]
    assert {tuple(pair) for pair in texts} == {("f1", "i1"), ("f2", "i1")}
    alone = [dict(texts=["f1", "f2"], sections=["findings", "findings"])]
    assert {frozenset(pair) for pair in _drawn(alone, pairing="sections")[0]} == {frozenset(("f1", "f2"))}
    with pytest.raises(UserError, match="pairing"):
        _drawn(rows, pairing="section")


def test_sentences_of_the_other_breast_are_left_out():
    rows = [dict(texts=["Left mass. Right cyst.", "Right cyst."])]
    assert {text for pair in _drawn(rows, own_side=True)[0] for text in pair} == {"Left mass."}


def test_augmented_texts_take_a_place_with_their_probability(tmp_path):
    pd.DataFrame({"text": ["one", "one"], "augmented": ["uno", "un"]}).to_parquet(tmp_path / "texts_augmented.parquet")
    texts = [pair[0] for pair in _drawn([dict(texts=["one"])], 200, tmp_path, augmented=0.5)[0]]
    assert set(texts) == {"one", "uno", "un"}
    np.testing.assert_allclose(texts.count("one") / 200, 0.5, atol=0.12)
    with pytest.raises(UserError, match="augmented=0"):
        _drawn([dict()], path=tmp_path / "none", augmented=0.5)
