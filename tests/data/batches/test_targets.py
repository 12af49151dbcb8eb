"""Labels of breasts in the batches of images and texts: from the manifest, or read from the texts; by view, side and field."""

import json
import pickle

import numpy as np
import pytest
from fake_sets import FakeDataset, Spy

from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import image_text, targets
from mammoclip_jax.data.batches.targets import Targets
from mammoclip_jax.data.batches.texts import Augment
from mammoclip_jax.data.batches.units import Partner
from mammoclip_jax.data.phantom import exam, report_text
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import pretrain

FINDINGS = ("mass", "calcification")
FIELDS = (*FINDINGS, "density", "birads")


def _row(study, side, view, labels, texts=("a text",), boxes=(), split="train"):
    return dict(
        study=study,
        laterality=side,
        view=view,
        labels=json.dumps(labels),
        texts=list(texts),
        boxes=json.dumps(boxes),
        split=split,
    )


def _phantoms(count, texts_of):
    """Four images of so many phantom exams, without pixels, and what is true of each: {field: value}."""
    rows, true = [], []
    for number in range(count):
        drawn = exam.draw(exam.Parameters(seed=5), number)
        for side, view in exam.VIEWS:
            breast = drawn.breasts[side]
            labels = {label: int(breast.has(label)) for label in FINDINGS}
            true.append(labels | {"density": "ABCD".index(drawn.habitus.density) + 1, "birads": breast.birads})
            labels |= {"density": drawn.habitus.density, "birads": breast.birads}
            rows.append(_row(f"s{number}", side, view, labels, texts_of(drawn, side)))
    return rows, true


def _batches(rows, wanted, *, count=4, flip=0.0, own_rows=None, **options):
    iterator = image_text.train_iterator(
        [FakeDataset(rows)],
        Spy(),
        image_text.Options(4, augment=Augment(flip, 0.0, 0.0), targets=wanted, **options),
        batch_size=8,
        rows=own_rows,
        seed=3,
        read_threads=0,
    )
    return [next(iterator) for _ in range(count)]


def _views(batches):
    """(row of the index, target, known) of each view of each row."""
    return [
        (int(record), target, known)
        for batch in batches
        for records, own, there in zip(batch["record"], batch["target"], batch["known"])
        for record, target, known in zip(records, own, there, strict=True)
    ]


@pytest.mark.parametrize(
    "options", [dict(), dict(views=1, texts=1), dict(slots=("CC", "MLO")), dict(partner=Partner(0.2, 0.2, 0.6))]
)
def test_every_view_has_the_labels_of_its_breast(options):
    rows, true = _phantoms(8, lambda drawn, side: report_text.texts(drawn, side)[0])
    found = _views(_batches(rows, Targets("labels", FIELDS), flip=0.5, **options))
    for record, target, known in found:
        assert known.all() and target.tolist() == [true[record][field] for field in FIELDS]
    assert len({tuple(target) for _, target, _ in found}) > 8


@pytest.mark.parametrize("options", [dict(), dict(texts=1), dict(partner=Partner(exam=1.0))])
def test_texts_tell_of_phantoms_what_is_true_and_nothing_else(options):
    rows, true = _phantoms(40, lambda drawn, side: report_text.texts(drawn, side)[0])
    spoken = 0
    for record, target, known in _views(_batches(rows, Targets("text", FINDINGS), count=10, flip=0.5, **options)):
        for field, value, said in zip(FINDINGS, target, known):
            assert value == (true[record][field] if said else 0), (rows[record]["texts"], field)
            spoken += said
        assert known.all() or options  # findings and impression together tell all
    assert spoken > 100


def test_an_impression_alone_speaks_of_what_it_names():
    rows, true = _phantoms(40, lambda drawn, side: report_text.texts(drawn, side)[0][1:])
    for record, target, known in _views(_batches(rows, Targets("text", FINDINGS))):
        words = rows[record]["texts"][0].lower()
        assert known.tolist() == ["mass" in words, "calcification" in words]
        assert target.tolist() == [true[record][field] if said else 0 for field, said in zip(FINDINGS, known)]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_report_of_both_breasts_is_read_for_the_side_of_the_view(flip):
    """As it was before the flip: its words for the sides change with the image."""
    rows, true = _phantoms(12, lambda drawn, side: [report_text.report(drawn)])
    for options in (dict(), dict(partner=Partner(exam=1.0))):
        for record, target, known in _views(_batches(rows, Targets("text", FINDINGS), flip=flip, **options)):
            assert known.all() and target.tolist() == [true[record][field] for field in FINDINGS]


def test_the_only_text_of_a_pair_tells_of_its_own_breast():
    rows = [_row("s0", side, "CC", {}, [f"A mass in the {side} breast."]) for side in "LR"]
    (read,) = [targets.reader([FakeDataset(rows)], "train", Targets("text", ("mass",)))]
    assert read(0, [0, 1], ["A mass."])["known"].tolist() == [[True], [False]]
    assert read(0, [0, 0], ["A mass."])["known"].tolist() == [[True], [True]]
    assert read(0, [1, 0], ["No mass.", "A mass."])["target"].tolist() == [[0], [1]]


def test_values_of_labels_and_what_is_unknown():
    fields = ("mass", "cancer", "density", "birads", "mass_shape")
    rows = [
        _row("a", "L", "CC", {"mass": 0, "density": "b", "birads": "4A", "mass_shape": "Oval"}),
        _row("a", "L", "MLO", {"mass": 1, "density": None, "birads": 2, "mass_shape": ["oval", "round"]}),
        _row("b", "L", "CC", {"cancer": True, "density": "D", "birads": 0, "mass_shape": "oval"}),
        _row("b", "L", "MLO", {}, boxes=[{"label": "Mass", "box": [0, 0, 1, 1]}]),
        _row("b", "R", "CC", {"mass": "0", "density": 1, "birads": 1, "mass_shape": ""}),
        _row("c", "R", "CC", {"mass": 1, "mass_shape": "irregular"}, split="val"),
    ]
    read = pickle.loads(pickle.dumps(targets.reader([FakeDataset(rows)], "train", Targets("labels", fields))))
    none = None
    expected = [[1, none, 2, 4, 1], [1, none, 2, 4, 1], [1, 1, 4, none, 0], [1, 1, 4, none, 0], [0, none, 1, 1, none]]
    found = read(0, range(6), [])
    assert found["target"].dtype == np.float32 and found["known"].dtype == bool
    seen = [[v if k else none for v, k in zip(*row)] for row in zip(found["target"].tolist(), found["known"].tolist())]
    assert seen == [*expected, [none] * 5], "the last is of another split"
    assert (found["target"][~found["known"]] == 0).all()


def test_words_have_one_number_in_all_data_sets():
    """Here the second set alone has "irregular", which comes before what both have."""
    first = FakeDataset([_row("a", "L", "CC", {"mass_shape": "oval"})])
    second = FakeDataset([_row("a", side, "CC", {"mass_shape": w}) for side, w in (("L", "irregular"), ("R", "oval"))])
    read = targets.reader([first, second], "train", Targets("labels", ("mass_shape",)))
    assert read(0, [0], [])["target"] == read(1, [1], [])["target"] != read(1, [0], [])["target"]


def test_rows_of_a_process_are_those_of_the_whole_batch():
    rows, _ = _phantoms(8, lambda drawn, side: report_text.texts(drawn, side)[0])
    for source in ("labels", "text"):
        wanted = Targets(source, FINDINGS)
        for whole, part in zip(_batches(rows, wanted), _batches(rows, wanted, own_rows=[1, 6])):
            for name in ("target", "known", "record"):
                np.testing.assert_array_equal(whole[name][[1, 6]], part[name])


def test_ranges_are_of_ordinal_fields():
    assert targets.ranges(("density", "mass", "birads")) == (3.0, 0.0, 5.0)
    assert targets.ranges(FINDINGS) == ()


def test_what_cannot_be_asked_for_is_explained():
    for given, message in (
        (dict(source="label", fields=FINDINGS), "no source of config.data.targets 'label'. Did you mean 'labels'"),
        (dict(source="labels", fields=("mas",)), "no field of config.data.targets.*'mas'. Did you mean 'mass'"),
        (dict(source="text", fields=("density",)), "no field of config.data.targets, with source='text', 'density'"),
        (dict(source="text"), "it takes both"),
        (dict(fields=FINDINGS), "it takes both"),
        (dict(source="labels", fields=("mass", "mass")), "names a field twice"),
        (dict(sources="labels"), "Did you mean 'source'"),
    ):
        with pytest.raises(UserError, match=message):
            targets.targets(given)
    with pytest.raises(UserError, match="'birads', and no image in split 'train' of fake has a value"):
        targets.reader(
            [FakeDataset([_row("a", "L", "CC", {"mass": 1})])], "train", Targets("labels", ("mass", "birads"))
        )


def test_a_config_asks_for_the_labels_that_its_terms_read():
    config = defaults()
    config.losses.soft_targets = dict()
    with pytest.raises(UserError, match="config.losses.soft_targets compares labels, and config.data.targets asks for"):
        pretrain.check(config)
    config.data.targets = dict(source="labels", fields=FIELDS)
    pretrain.check(config)
    config.losses = dict(clip=dict())
    with pytest.raises(UserError, match="no term of config.losses reads config.data.targets.source='labels'"):
        pretrain.check(config)
