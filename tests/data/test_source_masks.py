"""Masks of sources go the way of their images, into folders that are new and old; `verify` finds what is wrong."""

import json

import cv2
import numpy as np
import pytest

from mammoclip_jax.data import masks
from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.store.masks import Masks
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.verify import verify
from mammoclip_jax.errors import UserError

GEOMETRY = dict(height=160, width=112, outside="kept", upright=True, workers=0)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """(exams, the data set folder), whose MLO views are turned upright."""
    exams, out = tmp_path_factory.mktemp("exams") / "set", tmp_path_factory.mktemp("data") / "set"
    everywhere = Parameters(seed=1, height=320, width=256, mass_prevalence=1, calcification_prevalence=1)
    generate.generate(exams, 1, everywhere)
    prepare("phantom", exams, out, **GEOMETRY)
    return exams, out


def test_masks_of_phantoms_lie_on_their_images(phantoms):
    dataset = Dataset.open(phantoms[1])
    stored = Masks.open(dataset)
    assert stored.channels == ("breast", "pectoral_muscle", "mass", "calcification") and stored.rows == [0, 1, 2, 3]
    for row in range(4):
        image, found = dataset.read(row), stored.read(row) > 0
        breast, muscle = found[..., 0], found[..., 1]
        dark = image < 12
        assert (breast == ~dark).mean() > 0.96 and stored.known(row).all()
        assert muscle.any() == (dataset.index["view"][row] == "MLO") and not (muscle & ~breast).any()
        boxes = {item["label"]: item["box"] for item in json.loads(dataset.index["boxes_canvas"][row])}
        for channel, name in enumerate(("mass", "calcification"), start=2):
            rows, columns = np.nonzero(found[..., channel])
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # A turned box is the one around it, which is larger.
            turned = 4 if Transform.from_json(dataset.index["transform"][row]).rotation else 1.5
            assert np.abs(box - boxes[name]).max() < turned
            assert cv2.connectedComponents(found[..., channel].astype(np.uint8))[0] == 2  # calcifications as well


def test_a_pixel_is_in_a_mask_where_half_of_it_is():
    transform = Transform((4, 8), (0, 0, 4, 8), True, (0.5, 0.5), (1, 2), (4, 7))
    mask = np.zeros((4, 8), bool)
    mask[0:2, 0:3] = True
    mask[2, 6] = True
    placed = masks.placed(mask, transform)
    assert np.argwhere(placed).tolist() == [[1, 4], [1, 5]]  # mirrored; half a pixel counts, a quarter does not


def test_a_folder_of_an_older_program_gets_its_masks_and_keeps_the_rest(phantoms):
    exams, out = phantoms
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    parts = [name for name in before if name.startswith("masks-")]
    assert len(parts) == 3
    for name in parts:
        (out / name).unlink()
    assert verify(out)["ok"]
    with pytest.raises(UserError, match="Prepare it again"):
        Masks.open(Dataset.open(out))
    assert prepare("phantom", exams, out, **GEOMETRY)["up_to_date"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_verify_finds_damaged_and_foreign_masks(phantoms):
    _, out = phantoms
    found = verify(out)
    assert found["ok"] and found["checks"]["mask records"] == 4
    records, description = out / "masks-annotated.array_record", out / "masks-annotated.json"
    whole, said = records.read_bytes(), description.read_text()
    damaged = bytearray(whole)
    damaged[damaged.index(b"MJX1") + 20] ^= 255
    records.write_bytes(damaged)
    assert [fault["check"] for fault in verify(out)["faults"]] == ["mask records"]
    records.write_bytes(whole)
    description.write_text(said.replace(Dataset.open(out).info["fingerprint"], "f" * 16))
    assert [fault["check"] for fault in verify(out)["faults"]] == ["masks"]
    description.write_text(said)


def test_masks_beside_any_images(tmp_path):
    """Channels are folders; one that an image lacks is unknown, and a mask of another size costs no image."""
    rng = np.random.default_rng(0)
    images, drawn = tmp_path / "images", tmp_path / "masks"
    for folder in (images, drawn / "lungs", drawn / "heart"):
        folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        cv2.imwrite(str(images / f"{name}.png"), rng.integers(0, 256, (40, 30), dtype=np.uint8))
    lungs = np.zeros((40, 30), np.uint8)
    lungs[10:30, 4:20] = 1
    cv2.imwrite(str(drawn / "lungs" / "a.png"), lungs)
    cv2.imwrite(str(drawn / "lungs" / "b.png"), lungs)
    cv2.imwrite(str(drawn / "heart" / "b.png"), lungs)
    cv2.imwrite(str(drawn / "heart" / "c.png"), lungs[:20])
    options = dict(height=40, width=30, crop="none", outside="kept", workers=0, leave_out=[])
    prepare("images_only", images, tmp_path / "set", options={"masks": str(drawn)}, **options)
    stored = Masks.open(Dataset.open(tmp_path / "set"))
    assert stored.channels == ("heart", "lungs") and stored.info["failed"] == {"mask of another size than its image": 1}
    assert sorted(stored.known(row).tolist() for row in range(3)) == [[False, False], [False, True], [True, True]]
    np.testing.assert_array_equal(stored.read(stored.rows[0])[..., 1], lungs)
    assert str(tmp_path) not in (tmp_path / "set" / "masks-annotated.json").read_text()
    sheet = "image,patient\n" + "".join(f"{name}.png,{name}\n" for name in "abc")
    (images / "sheet.csv").write_text(sheet)
    columns = {"table": "sheet.csv"} | dict.fromkeys(("study", "laterality", "view", "report"), "-")
    prepare("report_csv", images, tmp_path / "table", options=columns | {"masks": str(drawn)}, **options)
    same = Masks.open(Dataset.open(tmp_path / "table"))
    assert same.channels == stored.channels and sorted(same.known(row).tolist() for row in range(3)) == [
        [False, False],
        [False, True],
        [True, True],
    ]
    for source, more in (("images_only", {}), ("report_csv", columns)):
        with pytest.raises(UserError, match="holds no mask of an image"):
            prepare(source, images, tmp_path / "other", options=more | {"masks": str(images)}, **options)
