"""Partners of an exam's images and the ordered views of a breast: drawn by the policy, each with a text of its own."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from fake_sets import FakeDataset, Spy

from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import image_text, units
from mammoclip_jax.data.batches.texts import Augment, TextOptions
from mammoclip_jax.data.batches.units import Partner
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import pretrain

DRAWS = 10_000
SIDES = {"L": "left", "R": "right"}


def _rows(exams, images):
    """Images ("L CC") of so many exams, captioned by their labels; each exam has an image of another split too."""
    rows = []
    for exam in range(exams):
        for side, view in (*map(str.split, images), ("R", "MLO")):
            labels = json.dumps({"mass": int(side == "L"), "density": "ABCD"[exam % 4]})
            rows.append(
                dict(
                    study=f"s{exam}",
                    patient=f"p{exam}",
                    laterality=side,
                    view=view,
                    texts=[],
                    labels=labels,
                    boxes="[]",
                    boxes_canvas="[]",
                    split="train",
                )
            )
        rows[-1]["split"] = "val"
    return rows


SHORT = {  # a template that is soon rendered
    "fields": {"side": {"label": "laterality", "values": {"L": "left", "R": "right"}}, "view": {}},
    "sections": [
        {"name": "image", "parts": [{"texts": ["The {side} breast with {view} view."]}]},
        {"name": "findings", "parts": [{"when": {"mass": ["1"]}, "texts": ["A mass."]}]},
    ],
}
FULL = _rows(8, ["L CC", "L MLO", "R CC", "R MLO"])
MANY = _rows(250, ["L CC", "L MLO", "R CC", "R MLO"])  # Grain shuffles few items slowly


def _train(rows, tokenizer=None, flip=0.0, batch_size=8, seed=3, own_rows=None, **options):
    usual = dict(
        text=TextOptions(captions="mama", captions_dropout=0.0), augment=Augment(flip, 0.0, 0.0), text_length=4
    )
    options = usual | options
    return image_text.train_iterator(
        [FakeDataset(rows)],
        tokenizer or Spy(),
        image_text.Options(**options),
        batch_size=batch_size,
        rows=own_rows,
        seed=seed,
        read_threads=0,
    )


def _kind(rows, first, partner):
    """What the partner is to the first image; None: of another exam or split."""
    a, b = rows[first], rows[partner]
    if a["study"] != b["study"] or {a["split"], b["split"]} != {"train"}:
        return None
    return "same view" if first == partner else "same side" if a["laterality"] == b["laterality"] else "other side"


def _within_3_sigma(count, draws, chance):
    return abs(count - draws * chance) <= 3 * np.sqrt(draws * chance * (1 - chance))


@pytest.mark.parametrize("policy", [Partner(0.5, 0.0, 0.5), Partner(0.2, 0.3, 0.5), Partner(exam=1.0)])
def test_partners_follow_the_policy(policy):
    """Of an exam of 2 x 2 views, `exam` is the same side once in three."""
    rng, breasts = np.random.default_rng(0), [[0, 1], [2, 3]]
    pairs = [units.draw_pair(breasts, policy, rng) for _ in range(DRAWS)]
    same = sum(first == other for first, other in pairs)
    side = sum(first != other and first // 2 == other // 2 for first, other in pairs)
    assert _within_3_sigma(same, DRAWS, policy.same_view)
    assert _within_3_sigma(side, DRAWS, policy.same_side + policy.exam / 3)
    assert _within_3_sigma(DRAWS - same - side, DRAWS, policy.exam * 2 / 3)
    assert all(_within_3_sigma(count, DRAWS, 1 / 4) for count in Counter(first for first, _ in pairs).values())


def test_an_image_without_such_a_partner_is_its_own_and_how_often_is_known():
    policy, rng = Partner(0.2, 0.3, 0.5), np.random.default_rng(0)
    for breasts, missing in (([[0]], 0.8), ([[0], [1]], 0.3), ([[0, 1], [2]], 0.1), ([[0, 1], [2, 3]], 0.0)):
        assert units.without_partner(breasts, policy) == pytest.approx(missing)
        same = sum(a == b for a, b in (units.draw_pair(breasts, policy, rng) for _ in range(2000)))
        assert _within_3_sigma(same, 2000, 0.2 + missing)


def test_the_log_says_how_often_a_partner_is_wanting(caplog):
    with caplog.at_level("INFO"):
        _train(_rows(4, ["L CC"]), batch_size=4, partner=Partner(0.5, 0.0, 0.5))
    assert "4 exams; 50.00 % of the draws will pair an image with itself" in caplog.text


def test_ten_thousand_pairs_of_batches_stay_in_exam_and_split_and_have_their_own_texts(tmp_path):
    """Kinds by the policy, and no text names another side or view than that of its own image, mirrored or not."""
    template = tmp_path / "short.json"
    template.write_text(json.dumps(SHORT))
    spy = Spy()
    iterator = _train(MANY, spy, flip=0.5, partner=Partner(0.5, 0.0, 0.5), text=TextOptions(captions=str(template)))
    kinds, wrong, flipped = Counter(), 0, 0
    for number in range(DRAWS // 8):
        batch = next(iterator)
        for record, mirrored, said in zip(
            batch["record"], batch["flip_horizontal"], spy.texts[8 * number :], strict=False
        ):
            kinds[_kind(MANY, *record)] += 1
            flipped += mirrored
            for row, text in zip(record, said, strict=True):
                own, view = MANY[row]["laterality"], MANY[row]["view"]
                side = {"L": "R", "R": "L"}[own] if mirrored else own
                mass = " A mass." if own == "L" else ""  # its own findings
                wrong += text != f"The {SIDES[side]} breast with {view} view.{mass}"
        assert "view_mask" not in batch and "sentence" not in batch
    assert set(kinds) == {"same view", "same side", "other side"} and not wrong
    for kind, chance in (("same view", 1 / 2), ("same side", 1 / 6), ("other side", 1 / 3)):
        assert _within_3_sigma(kinds[kind], DRAWS, chance), kinds
    assert _within_3_sigma(flipped, DRAWS, 1 / 2)


def test_flips_of_each_view_are_told_to_its_own_text_alone(tmp_path):
    template = tmp_path / "short.json"
    template.write_text(json.dumps(SHORT))
    augment = Augment(0.5, 0.25, 0.0, each_view=True)
    iterator = _train(
        MANY, spy := Spy(), partner=Partner(exam=1.0), text=TextOptions(captions=str(template)), augment=augment
    )
    batches = [next(iterator) for _ in range(100)]
    records, mirrored = (np.concatenate([batch[key] for batch in batches]) for key in ("record", "flip_horizontal"))
    turned = np.concatenate([batch["flip_vertical"] for batch in batches])
    assert mirrored.shape == turned.shape == (800, 2)
    for record, flips, said in zip(records, mirrored, spy.texts, strict=True):
        for row, flip, text in zip(record, flips, said, strict=True):
            own = MANY[row]["laterality"]
            assert f"The {SIDES[{'L': 'R', 'R': 'L'}[own] if flip else own]} breast" in text
    for flips, chance in ((mirrored, 1 / 2), (turned, 1 / 4)):
        both = flips.all(axis=1).sum()
        assert _within_3_sigma(both, 800, chance**2) and _within_3_sigma(flips.sum(), 1600, chance)


def test_report_texts_are_of_the_breast_of_their_image():
    rows = [row | dict(texts=[f"report of {row['laterality']} {row['study']}"]) for row in FULL]
    spy = Spy()
    iterator = _train(rows, spy, partner=Partner(exam=1.0), text=TextOptions())
    batches = [next(iterator) for _ in range(20)]
    records = np.concatenate([batch["record"] for batch in batches])
    for record, said in zip(records, spy.texts, strict=True):
        assert said == [rows[row]["texts"][0] for row in record]


def test_one_text_is_that_of_the_first_image():
    spy = Spy()
    batch = next(_train(FULL, spy, partner=Partner(exam=1.0), texts=1))
    for (first, _), (text,) in zip(batch["record"], spy.texts, strict=True):
        assert f"{SIDES[FULL[first]['laterality']]} breast with {FULL[first]['view']} view" in text
    assert batch["token_ids"].shape == (8, 1, 4)


def test_no_batch_holds_an_exam_twice_and_an_epoch_has_each_once():
    iterator = _train(FULL, partner=Partner(0.5, 0.0, 0.5), batch_size=4)
    studies = [[FULL[row]["study"] for row in next(iterator)["record"][:, 0]] for _ in range(2)]
    assert len({*studies[0], *studies[1]}) == 8


@pytest.mark.parametrize("options", [dict(partner=Partner(0.4, 0.2, 0.4)), dict(slots=("CC", "MLO"))])
def test_what_a_row_holds_does_not_depend_on_the_number_of_processes(options):
    def take(own_rows=None, batches=4):
        iterator = _train(FULL, flip=0.5, own_rows=own_rows, **options)
        return [next(iterator) for _ in range(batches)]

    whole, parts = take(), [take(own) for own in ([0, 1, 2], [3, 7], [4, 5, 6])]
    for one, *others in zip(whole, *parts, strict=True):
        for own, other in zip(([0, 1, 2], [3, 7], [4, 5, 6]), others, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name][own], other[name], err_msg=name)
    again = _train(FULL, flip=0.5, **options)
    again.set_state({"batches": 2})
    np.testing.assert_array_equal(next(again)["record"], whole[2]["record"])
    assert any(
        (one["record"] != other["record"]).any()
        for one, other in zip(whole, [next(_train(FULL, flip=0.5, seed=4, **options))], strict=False)
    )


# --- ordered views ---------------------------------------------------------------------------------------------------


def test_cc_is_always_in_slot_0_and_mlo_in_slot_1():
    """10,000 draws; breasts with several images of a view, with one view, and with views that have no slot."""
    rows = [row | dict(texts=["a text"]) for row in _rows(100, ["L MLO", "L CC", "L CC", "R MLO", "R AT"])]
    iterator = _train(rows, slots=("CC", "MLO"), text=TextOptions())
    drawn = Counter()
    for _ in range(DRAWS // 8):
        batch = next(iterator)
        for record, there in zip(batch["record"], batch["view_mask"], strict=True):
            views = [rows[row]["view"] for row in record]
            assert all(view == slot for view, slot, own in zip(views, ("CC", "MLO"), there, strict=True) if own)
            assert there.any() and (there.all() or record[0] == record[1])
            assert len({(rows[row]["study"], rows[row]["laterality"]) for row in record}) == 1
            drawn[tuple(int(row) % 6 for row in record)] += 1
    assert set(drawn) == {(1, 0), (2, 0), (3, 3)}
    assert _within_3_sigma(drawn[1, 0], drawn[1, 0] + drawn[2, 0], 1 / 2)  # each of two CC images


def test_the_text_of_a_filled_slot_is_of_the_image_that_fills_it():
    spy = Spy()
    batch = next(_train(_rows(2, ["L MLO"]) + [dict(split="val")], spy, slots=("CC", "MLO"), batch_size=2))
    np.testing.assert_array_equal(batch["view_mask"], [[False, True]] * 2)
    assert all("left breast with MLO view" in text for said in spy.texts for text in said)


def test_images_without_a_caption_do_not_get_that_of_another_view(caplog):
    rows = _rows(2, ["L CC", "L MLO"])
    rows[1]["labels"] = "{}"
    with caplog.at_level("INFO"):
        batch = next(_train(rows, spy := Spy(), slots=("CC", "MLO"), batch_size=2))
    assert "left out 1 images that no caption" in caplog.text
    for record, said in zip(batch["record"], spy.texts, strict=True):
        assert [re.search(r"with (\w+) view", text)[1] for text in said] == [rows[row]["view"] for row in record]
        assert 1 not in record


# --- the config ------------------------------------------------------------------------------------------------------


def _config(**data):
    config = defaults()
    config.data.update(data)
    config.losses.mammo_clip = dict(weight=1.0)
    return config


@pytest.mark.parametrize(
    "data, message",
    [
        (dict(partner=dict(same_view=0.5, exam=0.4)), "same_view=0.5.*add up to 1"),
        (dict(partner=dict(same_view=-0.5, exam=1.5)), "0 or more"),
        (dict(slots=("CC", "MLO"), partner=dict(exam=1.0)), "take one of them"),
        (dict(slots=("CC",)), "config.data.views=2 different views"),
        (dict(slots=("CC", "CC")), "config.data.views=2 different views"),
        (dict(slots=("CC", "MLO"), texts=3), "config.data.texts=3 must be 1"),
        (dict(views=3, partner=dict(exam=1.0)), "config.data.views=3"),
        (dict(slots=("CC", "MLO"), other_views=True), "other_views is not read"),
        (dict(flip_each_view=True), "flip_each_view needs slots or partner"),
        (dict(flip_each_view=True, slots=("CC", "MLO"), texts=1), "and config.data.texts=2"),
        (dict(sentences=-1), "config.data.sentences=-1"),
        (dict(boxes=-1), "config.data.boxes=-1"),
    ],
)
def test_fields_that_do_not_go_together_are_errors(data, message):
    with pytest.raises(UserError, match=message):
        pretrain.check(_config(**data))


def test_an_unknown_partner_or_view_is_an_error_with_the_nearest_name():
    config = _config()
    config.data.partner = dict(same_veiw=1.0)
    with pytest.raises(UserError, match="'same_veiw'.*Did you mean 'same_view'"):
        pretrain.check(config)
    with pytest.raises(UserError, match="no image of the view in config.data.slots: 'MLOO'.*Did you mean 'MLO'"):
        _train(FULL, slots=("CC", "MLOO"))
    pretrain.check(_config(slots=("CC", "MLO")))
    pretrain.check(_config(partner=dict(same_view=0.5, exam=0.5)))


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_of_each_view_come_with_it():
    boxes = json.dumps(
        [{"label": "mass", "box": [1.0, 2.0, 3.0, 4.0]}, {"label": "calcification", "box": [0, 0, 2, 2]}]
    )
    rows = [row | dict(boxes_canvas=boxes if row["view"] == "CC" else "[]") for row in FULL]
    batch = next(_train(rows, slots=("CC", "MLO"), boxes=3))
    assert batch["boxes"].shape == (8, 2, 3, 4) and batch["boxes"].dtype == np.float32
    np.testing.assert_array_equal(batch["box_classes"], [[[0, 0, -1], [-1, -1, -1]]] * 8)
    np.testing.assert_array_equal(batch["boxes"][0, 0], [[1, 2, 3, 4], [0, 0, 2, 2], [0, 0, 0, 0]])
    with pytest.raises(UserError, match="has 2 boxes: set config.data.boxes=2, it is 1"):
        _train(rows, slots=("CC", "MLO"), boxes=1)
