"""CheXpert's labels by named policies, the list 5x200, and frontal views, in both sources that have them."""

import gzip
import json

import pytest
import test_chexpert
import test_mimic_cxr
from chest_trees import chexpert_tree, mimic_tree
from fake_sets import FakeDataset

from mammoclip_jax.data.batches import targets
from mammoclip_jax.data.batches.targets import Targets
from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import chest_labels, chexpert, mimic_cxr
from mammoclip_jax.data.sources.chest_labels import FINDINGS, FIVE, FIVE_X
from mammoclip_jax.errors import UserError

LINE = {name: "" for name in FINDINGS} | {
    "Edema": "-1.0",
    "Atelectasis": "-1",
    "Pneumonia": "-1.0",
    "Fracture": "1.0",
    "Pneumothorax": "0.0",
    "Lung Lesion": "2",
}
DOUBTFUL = {f"{name}_uncertain": 1 for name in ("edema", "atelectasis", "pneumonia")}


@pytest.mark.parametrize(
    "policy, values",
    [
        ("ignore", {}),
        ("ones", dict(edema=1, atelectasis=1, pneumonia=1)),
        ("zeros", dict(edema=0, atelectasis=0, pneumonia=0)),
        ("mixed", dict(edema=1, atelectasis=1, pneumonia=0)),
    ],
)
def test_an_uncertain_cell_becomes_what_the_policy_says_and_stays_known_as_such(policy, values):
    assert chest_labels.labels(LINE, policy) == {"fracture": 1, "pneumothorax": 0} | DOUBTFUL | values
    everything = chest_labels.labels(LINE, policy, "zeros")
    assert {key for key in FINDINGS.values() if key not in everything} == {"lung_lesion"} | (
        set() if values else {"edema", "atelectasis", "pneumonia"}
    )
    assert everything["cardiomegaly"] == 0 and everything["fracture"] == 1
    assert chest_labels.labels({}, policy, "zeros") == {}, "a study that was not labelled"


def test_uncertain_is_a_value_of_its_own_for_soft_targets():
    """-1 as of MedCLIP, where the policy leaves it open; the policy's value elsewhere."""
    rows = [dict(labels=json.dumps(chest_labels.labels(LINE, policy)), boxes="[]") for policy in ("ignore", "mixed")]
    rows = [dict(row, laterality="", view="PA", study=f"s{i}") for i, row in enumerate(rows)]
    fields = ("edema", "pneumonia", "fracture", "pneumothorax", "consolidation")
    rows.append(dict(rows[0], study="s2", labels=json.dumps(dict(consolidation=1))))
    found = targets.reader([FakeDataset(rows)], "train", Targets("labels", fields))(0, [0, 1], [])
    assert found["target"].tolist() == [[-1, -1, 1, 0, 0], [1, 0, 1, 0, 0]]
    assert found["known"].tolist() == [[True] * 4 + [False]] * 2


def row(number, split="train", **labels):
    return dict(
        image=f"i{number}", patient=f"p{number // 2}", split=split, labels=labels, file=f"a/p{number}/s/v{number}.jpg"
    )


def test_only_one_means_that_the_others_are_neither_there_nor_uncertain():
    assert chest_labels.only_one(dict(edema=1, atelectasis=0, fracture=1)) == "edema"
    assert chest_labels.only_one(dict(edema=1, consolidation=1)) == ""
    assert chest_labels.only_one(dict(edema=1, consolidation_uncertain=1)) == ""
    assert chest_labels.only_one(dict(edema=1, edema_uncertain=1)) == "", "by the policy ones"
    assert chest_labels.only_one(dict(fracture=1)) == ""


def test_the_list_takes_one_image_a_patient_and_as_many_of_each_class():
    rows = [row(n, **{FIVE[n % 5]: 1}) for n in range(60)] + [
        row(60, "val", edema=1),
        row(61, edema=1, consolidation=1),
    ]
    frontal = [n not in (7, 8) for n in range(62)]
    chosen = chest_labels.five_x(rows, 3, frontal, "train")
    assert sorted(chosen.values()) == sorted(FIVE * 3)
    assert len({rows[place]["patient"] for place in chosen}) == 15 and not {7, 8, 60, 61} & set(chosen)
    assert all(rows[place]["labels"] == {name: 1} for place, name in chosen.items())
    assert chosen == {p: n for p, n in chest_labels.five_x(rows, "3", frontal, "train").items()}
    few = chest_labels.five_x(rows[:10], 3, frontal[:10], "train")
    assert 0 < len(few) <= 5 and chest_labels.five_x(rows, "", frontal, "train") == {}
    backwards = chest_labels.five_x(rows[::-1], 3, frontal[::-1], "train")
    assert {rows[::-1][p]["image"] for p in backwards} == {rows[p]["image"] for p in chosen}, "whatever the order"


@pytest.mark.parametrize("column", ["Path", "imgpath"])
def test_the_list_as_it_was_published(tmp_path, column):
    names = [name for name, key in FINDINGS.items() if key in FIVE]
    path = tmp_path / "five.csv"
    lines = ["CheXpert-v1.0/a/p1/s/v1.jpg,1.0,0,0,0,0", "p3/s/v3.png,,,1,,", "p4/s/v4.jpg,1,1,,,", "gone/s/v.jpg,1,,,,"]
    path.write_text("\n".join([",".join([column, *names]), *lines]) + "\n")
    rows = [row(n) for n in range(6)]
    keys = [FINDINGS[name] for name in names]
    assert chest_labels.five_x(rows, str(path), [True] * 6, "train") == {1: keys[0], 3: keys[2]}
    with pytest.raises(UserError, match="lists no image of this data set"):
        chest_labels.five_x(rows[4:], str(path), [True] * 2, "train")
    with pytest.raises(UserError, match="nowhere.csv is missing"):
        chest_labels.five_x(rows, str(tmp_path / "nowhere.csv"), [True] * 6, "train")


def test_patients_of_the_list_leave_the_training_with_all_their_images(tmp_path):
    table = checked(chexpert.read(chexpert_tree(tmp_path, patients=30), five_x=2, views="frontal"))
    rows = table.rows
    listed = rows["labels"].map(lambda labels: json.loads(labels).get(FIVE_X, ""))
    assert sorted(filter(None, listed)) == sorted(FIVE * 2)
    moved = set(rows["patient"][listed != ""])
    assert set(rows["split"][rows["patient"].isin(moved)]) == {"test"}
    assert (rows.groupby("patient")["split"].nunique() == 1).all() and set(rows["split"]) == {"train", "val", "test"}
    assert len(rows[rows["patient"].isin(moved)]) > len(moved)


def test_a_patient_in_two_parts_stops_the_command(tmp_path):
    tree = mimic_tree(tmp_path, patients=5)
    table = tree / "mimic-cxr-2.0.0-split.csv.gz"
    lines = gzip.decompress(table.read_bytes()).decode().splitlines()
    table.write_bytes(gzip.compress("\n".join([*lines[:-1], lines[-1].replace("train", "test"), ""]).encode()))
    with pytest.raises(UserError, match="1 patients are in more than one split"):
        checked(mimic_cxr.read(tree))
    assert len(checked(mimic_cxr.read(tree, views="frontal")).rows) == 5, "its other image is left out"


def test_lateral_views_are_left_out_and_counted(tmp_path):
    for module, source, all_views in ((test_chexpert, chexpert, 4), (test_mimic_cxr, mimic_cxr, 5)):
        folder = tmp_path / module.__name__
        folder.mkdir()
        whole, frontal = (source.read(module.make(folder), views=views) for views in ("all", "frontal"))
        left_out = [problem for problem in frontal.problems if problem.stage == "left out"]
        assert len(whole.rows) == all_views == len(frontal.rows) + len(left_out)
        assert frontal.table_rows == whole.table_rows and not whole.problems
        assert {problem.kind for problem in left_out} == {"left out, no frontal view"}
        assert set(frontal.rows["view"]) <= {"AP", "PA", "FRONTAL"}
    assert sorted(problem.reason.split(": ")[1] for problem in left_out) == ["LATERAL", "LL", "unknown"]


def test_labels_of_the_other_labeller(tmp_path):
    root = test_mimic_cxr.make(tmp_path)
    assert not any("edema" in json.loads(l) for l in mimic_cxr.read(root, labeller="negbio").rows["labels"])
    (root / "mimic-cxr-2.0.0-negbio.csv").write_text(
        "subject_id,study_id," + ",".join(FINDINGS) + "\n10000032,53189527" + ",1.0" * 14 + "\n"
    )
    rows = mimic_cxr.read(root, labeller="negbio").rows.set_index("image")
    assert json.loads(rows.loc["bb-1", "labels"])["edema"] == 1


@pytest.mark.parametrize(
    "option, said",
    [
        (dict(uncertain="one"), "no policy --option=uncertain 'one'. Did you mean 'ones'"),
        (dict(unmentioned="zero"), "Did you mean 'zeros'"),
        (dict(views="frontals"), "Did you mean 'frontal'"),
    ],
)
def test_a_policy_that_there_is_not_is_named(tmp_path, option, said):
    for module, source in ((test_chexpert, chexpert), (test_mimic_cxr, mimic_cxr)):
        with pytest.raises(UserError, match=said):
            source.read(module.make(tmp_path), **option)
