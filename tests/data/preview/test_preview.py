"""The contact sheet: what it shows, that it stands alone, and that it names nobody."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from tiny_dicom import breast, write

import mammoclip_jax.data
from mammoclip_jax.data.build import build
from mammoclip_jax.data.manifest import Problem, SourceTable, frame
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.preview import cards, preview, preview_source
from mammoclip_jax.data.preview.sample import spread
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError

SMALL = Preprocessing(height=64, width=48)
BOXES = [{"label": "mass", "box": [10, 40, 30, 60]}, {"label": "focal_asymmetry", "box": [5, 50, 25, 80]}]


def source(
    root: Path, public: bool = False, images: int = 6, boxes=BOXES, real: bool = True, vendor: str = "Hologic"
) -> SourceTable:
    """Images of two vendors; the first has boxes and the flag `spot`, the last is broken."""
    root.mkdir(exist_ok=True)
    rows = []
    for number in range(images):
        name = f"Jane_Doe_{number}.dcm"
        tags = {"PaddleDescription": "SPOT"} if number == 0 else {}
        write(root / name, breast(seed=number), PatientName="Doe^Jane", **tags)
        rows.append(
            {
                "dataset": "clinic",
                "patient": f"SECRET{number}",
                "study": f"ACC{number}",
                "image": f"IMG-{number}",
                "file": name,
                "row": f"jane.csv:{number + 2}",
                "laterality": "L",
                "view": "CC" if number % 2 else "MLO",
                "split": "train",
                "vendor": vendor if number < 4 else "",
                "boxes": boxes if number == 0 else [],
                "real": real,
            }
        )
    if images:
        (root / f"Jane_Doe_{images - 1}.dcm").write_bytes(b"broken")
    return SourceTable(frame(rows), [], "licence", "citation", public)


def built(tmp_path: Path, **options) -> Path:
    build(
        source(tmp_path / "in", **options),
        tmp_path / "in",
        tmp_path / "out",
        preprocessing=SMALL,
        workers=0,
        max_quarantined=1,
    )
    return tmp_path / "out"


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in found]


class _Page(HTMLParser):
    """All elements, that every one is closed, and the visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def assert_alone(page: str) -> _Page:
    """Nothing is fetched, no script runs, every picture has a text in its place."""
    parsed = _Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
        assert tag != "img" or attributes["alt"]
    assert "url(http" not in page and "@import" not in page
    return parsed


def assert_nobody(page: str):
    page = re.sub(r"base64,[^\"]+", "", page)
    for word in ("Jane", "Doe", "SECRET", "ACC", "IMG-", "jane.csv", ".dcm"):
        assert word not in page


def test_a_data_set(tmp_path):
    folder = built(tmp_path)
    page = preview(folder, tmp_path / "sheets" / "sheet.html").read_text()
    parsed = assert_alone(page)
    assert_nobody(page)
    index = Dataset.open(folder).index
    assert len(index) == 5 and all(image in parsed.text for image in index["image"])
    assert "mass" in parsed.text and "focal asymmetry" in parsed.text and cards.FLAGS["spot"] in parsed.text
    for flag in {flag for text in index["flags"] for flag in cards.flags_of(text)}:
        assert cards.words(flag) in parsed.text
    assert "not a DICOM file" in parsed.text and "real mammograms" in parsed.text
    assert "all 5 images" in parsed.text and len(pictures(page)) == 10
    vendors = [text for text in re.findall(r"<tr><th>(.*?)</tr>", page) if "Hologic" in text or "unknown" in text]
    assert [re.findall(r"<td>(\d+)", text) for text in vendors] == [["2", "2", "4"], ["0", "1", "1"]]


def test_a_source(tmp_path):
    table = source(tmp_path / "in")
    page = preview_source(table, tmp_path / "in", SMALL, tmp_path / "sheet.html").read_text()
    parsed = assert_alone(page)
    assert_nobody(page)
    assert {f"line {number}" for number in range(2, 8)} <= set(re.findall(r"line \d+", parsed.text))
    assert "not a DICOM file" in parsed.text and cards.FLAGS["spot"] in parsed.text and "mass" in parsed.text
    assert "stored values" in parsed.text and "the 5 images of the sample" in parsed.text
    assert len(pictures(page)) == 10 and not (tmp_path / "out").exists()


def test_a_public_source_has_its_names_and_a_missing_file_its_count(tmp_path):
    table = source(tmp_path / "in", public=True)
    (tmp_path / "in" / "Jane_Doe_1.dcm").unlink()
    problem = Problem("x.dcm", "source", "unknown view: secret", "mend it", "x", "t.csv:9")
    table = table._replace(partial=True, problems=[problem])
    page = _Page(preview_source(table, tmp_path / "in", SMALL, tmp_path / "sheet.html").read_text())
    assert "IMG-0" in page.text and "IMG-1" not in page.text and ".dcm" not in page.text
    assert "file missing" in page.text and "not in this copy" in page.text
    assert "unknown view" in page.text and "secret" not in page.text


def test_text_beside_the_breast_is_masked_in_private_originals(tmp_path):
    table = source(tmp_path / "in", images=2)
    text = cv2.putText(np.zeros((400, 300), np.uint8), "DOE", (210, 60), cv2.FONT_HERSHEY_SIMPLEX, 1, 1, 2)
    write(tmp_path / "in" / "Jane_Doe_0.dcm", np.where(text, 4000, breast(400, 300)).astype(np.uint16))
    corner = np.s_[10:60, 160:238]  # of the thumbnail [320, 240]

    def shown(**options) -> int:
        page = preview_source(table, tmp_path / "in", SMALL, tmp_path / "sheet.html", **options).read_text()
        original = next(picture for picture in pictures(page) if picture.shape[:2] == (320, 240))
        return (original[corner].min(axis=-1) > 150).sum()

    assert shown(masked=False) > 100 and shown() == 0


def test_an_original_without_air_is_left_out(tmp_path):
    table = source(tmp_path / "in", images=2)
    ramp = np.tile(np.arange(1000, 1090, dtype=np.uint16), (120, 1))
    ramp += np.random.default_rng(0).integers(0, 400, ramp.shape).astype(np.uint16)
    write(tmp_path / "in" / "Jane_Doe_0.dcm", ramp)
    page = preview_source(table, tmp_path / "in", SMALL, tmp_path / "sheet.html").read_text()
    assert len(pictures(page)) == 1 and "no air is seen" in page


def test_boxes_and_crop_are_drawn_where_they_are():
    transform = Transform((100, 200), (20, 40, 84, 88), True, (1.0, 1.0), (0, 0), (64, 48))
    canvas = np.full((64, 48), 200, np.uint8)
    row = {
        "transform": transform.to_json(),
        "boxes_canvas": json.dumps([{"label": "mass", "box": [8, 16, 24, 40]}]),
        "flags": "never_heard_of",
        "laterality": "R",
        "view": "",
        "vendor": "",
        "split": "val",
    }
    card = cards.card("x", row, canvas)
    original, final = (
        cv2.imdecode(np.frombuffer(base64.b64decode(picture.uri.partition(",")[2]), np.uint8), 1)
        for picture in card.pictures
    )
    green = (original[..., 1].astype(int) - original[..., 2] > 60).nonzero()
    factor = original.shape[0] / 100
    edges = [green[0].min(), green[1].min(), green[0].max() + 1, green[1].max() + 1]
    np.testing.assert_allclose(edges, np.array(transform.crop) * factor, atol=2)
    assert np.allclose(original[5:20, 5:40], cards._NOT_THERE, atol=12)
    orange = (final[..., 2].astype(int) - final[..., 0] > 100).nonzero()
    edges = [orange[1].min(), orange[0].min(), orange[1].max() + 1, orange[0].max() + 1]
    np.testing.assert_allclose(edges, np.array([8, 16, 24, 40]) * 5, atol=2)
    assert card.boxes == ((cards._BOXES[0], "mass", 1),) and card.flags == ("never_heard_of",)
    assert card.facts == "right · view unknown · vendor unknown · val"


def test_the_crop_of_an_upright_view_is_oblique():
    transform = Transform((100, 200), (10, 30, 90, 170), False, (1.0, 1.0), (0, 0), (80, 140), rotation=-20.0)
    row = {
        "transform": transform.to_json(),
        "boxes_canvas": "[]",
        "flags": "upright",
        "laterality": "L",
        "view": "MLO",
        "vendor": "",
        "split": "val",
    }
    card = cards.card("x", row, np.full((80, 140), 200, np.uint8))
    (original, _) = (
        cv2.imdecode(np.frombuffer(base64.b64decode(picture.uri.partition(",")[2]), np.uint8), 1)
        for picture in card.pictures
    )
    factor = original.shape[0] / 100
    for x, y in transform.outline * factor:
        around = original[max(0, int(y) - 3) : int(y) + 4, max(0, int(x) - 3) : int(x) + 4].astype(int)
        assert not around.size or (around[..., 1] - around[..., 2] > 60).any()
    assert np.allclose(original[:8, :8], cards._NOT_THERE, atol=12)
    assert abs(int(original[original.shape[0] // 2, original.shape[1] // 2, 0]) - 200) < 12
    assert card.flags == (cards.FLAGS["upright"],)


def test_same_seed_same_bytes(tmp_path):
    folder = built(tmp_path)
    pages = [
        preview(folder, tmp_path / f"{n}.html", count=2, seed=seed).read_bytes()
        for n, seed in enumerate((0, 0, 1, 2, 3))
    ]
    assert pages[0] == pages[1] and len(set(pages)) > 1
    table = source(tmp_path / "in")
    sheets = [
        preview_source(table, tmp_path / "in", SMALL, tmp_path / f"{n}.html", count=3).read_bytes() for n in range(2)
    ]
    assert sheets[0] == sheets[1]


def test_without_boxes_and_phantoms(tmp_path):
    page = _Page(preview(built(tmp_path, boxes=[], real=False), tmp_path / "sheet.html").read_text())
    assert "phantom" in page.text and "mass" not in page.text
    assert any(attributes.get("alt", "").endswith("no boxes") for _, attributes in page.elements)


def test_nothing_to_show(tmp_path):
    page = preview_source(source(tmp_path / "in", images=0), tmp_path / "in", SMALL, tmp_path / "a.html").read_text()
    assert "There are no images." in assert_alone(page).text
    page = preview_source(source(tmp_path / "in", images=1), tmp_path / "in", SMALL, tmp_path / "b.html").read_text()
    assert "No image." in assert_alone(page).text and "There is nothing to plot." in page
    with pytest.raises(UserError, match="no finished data set"):
        preview(tmp_path / "nowhere", tmp_path / "c.html")


def test_an_empty_data_set(tmp_path):
    folder = built(tmp_path)
    index = pd.read_parquet(folder / "index.parquet")
    index.iloc[:0].to_parquet(folder / "index.parquet")
    info = json.loads((folder / "dataset.json").read_text())
    info["counts"]["images"] = 0
    (folder / "dataset.json").write_text(json.dumps(info))
    assert "There are no images." in assert_alone(preview(folder, tmp_path / "sheet.html").read_text()).text


def test_foreign_words_are_escaped(tmp_path):
    boxes = [{"label": "<b>mass & more", "box": [10, 40, 30, 60]}]
    page = preview(built(tmp_path, public=True, boxes=boxes, vendor="<i>A$\\x$"), tmp_path / "sheet.html").read_text()
    assert "<b>" not in page and "<i>" not in page and page.count("&lt;i&gt;A$\\x$") > 7
    assert html.escape("<b>mass & more") in page
    assert_alone(page)


def test_the_sample_spreads():
    rows = pd.DataFrame({"vendor": ["GE"] * 900 + ["Fuji"] * 90 + ["Agfa"] * 10, "flags": [""] * 999 + ["spot,rare"]})
    chosen = spread(rows, ("vendor", "flags"), 12, seed=0)
    assert len(set(chosen)) == 12 and 999 in chosen[:3] and chosen == spread(rows, ("vendor", "flags"), 12, seed=0)
    assert rows["vendor"].iloc[chosen].value_counts().between(3, 5).all()
    assert chosen != spread(rows, ("vendor", "flags"), 12, seed=1)
    assert sorted(spread(rows, ("vendor", "flags"), 2000, seed=0)) == list(range(1000))


def test_every_flag_has_words():
    """The flags that data/ can give stand in its code; none in the dict has gone."""
    folder = Path(mammoclip_jax.data.__file__).parent
    code = "\n".join(path.read_text() for path in folder.rglob("*.py") if path.name != "cards.py")
    built_from_names = {"laterality_differs", "view_differs"}
    assert all(f'"{flag}"' in code for flag in set(cards.FLAGS) - built_from_names)
    given = re.findall(r'(?:flags\.(?:append|add)\(|flag = |problem = .*?)"([a-z_0-9]+)"', code)
    listed = (folder / "pixels" / "intensity.py").read_text().partition("Flags:")[2].partition('"""')[0]
    given += re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", listed)
    assert len(given) > 8 and set(given) <= set(cards.FLAGS)
