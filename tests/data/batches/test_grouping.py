"""Breasts and labelled examples made of columns are those of a plain loop over groups of rows, in the same order."""

import json
import random

import numpy as np
import pytest
from fake_sets import FakeDataset

from mammoclip_jax.data.batches import breasts, labelled, units
from mammoclip_jax.data.batches.texts import TextOptions
from mammoclip_jax.data.text import label_values, reports, templating

TEXTS = ("A mass in the left breast. No mass in the right breast.", "Right breast: benign.", " ", "", "Dense. ")
VALUES = {
    "mass": (0, 1, True, None),
    "calcification": (0, 1),
    "abnormal": (0, 1),
    "density": ("A", "D", "x"),
    "birads": ("4A", 2, None),
    "mass_shape": ("oval", "", ["oval", "irregular"]),
    "site": ("", "here"),
    "view": ("", "AT"),
    "age": (50, 61.0),
}


@pytest.fixture(scope="module")
def dataset():
    draw = random.Random(0)
    rows = []
    for _ in range(240):
        texts = draw.sample(TEXTS, draw.randrange(4))
        names = draw.sample(sorted(VALUES), draw.randrange(5))
        found = [draw.choice(("mass", "Calcification", "scar")) for _ in range(draw.choice((0, 0, 0, 1, 3)))]
        boxes = [{"labels" if draw.random() < 0.3 else "label": name, "box": [1.5, 2, 30, 40]} for name in found]
        boxes = [item | {"labels": [item["labels"], "mass"]} if "labels" in item else item for item in boxes]
        rows.append(
            dict(
                patient=f"p{draw.randrange(12)}",
                study=f"s{draw.randrange(2)}",
                laterality=draw.choice(("L", "R", "")),
                view=draw.choice(("CC", "MLO", "ML", "")),
                split=draw.choice(("train", "train", "val")),
                flags=draw.choice(("", "spot", "spot,magnification")),
                texts=texts,
                sections=[draw.choice(("findings", "impression")) for _ in texts][: draw.randrange(4)],
                labels=json.dumps({name: draw.choice(VALUES[name]) for name in names}),
                boxes=json.dumps(boxes),
                boxes_canvas=json.dumps(boxes),
            )
        )
    return FakeDataset(rows)


def _groups(dataset, number):
    index = dataset.index.reset_index(drop=True)
    index = index[index["split"] == "train"]
    return [group for _, group in index.groupby(number(index), sort=False)]


def _texts(group, text):
    found = {}
    for row in group.itertuples():
        for place, words in enumerate(row.texts):
            kept = (reports.for_side(words, row.laterality) if text.own_side else words).strip()
            if kept:
                named = text.pairing == "sections" and place < len(row.sections)
                found.setdefault(kept, row.sections[place] if named else "")
    return found


def _fields(group, template):
    for row in group.itertuples():
        labels, boxes = json.loads(row.labels), json.loads(row.boxes)
        fields = labels | {"laterality": row.laterality, "view": row.view, "boxes": boxes}
        if label_values.consistent(labels, boxes) and templating.render(template, fields):
            yield row.Index, fields


def _rows_of(group, views):
    return tuple(tuple(group.index[group["view"] == view].tolist()) for view in views)


@pytest.mark.parametrize("slots", [(), ("MLO", "CC")])
@pytest.mark.parametrize(
    "text",
    [TextOptions(), TextOptions(own_side=True, pairing="sections"), TextOptions(captions="mammo_clip")]
    + [TextOptions(captions=name) for name in ("mama", "findings")],
)
def test_breasts_are_those_of_a_loop_over_groups(dataset, text, slots):
    other_views = not slots
    expected, without_text, without_view = [], 0, 0
    for group in _groups(dataset, units.breasts):
        views = _rows_of(group, slots or ("CC", "MLO", "", "ML"))
        views = views if slots and any(views) else tuple(filter(None, views))
        section_of = _texts(group, text)
        fields = tuple(_fields(group, text.captions)) if text.captions else ()
        without_view += not views
        without_text += bool(views) and not (section_of or fields)
        if views and (section_of or fields):
            named = tuple(section_of.values()) if text.pairing == "sections" else ()
            expected.append(breasts.Breast(0, views, tuple(section_of), named, fields))
    found = breasts.breasts([dataset], "train", other_views=other_views, text=text, slots=slots)
    read = [own._replace(fields=tuple((row, json.loads(said)) for row, said in own.fields)) for own in found.items]
    assert read == expected
    assert (found.without_text, found.without_view) == (without_text, without_view)


def test_a_caption_is_rendered_of_the_fields_of_its_image(dataset):
    for breast in breasts.breasts([dataset], "train", text=TextOptions(captions="mammo_clip")).items:
        for row, said in breast.fields:
            own = dataset.index.iloc[row]
            fields = json.loads(own["labels"]) | {"laterality": own["laterality"], "view": own["view"]}
            assert json.dumps(json.loads(said)) == json.dumps(fields | {"boxes": json.loads(own["boxes"])})


def _joined(values, classes):
    known = ~np.isnan(values)
    if classes:
        return values[np.where(known.any(axis=1), values.argmax(axis=1), -1).argmax()]
    highest = np.where(known, values, -1).max(axis=0)
    return np.where(highest >= 0, highest, np.nan).astype(np.float32)


@pytest.mark.parametrize("unit", units.UNITS)
@pytest.mark.parametrize(
    "target",
    [
        labelled.Target(("mass", "calcification")),
        labelled.Target(("x", "A", "D"), "density"),
        labelled.Target(("calcification", "mass"), boxes=True),
    ],
)
def test_examples_are_those_of_a_loop_over_groups(dataset, target, unit):
    expected = []
    for group in _groups(dataset, labelled.GROUPS[unit]):
        values = _joined(np.stack([target.of(json.loads(own)) for own in group["labels"]]), bool(target.values_of))
        boxes = [
            (row, target.labels.index(name), *map(float, item["box"]))
            for row, own in group["boxes_canvas"].items()
            for item in json.loads(own)
            for name in label_values.names_of(item)
            if target.boxes and name in target.labels
        ]
        with_box = np.isin(np.arange(len(values)), [kind for _, kind, *_ in boxes])
        if target.boxes:
            values[values == 1] = np.nan
        values[with_box] = 1
        if not np.isnan(values).all():
            images = tuple(zip(group.index, units.views(group)))
            expected.append(labelled.Example(0, images, tuple(map(float, values)), tuple(boxes)))
    found = labelled.examples([dataset], "train", target, unit)
    assert [repr(example) for example in found] == [repr(example) for example in expected]  # NaN is NaN


def test_the_most_boxes_are_an_images(dataset):
    found = labelled.examples([dataset], "train", labelled.Target(("calcification", "mass"), boxes=True), "exam")
    counts = [
        sum(box[0] == row for box in example.boxes) for example in found for row in {box[0] for box in example.boxes}
    ]
    assert labelled.most_boxes(found) == max(counts) > 1
    assert labelled.most_boxes([example._replace(boxes=()) for example in found]) == 1
