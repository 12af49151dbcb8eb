"""An exam: a patient's breasts, the lesions in them, and the four images that show both."""

from dataclasses import dataclass, fields, replace

import cv2
import numpy as np

from mammoclip_jax.data.phantom import anatomy, lesions, skin_marker
from mammoclip_jax.data.phantom.lesions import Lesion

VERSION = 1  # of what a seed means: raise it when the same parameters give other bytes
VIEWS = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))
MASK_BITS = {"mass": 1, "calcification": 2}
FIELD_MM = 246.0  # physical height of the image: 3518 rows of 0.07 mm
NOISE = 0.0045  # standard deviation of the detector's noise at full exposure
GREY_LEVELS = 3600  # stored value of density 1 before a device's curve

# Independent random streams of an exam. Lesions have their own, so that nothing else in the image depends on them.
_PATIENT, _LESIONS, _OUTLINE, _TEXTURE, _NOISE = range(5)


@dataclass(frozen=True)
class Parameters:
    """Everything the bytes of an exam depend on, besides its number."""

    seed: int = 0
    height: int = 640
    width: int = 512
    contrast: float = 1.0  # of the lesions; 0 makes them invisible
    mass_prevalence: float = 0.4  # per breast
    calcification_prevalence: float = 0.4  # per breast, independent of masses
    perpendicular: bool = False  # depth in MLO: at right angles to the muscle, as CC sees it; else along image rows
    shortcut: str = ""  # mass or calcification: a ring on the skin that tells of it in training (skin_marker.py)
    shortcut_share: float = 0.95  # of the training breasts whose ring tells the truth
    shortcut_held_out: float = 0.25  # of the patients, whose rings tell nothing: those of validation and test

    def as_json(self) -> dict:
        """The fields by name, each in its declared type, so that 1 and 1.0 name the same set.

        What came later is there only where it is set: identifiers hash this, and those of older sets must not change.
        """
        values = {field.name: field.type(getattr(self, field.name)) for field in fields(self)}
        unset = {name for name in values if name.startswith("shortcut") and not self.shortcut}
        unset |= set() if self.perpendicular else {"perpendicular"}
        return {name: value for name, value in values.items() if name not in unset}


@dataclass(frozen=True)
class Breast:
    """One side of an exam and what is to be seen in it."""

    laterality: str
    lesions: tuple[Lesion, ...]
    birads: int
    skin_marker: bool = False

    def has(self, label: str) -> bool:
        """Whether a lesion of this label is present."""
        return any(lesion.label == label for lesion in self.lesions)


@dataclass(frozen=True)
class Exam:
    """What there is to know of an exam before any pixel is drawn."""

    parameters: Parameters
    number: int
    habitus: anatomy.Habitus
    breasts: dict[str, Breast]
    age: int

    @property
    def patient(self) -> str:
        """The pseudonym of the patient, one exam each."""
        return patient(self.parameters, self.number)

    def stream(self, *key: int) -> np.random.Generator:
        """The random stream `key` of this exam."""
        return np.random.default_rng([self.parameters.seed, self.number, *key])

    def outline(self, laterality: str, view: str) -> anatomy.Outline:
        """The borders of one view in the frame of a left breast, in pixels of the image."""
        return _outline(self.parameters, self.number, self.habitus, laterality, view)


@dataclass(frozen=True)
class Picture:
    """One rendered view, in the orientation in which it is stored."""

    density: np.ndarray  # float32 [H, W], about 0 (air) to 1
    breast: np.ndarray  # bool [H, W]
    mask: np.ndarray  # uint8 [H, W], bits of MASK_BITS
    boxes: tuple[dict, ...]  # {"label", "box": [x0, y0, x1, y1]}, pixels, ends exclusive


def patient(parameters: Parameters, number: int) -> str:
    """Pseudonym of the patient of exam `number`; the seed keeps the patients of two sets apart."""
    return f"phantom-{parameters.seed}-{number:06d}"


def draw(parameters: Parameters, number: int) -> Exam:
    """The exam `number` of the set that `parameters` describe: patient, lesions and their places."""
    rng = np.random.default_rng([parameters.seed, number, _PATIENT])
    habitus = anatomy.draw_habitus(rng, parameters.width / parameters.height)
    age = int(rng.integers(42, 78))
    breasts = {side: _draw_breast(parameters, number, habitus, side) for side in "RL"}
    return Exam(parameters, number, habitus, breasts, age)


def _outline(parameters: Parameters, number: int, habitus, laterality: str, view: str) -> anatomy.Outline:
    key = [parameters.seed, number, _OUTLINE, "RL".index(laterality), ("CC", "MLO").index(view)]
    return anatomy.outline(habitus, view, np.random.default_rng(key), parameters.height, parameters.width)


def _draw_breast(parameters: Parameters, number: int, habitus, laterality: str) -> Breast:
    rng = np.random.default_rng([parameters.seed, number, _LESIONS, "RL".index(laterality)])
    outlines = {view: _outline(parameters, number, habitus, laterality, view) for view in ("CC", "MLO")}
    present = rng.random(2) < (parameters.mass_prevalence, parameters.calcification_prevalence)
    wanted = [draw(rng) for draw, wish in zip((lesions.draw_mass, lesions.draw_calcifications), present) if wish]
    placed = []
    for facts in wanted:
        place = _place(rng, outlines, facts["radius"], placed, parameters.perpendicular)
        placed.append(Lesion(**(facts | place), seed=int(rng.integers(2**31))))
    breast = Breast(laterality, tuple(placed), max([lesion.birads for lesion in placed], default=1))
    if not parameters.shortcut:
        return breast
    finding = breast.has(parameters.shortcut)
    return replace(
        breast, skin_marker=skin_marker.worn(parameters, number, patient(parameters, number), laterality, finding)
    )


def _place(rng: np.random.Generator, outlines: dict, radius: float, placed: list[Lesion], perpendicular: bool) -> dict:
    """Place and size of a lesion: inside the breast in both views, clear of the muscle and of other lesions.

    A breast too small for `radius` gets a smaller lesion; the last resort is the middle of the breast.
    """
    for attempt in range(400):
        place = {
            "outer": float(rng.uniform(-0.75, 0.75)),
            "upper": float(rng.uniform(-0.75, 0.75)),
            "depth": float(rng.uniform(0.15, 0.88)),
            "radius": radius * 0.94 ** (attempt // 40),
        }
        apart = all(_distance(place, other) > 0.30 for other in placed)
        if apart and all(_fits(borders, place, perpendicular) for borders in outlines.values()):
            return place
    return place | {"outer": 0.0, "upper": 0.0, "depth": 0.5}


def _distance(place: dict, other: Lesion) -> float:
    return float(
        np.hypot(place["outer"] - other.outer, place["upper"] - other.upper) / 2 + abs(place["depth"] - other.depth) / 2
    )


def _fits(borders: anatomy.Outline, place: dict, perpendicular: bool) -> bool:
    view = "MLO" if borders.pectoral.any() else "CC"
    x, y = centre(borders, view, place["outer"], place["upper"], place["depth"], perpendicular)
    reach = 1.25 * place["radius"] * borders.height
    rows = np.arange(int(y - reach), int(y + reach) + 1)
    if x - reach < 0 or rows[0] < 0 or rows[-1] >= borders.height:
        return False
    half = np.sqrt(np.clip(reach**2 - (rows + 0.5 - y) ** 2, 0, None))
    return bool((borders.edge[rows] > x + half).all() and (borders.pectoral[rows] < x - 0.6 * half).all())


def centre(
    borders: anatomy.Outline, view: str, outer: float, upper: float, depth: float, perpendicular: bool = False
) -> tuple[float, float]:
    """A place in the breast → (x, y) in pixels, in the frame of a left breast.

    Both views keep the depth, of the nipple's. CC shows outer at the top of the image; MLO shows upper there. In MLO the
    depth counts along image rows, or `perpendicular` to the muscle, as between the views of a real breast.
    """
    if perpendicular and view == "MLO":
        return _beside_the_muscle(borders, upper, depth)
    x = depth * borders.depth
    first, last = borders.rows_at(x)
    upward = outer if view == "CC" else upper
    reach = borders.nipple[1] - first if upward > 0 else last - borders.nipple[1]
    return x, borders.nipple[1] - upward * reach


def _beside_the_muscle(borders: anatomy.Outline, upper: float, depth: float) -> tuple[float, float]:
    """`centre` in the axes of the muscle: across it, and along it from above to below."""
    angle, distance = borders.muscle()
    across = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    along = np.array([-across[1], across[0]])
    nipple = np.array(borders.nipple)
    foot = (distance + depth * (nipple @ across - distance)) * across
    steps = np.arange(-borders.width, borders.height + borders.width)
    x, y = foot[:, None] + along[:, None] * steps
    rows = np.clip(y.astype(int), 0, borders.height - 1)
    inside = steps[(x >= 0) & (y >= 0) & (y < borders.height) & (x < borders.edge[rows])]
    level = nipple @ along
    reach = level - inside[0] if upper > 0 else inside[-1] - level
    x, y = foot + (level - upper * reach) * along
    return float(x), float(y)


def render(exam: Exam, laterality: str, view: str) -> Picture:
    """The image of one view, with lesions, without the device's grey scale, marker and noise."""
    parameters, breast = exam.parameters, exam.breasts[laterality]
    side, projection = "RL".index(laterality), ("CC", "MLO").index(view)
    borders = exam.outline(laterality, view)
    density = anatomy.render(exam.habitus, borders, exam.stream(_TEXTURE, side, projection))
    inside = borders.mask().astype(bool)
    mask = np.zeros(density.shape, np.uint8)
    boxes = []
    for lesion in breast.lesions:
        x, y = centre(borders, view, lesion.outer, lesion.upper, lesion.depth, parameters.perpendicular)
        to_nipple = float(np.arctan2(borders.nipple[1] - y, borders.nipple[0] - x))
        added = lesions.patch(lesion, parameters.height, to_nipple, view)
        box = _add(
            density, mask, inside, added, lesions.mask_of(added), (x, y), parameters.contrast, MASK_BITS[lesion.label]
        )
        boxes.append({"label": lesion.label, "box": box})
    if breast.skin_marker:
        skin_marker.draw(density, inside, exam.stream(skin_marker.STREAM, side, projection))
    sigma = NOISE * np.sqrt(0.15 + density)
    noise = exam.stream(_NOISE, side, projection).standard_normal(density.shape, dtype=np.float32)
    density = np.where(inside, density + sigma * noise, 0.004 * np.abs(noise))
    if laterality == "R":
        density, inside, mask = (np.ascontiguousarray(array[:, ::-1]) for array in (density, inside, mask))
        boxes = [{"label": item["label"], "box": _mirrored(item["box"], parameters.width)} for item in boxes]
    return Picture(density, inside, mask, tuple(boxes))


def _add(density, mask, inside, added, area, place, contrast, bit) -> list[int]:
    """Adds a lesion's patch in place; returns the box of what of it lies in the breast."""
    half = added.shape[0] // 2
    x0, y0 = int(np.floor(place[0])) - half, int(np.floor(place[1])) - half
    rows = slice(max(y0, 0), min(y0 + added.shape[0], density.shape[0]))
    columns = slice(max(x0, 0), min(x0 + added.shape[1], density.shape[1]))
    part = (slice(rows.start - y0, rows.stop - y0), slice(columns.start - x0, columns.stop - x0))
    within = inside[rows, columns]
    density[rows, columns] += np.float32(contrast) * added[part] * within
    shown = area[part] & within
    mask[rows, columns] |= shown.astype(np.uint8) * np.uint8(bit)
    left, top, width, height = cv2.boundingRect(shown.astype(np.uint8))
    return [columns.start + left, rows.start + top, columns.start + left + width, rows.start + top + height]


def _mirrored(box: list[int], width: int) -> list[int]:
    return [width - box[2], box[1], width - box[0], box[3]]
