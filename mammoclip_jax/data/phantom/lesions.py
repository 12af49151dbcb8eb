"""Masses and calcification clusters as small patches of added density, with their masks.

Shapes, margins, morphologies and distributions are the descriptors of the BI-RADS atlas (ACR, 5th edition, 2013).
Sizes are larger than in patients, so that a finding survives an image of 256 rows. Lengths are fractions of the image
height unless they are said to be pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

MASS_SHAPES = ("round", "oval", "lobular", "irregular")
MASS_MARGINS = ("circumscribed", "obscured", "microlobulated", "indistinct", "spiculated")
CALCIFICATION_MORPHOLOGIES = ("round", "pleomorphic", "fine linear", "amorphous")
CALCIFICATION_DISTRIBUTIONS = ("grouped", "linear", "segmental")
# Density added at contrast 1, in the units of anatomy.render (air 0, densest tissue about 1).
MASS_LEVEL = 0.30
CALCIFICATION_LEVEL = 0.55
MASK_LEVEL = 0.25  # of a patch's peak: what an annotator would still draw around
FINEST_HEIGHT = 2000  # rows; specks of smaller images are drawn enlarged and then averaged


@dataclass(frozen=True)
class Lesion:
    """One lesion of a breast, as both views show it.

    `outer` and `upper` run from -1 to 1 from the nipple to the breast's border, `depth` from 0 (chest wall) to 1.
    """

    label: str  # "mass" or "calcification"
    form: str  # shape of a mass, morphology of calcifications
    pattern: str  # margin of a mass, distribution of calcifications
    radius: float
    outer: float
    upper: float
    depth: float
    birads: int
    seed: int  # of its drawing


def draw_mass(rng: np.random.Generator) -> dict:
    """Descriptors of a random mass; margins keep to what a shape allows."""
    shape = str(rng.choice(MASS_SHAPES, p=[0.25, 0.25, 0.20, 0.30]))
    chances = {"round": [0.45, 0.20, 0.15, 0.15, 0.05], "lobular": [0.25, 0.20, 0.25, 0.20, 0.10]}
    chances |= {"oval": chances["round"], "irregular": [0.00, 0.15, 0.20, 0.25, 0.40]}
    margin = str(rng.choice(MASS_MARGINS, p=chances[shape]))
    if margin == "spiculated":
        birads = 5 if shape == "irregular" or rng.random() < 0.5 else 4
    elif margin == "circumscribed":
        birads = int(rng.choice([2, 3], p=[0.5, 0.5]))
    else:
        birads = 4
    radius = float(np.clip(0.050 * np.exp(0.25 * rng.standard_normal()), 0.032, 0.080))
    return {"label": "mass", "form": shape, "pattern": margin, "radius": radius, "birads": birads}


def draw_calcifications(rng: np.random.Generator) -> dict:
    """Descriptors of a random calcification cluster."""
    morphology = str(rng.choice(CALCIFICATION_MORPHOLOGIES, p=[0.30, 0.35, 0.20, 0.15]))
    chances = [0.8, 0.1, 0.1] if morphology in ("round", "amorphous") else [0.5, 0.25, 0.25]
    distribution = str(rng.choice(CALCIFICATION_DISTRIBUTIONS, p=chances))
    if morphology == "round":
        birads = int(rng.choice([2, 3])) if distribution == "grouped" else 4
    else:
        birads = 5 if morphology == "fine linear" and distribution != "grouped" else 4
    radius = float(np.clip(0.042 * np.exp(0.22 * rng.standard_normal()), 0.028, 0.065))
    return {"label": "calcification", "form": morphology, "pattern": distribution, "radius": radius, "birads": birads}


def patch(lesion: Lesion, height: int, to_nipple: float, view: str) -> np.ndarray:
    """Added density of `lesion` at contrast 1, float32 [P, P] with the lesion's centre in the middle.

    Args:
        lesion: what to draw.
        height: rows of the image in pixels.
        to_nipple: direction towards the nipple in the image, in radians (0: larger x, pi/2: larger y).
        view: "CC" or "MLO"; the two views of one lesion differ as two projections do.
    """
    rng = np.random.default_rng([lesion.seed, ("CC", "MLO").index(view)])
    if lesion.label == "mass":
        return _mass(lesion, rng, height) * np.float32(MASS_LEVEL)
    return _calcifications(lesion, rng, height, to_nipple) * np.float32(CALCIFICATION_LEVEL)


def mask_of(density: np.ndarray) -> np.ndarray:
    """Bool [P, P]: where a lesion's patch is to be annotated."""
    return density > MASK_LEVEL * density.max()


def _mass(lesion: Lesion, rng: np.random.Generator, height: int) -> np.ndarray:
    radius = lesion.radius * height
    half = int(np.ceil(2.3 * radius))
    axis = np.arange(-half, half + 1, dtype=np.float32)
    distance, angle = cv2.cartToPolar(*np.meshgrid(axis, axis))
    theta = np.linspace(0, 2 * np.pi, 721)
    border = _border(lesion, rng, theta) * radius
    rho = distance / np.interp(angle, theta, border).astype(np.float32)

    softness = {"circumscribed": 0.15, "obscured": 0.18, "microlobulated": 0.17, "indistinct": 0.42, "spiculated": 0.38}
    width = np.full_like(theta, softness[lesion.pattern])
    if lesion.pattern == "obscured":  # part of the border fades into tissue
        width += 0.5 * np.clip(np.cos(theta - rng.uniform(0, 2 * np.pi)), 0, 1)
    width = np.interp(angle, theta, width).astype(np.float32)
    inside = np.clip((1 - rho) / width + 0.5, 0, 1)
    inside = inside * inside * (3 - 2 * inside)
    body = inside * (0.50 + 0.50 * np.sqrt(np.clip(1 - rho * rho, 0, 1)))
    mottle = cv2.GaussianBlur(rng.standard_normal(body.shape, dtype=np.float32), (0, 0), max(0.12 * radius, 0.5))
    body *= 1 + 0.06 * mottle / max(float(mottle.std()), 1e-6)
    if lesion.pattern == "spiculated":
        body = np.maximum(body, _spicules(rng, half, border, theta) * np.clip(1.9 - 0.75 * rho, 0, 1))
    return body


def _border(lesion: Lesion, rng: np.random.Generator, theta: np.ndarray) -> np.ndarray:
    """Radius of a mass over the angle `theta`, of mean about 1."""
    turned = theta - rng.uniform(0, np.pi)
    ratio = {"round": 1.08, "oval": rng.uniform(1.35, 1.65), "lobular": 1.15, "irregular": rng.uniform(1.1, 1.4)}
    long = np.sqrt(ratio[lesion.form])
    border = 1 / np.sqrt((np.cos(turned) / long) ** 2 + (np.sin(turned) * long) ** 2)
    if lesion.form == "lobular":
        lobes = rng.integers(3, 5)
        border *= 1 + 0.17 * np.abs(np.sin(lobes / 2 * turned)) ** 0.7 + 0.03 * np.cos(2 * turned) - 0.09
    if lesion.form == "irregular":
        for wave in range(2, 9):
            border *= 1 + rng.normal(0, 0.13) / wave**0.6 * np.cos(wave * theta + rng.uniform(0, 2 * np.pi))
    if lesion.pattern == "microlobulated":
        for wave in range(8, 15):
            border *= 1 + rng.normal(0, 0.022) * np.cos(wave * theta + rng.uniform(0, 2 * np.pi))
    if lesion.pattern == "spiculated":
        for wave in range(5, 13):
            border *= 1 + rng.normal(0, 0.03) * np.cos(wave * theta + rng.uniform(0, 2 * np.pi))
    return np.clip(border, 0.45, 1.7)


def _spicules(rng: np.random.Generator, half: int, border: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Thin bent lines that leave the mass on all sides and thin out, float32 [2 half + 1, 2 half + 1]."""
    scale = max(1, round(180 / half))
    size = (2 * half + 1) * scale
    canvas = np.zeros((size, size), np.uint8)
    middle, count = size / 2, int(rng.integers(22, 38))
    radius = border.mean() * scale
    for start in np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.5 / count, count):
        reach = np.linspace(0.5, rng.uniform(1.2, 2.1), 12)
        angle = start + rng.normal(0, 0.16) * (reach - 0.5)
        length = reach * np.interp(angle % (2 * np.pi), theta, border) * scale
        points = np.stack([middle + length * np.cos(angle), middle + length * np.sin(angle)], 1) * 16
        level = rng.uniform(0.45, 0.95)
        for part in range(4):  # thinner and fainter outwards
            section = points[3 * part : 3 * part + 4].astype(np.int32)[None]
            thickness = max(1, round(radius * (0.100 - 0.021 * part)))
            cv2.polylines(canvas, section, False, int(255 * level * (1 - 0.17 * part)), thickness, cv2.LINE_AA, 4)
    small = cv2.resize(canvas, (2 * half + 1,) * 2, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return cv2.GaussianBlur(small, (0, 0), max(0.03 * radius / scale, 0.4))


def _calcifications(lesion: Lesion, rng: np.random.Generator, height: int, to_nipple: float) -> np.ndarray:
    spread = lesion.radius * height
    half = int(np.ceil(1.6 * spread))
    scale = max(1, round(FINEST_HEIGHT / height))
    size = (2 * half + 1) * scale
    canvas = np.zeros((size, size), np.uint8)
    # The specks belong to the lesion, not to the view: both views show the same number and kinds.
    kinds = np.random.default_rng([lesion.seed, 2])
    for x, y in _positions(lesion, kinds, to_nipple, rng) * spread * scale + size / 2:
        cv2.fillPoly(
            canvas,
            [_speck(lesion.form, kinds, (x, y), height * scale, to_nipple)],
            _level(lesion, kinds),
            cv2.LINE_AA,
            4,
        )
    small = cv2.resize(canvas, (2 * half + 1,) * 2, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    blur = 0.0022 if lesion.form == "amorphous" else 0.0009
    return cv2.GaussianBlur(small, (0, 0), max(blur * height, 0.35))


def _level(lesion: Lesion, rng: np.random.Generator) -> int:
    faint = lesion.form == "amorphous"
    return int(255 * (rng.uniform(0.5, 0.75) if faint else rng.uniform(0.7, 1.0)))


def _positions(lesion: Lesion, rng: np.random.Generator, to_nipple: float, view: np.random.Generator) -> np.ndarray:
    """Centres of the specks, float64 [N, 2] in units of the cluster's radius; `view` turns the projection."""
    count = int(rng.integers(14, 31) if lesion.form == "amorphous" else rng.integers(9, 27))
    angle = rng.uniform(0, 2 * np.pi, count) + view.uniform(0, 2 * np.pi)
    reach = np.sqrt(rng.uniform(0, 1, count))
    if lesion.pattern == "grouped":
        return 0.85 * np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)
    along = np.sort(rng.uniform(-1.25, 1.25, count))
    wide = 0.10 if lesion.pattern == "linear" else 0.12 + 0.30 * (1.25 - along) / 1.25
    across = wide * rng.uniform(-1, 1, count) + 0.06 * np.sin(3 * along)
    c, s = np.cos(to_nipple), np.sin(to_nipple)
    return np.stack([along * c - across * s, along * s + across * c], 1)


def _speck(form: str, rng: np.random.Generator, centre: tuple, height: int, to_nipple: float) -> np.ndarray:
    """One calcification's polygon, int32 [24, 2] in sixteenths of a pixel."""
    theta = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    turn = rng.uniform(0, np.pi)
    if form == "round":
        a = b = rng.uniform(0.0022, 0.0046)
        border = np.ones(24)
    elif form == "pleomorphic":
        a, b = rng.uniform(0.0022, 0.0058), rng.uniform(0.0018, 0.0040)
        corners = rng.integers(2, 6)
        border = 1 + rng.uniform(0.1, 0.35) * np.cos(corners * theta + turn) + 0.12 * rng.normal(0, 1, 24)
    elif form == "fine linear":
        a, b = rng.uniform(0.0055, 0.0120), rng.uniform(0.0016, 0.0024)
        border, turn = np.ones(24), to_nipple + rng.normal(0, 0.35)
    else:
        a, b = rng.uniform(0.0028, 0.0045), rng.uniform(0.0028, 0.0045)
        border = 1 + 0.2 * rng.normal(0, 1, 24)
    x, y = a * border * np.cos(theta), b * border * np.sin(theta)
    c, s = np.cos(turn), np.sin(turn)
    points = np.stack([x * c - y * s, x * s + y * c], 1) * height + np.asarray(centre)
    return np.round(points * 16).astype(np.int32)
