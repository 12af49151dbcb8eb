"""Texts about regions in batches: the right region of the right view after the crop, denials without one, sides and flips."""

import json
import pickle

import numpy as np
import pytest
from fake_sets import FakeDataset, Spy

from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import image_text, region_phrases
from mammoclip_jax.data.batches.region_phrases import BITS, OfRegions, Phrases, of_image
from mammoclip_jax.data.batches.regions import Regions
from mammoclip_jax.data.batches.texts import Augment
from mammoclip_jax.data.batches.units import Partner
from mammoclip_jax.data.phantom import exam, report_text
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.geometry import fit
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import pretrain

HEIGHT, WIDTH = 160, 128
REGIONS = Regions(3, ("boxes",), "phantom")
LEVELS = ("label", "phrase", "report")


@pytest.fixture(scope="module")
def rows():
    """Images of phantom exams as a prepared index has them, without pixels; `lesions` are label and box of each."""
    made, parameters = [], exam.Parameters(seed=1, height=HEIGHT, width=WIDTH)
    transform = fit((HEIGHT, WIDTH), (4, 0, HEIGHT - 10, WIDTH - 2), (96, 64), chest_wall="left", laterality="")
    for number in range(16):
        drawn = exam.draw(parameters, number)
        for side, view in exam.VIEWS:
            picture, breast = exam.render(drawn, side, view), drawn.breasts[side]
            placed = place_boxes(json.dumps(list(picture.boxes)), transform)
            texts, sections = report_text.texts(drawn, side)
            labels = {label: int(breast.has(label)) for label in exam.MASK_BITS}
            made.append(
                dict(
                    study=f"s{number}",
                    laterality=side,
                    view=view,
                    texts=texts,
                    sections=sections,
                    labels=json.dumps(labels),
                    boxes=placed.original,
                    boxes_canvas=placed.canvas,
                    transform=transform.to_json(),
                )
            )
    return made


def _batches(rows, count=6, phrases=Phrases(8, 4), augment=Augment(0.0, 0.0, 0.0), **options):
    """(phrases of the row, row) of each row of so many batches."""
    spy = Spy()
    given = image_text.Options(4, augment=augment, **dict(regions=REGIONS, phrases=phrases) | options)
    made = image_text.train_iterator([FakeDataset(rows)], spy, given, batch_size=8, seed=2, read_threads=0)
    found = []
    for _ in range(count):
        spy.texts.clear()
        batch = next(made)
        said = [texts for texts in spy.texts if len(texts) == phrases.count]
        found += [(texts, {k: x[i] for k, x in batch.items()}) for i, texts in enumerate(said)]
    return found


def test_phantom_phrases_have_the_true_box_and_denials_none(rows):
    """Of all sentences that speak of a lesion, with those that refer back to it."""
    right = spoken = denials = 0
    for row in rows:
        boxes = {item["label"]: item["box"] for item in json.loads(row["boxes_canvas"])}
        assert len(boxes) == len(json.loads(row["boxes"])), "the crop of these rows cuts none off"
        about = ""
        for said in of_image(row, ("label", "phrase")):
            if said.negated:
                assert said.box is None, said
                denials += 1
                continue
            named = [label for label in boxes if label in said.text.lower() and "dense" not in said.text]
            about = named[0] if named else about if said.text.startswith("It ") else ""
            if not about:
                assert said.box is None, said
                continue
            spoken += 1
            right += said.box is not None and list(said.box) == boxes[about]
    assert spoken > 60 and denials > 60
    said = [said for row in rows for said in of_image(row, ("label", "phrase"))]
    affirmed, denied = ({(s.text, s.findings) for s in said if s.negated == n and s.findings} for n in (False, True))
    # One text, positive for a region and negative for it too, would teach nothing.
    assert not {text for text, _ in affirmed} & {text for text, _ in denied}
    assert {("no mass", BITS["mass"]), ("no calcification", BITS["calcification"])} <= denied
    assert {("mass", BITS["mass"]), ("calcification", BITS["calcification"])} <= affirmed
    assert right == spoken, "at least .95 are asked for"


def test_a_phrase_speaks_of_a_place_among_the_regions_of_its_view(rows):
    seen = 0
    for options in (dict(), dict(slots=("CC", "MLO")), dict(partner=Partner(exam=1.0))):
        for texts, row in _batches(rows, **options):
            for text, (view, place), negated, level, bits in zip(
                texts,
                row["phrase_region"],
                row["phrase_negated"],
                row["phrase_level"],
                row["phrase_findings"],
                strict=True,
            ):
                if view < 0:
                    assert place < 0 and (negated or level < 0 or level == 1)
                    continue
                seen += 1
                assert not negated and row["box_classes"][view, place] == 0
                record = rows[row["record"][view]]
                allowed = row["region_allowed"][view, place]
                label = [name for name, there in zip(("mass", "calcification", ""), allowed) if there][0]
                boxes = {item["label"]: item["box"] for item in json.loads(record["boxes_canvas"])}
                np.testing.assert_allclose(row["boxes"][view, place], boxes[label], rtol=1e-6)
                assert bits == BITS[label] and (label in text.lower() or text.startswith("It "))
    assert seen > 200


def test_denials_have_a_quarter_of_the_places_and_empty_ones_are_marked(rows):
    placed = [row for row in rows if json.loads(row["boxes_canvas"])]
    for texts, row in _batches(placed, phrases=Phrases(4, 4)):
        there = row["phrase_level"] >= 0
        assert there.all() == bool(texts[-1]) and row["phrase_mask"].any(axis=1).tolist() == there.tolist()
        assert row["phrase_negated"].sum() >= min(1, sum("o mass" in t or "o calcif" in t for t in texts))
        assert (row["phrase_region"][:, 0] >= 0).sum() <= 4
    texts, row = _batches(rows, count=1, phrases=Phrases(60, 4))[0]
    empty = row["phrase_level"] < 0
    assert empty.any() and not row["phrase_mask"][empty].any() and not row["phrase_negated"][empty].any()
    assert [not text for text in texts] == empty.tolist()


def test_levels_are_chosen(rows):
    only = _batches(rows, count=2, phrases=Phrases(8, 4, ("label",)))
    assert {int(level) for _, row in only for level in row["phrase_level"]} == {0, -1}
    assert {text for texts, _ in only for text in texts} <= {"mass", "calcification", "no mass", "no calcification", ""}
    reports = _batches(rows, count=2, phrases=Phrases(8, 4, ("report",)))
    assert {int(level) for _, row in reports for level in row["phrase_level"]} == {2, -1}
    assert all((row["phrase_region"] == -1).all() for _, row in reports)


@pytest.mark.parametrize("each", [False, True])
def test_sides_are_swapped_with_the_flip_and_a_named_position_stays_upright(rows, each):
    options = dict(slots=("CC", "MLO"), texts=2) if each else {}
    turned = 0
    for texts, row in _batches(rows, augment=Augment(0.5, 1.0, 0.0, each), **options):
        flips, vertical = (np.broadcast_to(row[f"flip_{axis}"], 2) for axis in ("horizontal", "vertical"))
        turned += vertical.sum()
        side = rows[row["record"][0]]["laterality"]
        for text, (view, _) in zip(texts, row["phrase_region"]):
            own = "right" if (side == "R") != flips[max(view, 0)] else "left"
            other = {"right": "left", "left": "right"}[own]
            if view >= 0 or not each:
                assert other not in text
            if "quadrant" in text and view >= 0:
                assert not vertical[view]
    assert turned


def test_a_box_that_the_crop_cuts_off_is_no_region_and_older_folders_serve(rows):
    row = next(row for row in rows if json.loads(row["boxes_canvas"]))
    away = fit((HEIGHT, WIDTH), (0, WIDTH - 3, HEIGHT, WIDTH), (96, 64), chest_wall="left", laterality="")
    assert any(said.box for said in of_image(row, LEVELS))
    assert not any(said.box for said in of_image(row | {"transform": away.to_json()}, LEVELS))
    two = {"label": "mass", "box": [1, 1, 9, 9]}, {"label": "Asymmetry", "box": [20.0, 20.0, 30.0, 30.0]}
    texts = ["A mass is seen. It is oval. A focal asymmetry is present. No calcification."]
    said = of_image(row | dict(labels="{}", boxes=json.dumps(two), texts=texts, sections=["caption"]), ("phrase",))
    assert [s.box == said[0].box for s in said] == [True, True, False, False] and said[0].box
    assert [s.findings for s in said] == [
        BITS["mass"],
        BITS["mass"],
        BITS["asymmetry"] | BITS["focal_asymmetry"],
        BITS["calcification"] | BITS["suspicious_calcification"],
    ]


def test_it_is_pickled_without_what_it_has_seen_being_needed(rows):
    draw = OfRegions(Phrases(4, 4), Spy())
    dataset = FakeDataset(rows)
    again = pickle.loads(pickle.dumps(draw))
    assert draw.spoken(dataset, 0, [0, 1]) == again.spoken(dataset, 0, [0, 1]) and draw == draw
    assert set(draw.known) == {(0, 0), (0, 1)}


def test_what_cannot_be_is_refused(rows):
    for given, message in (
        (dict(levels=("labels",)), "no level of config.data.phrases.levels: 'labels'. Did you mean 'label'"),
        (dict(counts=3), "no field config.data.phrases: 'counts'. Did you mean 'count'"),
        (dict(count=-1), "count is 0"),
        (dict(count=2, levels=()), "levels name at least one"),
    ):
        with pytest.raises(UserError, match=message):
            region_phrases.wanted(given)
    with pytest.raises(UserError, match="phrases speak of annotated regions. Set config.data.regions.places"):
        _batches(rows, regions=Regions())
    config = defaults()
    config.losses.region_phrase = dict()
    config.data.regions.update(places=3, sources=("boxes",), concepts="phantom")
    with pytest.raises(UserError, match="region_phrase compares regions with phrases.*count is 0"):
        pretrain.check(config)
    config.losses = dict(region_concept=dict())
    config.data.phrases.count = 4
    with pytest.raises(UserError, match=r"no term of config.losses reads config.data.phrases \(count=4\)"):
        pretrain.check(config)
