"""The breast without lesions: outline, pectoral muscle, density as power-law texture.

Everything here is in the frame of a left breast: the chest wall is the column x = 0, the nipple points to larger x.
Lengths are fractions of the image height, so that one exam looks the same at every resolution. The spectrum of
breast tissue in mammograms follows a power law 1/f^beta with beta near 3 (Burgess et al., Medical Physics 28, 2001).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft

# Fibroglandular part of the projected breast area for each BI-RADS density, as (lowest, highest).
GLANDULAR_FRACTION = {"A": (0.04, 0.12), "B": (0.20, 0.36), "C": (0.48, 0.64), "D": (0.74, 0.90)}
# Projected thickness of that tissue: denser breasts are also brighter where they are dense.
GLANDULAR_LEVEL = {"A": 0.17, "B": 0.21, "C": 0.25, "D": 0.29}
TEXTURE_HEIGHT = 1280  # rows; taller images get their texture by interpolation, their noise at full size
AXILLA_SLOPE = 0.55  # of the arm's skin fold in MLO, in breast depths per image height


@dataclass(frozen=True)
class Habitus:
    """What the two breasts of a patient share. Lengths as fractions of the image height."""

    half_width: float  # of the breast at the chest wall in CC
    depth: float  # chest wall to nipple
    roundness: float  # exponent of the outline
    pectoral_width: float
    pectoral_height: float
    density: str  # BI-RADS "A" to "D"
    glandular_fraction: float
    beta: float  # exponent of the texture's power spectrum


@dataclass(frozen=True)
class Outline:
    """One view's borders, row by row. `edge` and `pectoral` are x of the skin and of the muscle, per row, in pixels."""

    edge: np.ndarray  # float32 [H]
    pectoral: np.ndarray  # float32 [H], zeros in CC
    nipple: tuple[float, float]  # (x, y) in pixels
    depth: float  # chest wall to nipple in pixels
    height: int
    width: int

    def mask(self) -> np.ndarray:
        """uint8 [H, W], 1 inside the breast."""
        columns = np.arange(self.width, dtype=np.float32) + 0.5
        return (columns[None, :] < self.edge[:, None]).astype(np.uint8)

    def rows_at(self, x: float) -> tuple[int, int]:
        """First and last row at which the breast reaches column `x`, around the nipple's row."""
        inside = np.flatnonzero(self.edge > x)
        return (int(inside[0]), int(inside[-1])) if len(inside) else (int(self.nipple[1]),) * 2

    def muscle(self) -> tuple[float, float]:
        """The straight line fitted to the muscle's edge in MLO, x cos(angle) + y sin(angle) = distance: its angle to the
        vertical in degrees, and its distance from the upper chest-wall corner in pixels."""
        rows = np.flatnonzero(self.pectoral > 0)
        slope, top = np.polyfit(rows + 0.5, self.pectoral[rows].astype(np.float64), 1)
        angle = np.arctan(-slope)
        return float(np.degrees(angle)), float(top * np.cos(angle))


def draw_habitus(rng: np.random.Generator, aspect: float) -> Habitus:
    """A random patient; `aspect` is image width / height and bounds the depth."""
    half_width = rng.uniform(0.29, 0.45)
    density = str(rng.choice(list("ABCD"), p=[0.15, 0.40, 0.33, 0.12]))
    return Habitus(
        half_width=half_width,
        depth=min(half_width * rng.uniform(1.05, 1.60), 0.80 * aspect),
        roundness=rng.uniform(1.75, 2.35),
        pectoral_width=rng.uniform(0.27, 0.44),
        pectoral_height=rng.uniform(0.50, 0.72),
        density=density,
        glandular_fraction=rng.uniform(*GLANDULAR_FRACTION[density]),
        beta=rng.uniform(2.8, 3.2),
    )


def outline(habitus: Habitus, view: str, rng: np.random.Generator, height: int, width: int) -> Outline:
    """The borders of one view ("CC" or "MLO") at `height` x `width` pixels. Draws the same numbers at every size."""
    draw = {name: rng.uniform(-1, 1) for name in ("nipple_row", "depth", "size", "upper", "axilla", "fold", "bend")}
    waves = rng.normal(0, 1, (3, 2))
    y = (np.arange(height) + 0.5) / height
    depth = habitus.depth * (1 + 0.04 * draw["depth"])
    if view == "CC":
        nipple_row = 0.5 + 0.04 * draw["nipple_row"]
        reach = habitus.half_width * (1 + 0.05 * draw["size"])
        edge = depth * _bulge((y - nipple_row) / reach, habitus.roundness)
        pectoral = np.zeros(height)
    else:
        nipple_row = 0.60 + 0.04 * draw["nipple_row"]
        lower = min(habitus.half_width * 1.05, 0.97 - nipple_row) * (1 + 0.04 * draw["size"])
        upper = nipple_row * (1.02 + 0.12 * draw["upper"])
        reach = np.where(y < nipple_row, upper, lower)
        edge = depth * _bulge((y - nipple_row) / reach, habitus.roundness)
        top = max(0.60 * depth, min(habitus.pectoral_width + 0.06, 0.85 * depth)) * (1 + 0.15 * draw["axilla"])
        arm = top + AXILLA_SLOPE * depth * (y - 0.15)
        belly = (0.06 + 0.06 * draw["fold"]) * np.clip((y - 0.90) / 0.10, 0, 1) ** 1.5
        edge = _smooth_maximum(edge, np.where(y < nipple_row, arm * (1 - 0.6 * (y / nipple_row) ** 4), belly), 0.03)
        along = np.clip(1 - y / habitus.pectoral_height, 0, 1)
        width_at_top = min(habitus.pectoral_width, 0.80 * edge[0])
        pectoral = width_at_top * along ** (0.95 + 0.15 * draw["bend"])
    phase = 2 * np.pi * y[:, None] * np.array([1.0, 2.0, 3.0])
    wobble = (waves[:, 0] * np.sin(phase) + waves[:, 1] * np.cos(phase)) @ np.array([0.012, 0.007, 0.004])
    edge = edge * (1 + wobble)
    nipple_depth = float(np.interp(nipple_row, y, edge))
    edge = edge + 0.022 * np.exp(-(((y - nipple_row) / 0.014) ** 2))
    return Outline(
        edge=(edge * height).astype(np.float32),
        pectoral=(pectoral * height).astype(np.float32),
        nipple=(nipple_depth * height, nipple_row * height),
        depth=nipple_depth * height,
        height=height,
        width=width,
    )


def _bulge(t: np.ndarray, roundness: float) -> np.ndarray:
    return np.clip(1 - np.abs(t) ** roundness, 0, None) ** (1 / 1.9)


def _smooth_maximum(a: np.ndarray, b: np.ndarray, softness: float) -> np.ndarray:
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + softness**2)) - 0.5 * softness


def power_law(rng: np.random.Generator, height: int, width: int, beta: float, lowest: float = 1.5):
    """Two independent fields float32 [H, W] of zero mean, unit variance and power spectrum 1/f^beta.

    `lowest`: cycles per image height below which the spectrum is flat, so that no gradient covers the breast.
    """
    rows, columns = scipy.fft.next_fast_len(height), scipy.fft.next_fast_len(width)
    fy = np.fft.fftfreq(rows).astype(np.float32)[:, None] * height
    fx = np.fft.fftfreq(columns).astype(np.float32)[None, :] * height
    power = np.log(np.maximum(fy * fy + fx * fx, np.float32(lowest**2)))
    amplitude = np.exp(np.float32(-beta / 4) * power)
    white = rng.standard_normal((rows, columns, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = scipy.fft.ifft2(white * amplitude)[:height, :width]
    parts = [np.ascontiguousarray(field.real), np.ascontiguousarray(field.imag)]
    return [(part - part.mean()) / part.std() for part in parts]


def render(habitus: Habitus, borders: Outline, rng: np.random.Generator) -> np.ndarray:
    """The breast as a presentation image without noise: float32 [H, W], about 0 (air) to 1 (densest)."""
    scale = min(1.0, TEXTURE_HEIGHT / borders.height)
    height, width = round(borders.height * scale), round(borders.width * scale)
    rows = (np.arange(height) + 0.5) / scale - 0.5
    reach = min(width, int(np.ceil(borders.edge.max() * scale)) + 2)  # beyond it is air
    near = Outline(
        edge=(np.interp(rows, np.arange(borders.height), borders.edge) * scale).astype(np.float32),
        pectoral=(np.interp(rows, np.arange(borders.height), borders.pectoral) * scale).astype(np.float32),
        nipple=(borders.nipple[0] * scale, borders.nipple[1] * scale),
        depth=borders.depth * scale,
        height=height,
        width=reach,
    )
    image = np.zeros((height, width), np.float32)
    image[:, :reach] = _render(habitus, near, rng)
    if scale == 1.0:
        return image
    return cv2.resize(image, (borders.width, borders.height), interpolation=cv2.INTER_LINEAR)


def _render(habitus: Habitus, borders: Outline, rng: np.random.Generator) -> np.ndarray:
    height, width = borders.height, borders.width
    mask = borders.mask()
    skin = cv2.distanceTransform(mask, cv2.DIST_L2, 5) / np.float32(height)  # depth under the skin
    cloud, grain = power_law(rng, height, width, habitus.beta)
    x = (np.arange(width, dtype=np.float32) + 0.5)[None, :]
    muscle = _sigmoid((borders.pectoral[:, None] - x) / np.float32(0.006 * height)) * (borders.pectoral > 0)[:, None]

    gland = _gland(habitus, borders, skin, muscle, cloud)
    strands = _strands(borders, grain)
    vessels = _vessels(borders, rng)
    level = np.float32(GLANDULAR_LEVEL[habitus.density])
    tissue = 0.22 + 0.022 * cloud + 0.012 * grain + gland * level * (1 + 0.16 * grain + 0.10 * cloud)
    tissue += strands * (0.035 + 0.07 * gland) + vessels
    fibres = 0.43 + 0.015 * cloud + 0.012 * grain + 0.03 * strands
    tissue += muscle * (fibres - tissue) * np.float32(0.9)

    # Compression makes the breast evenly thick but for its rounded border, which processing partly evens out.
    border = np.clip(skin / np.float32(0.075), 0, 1)
    thickness = np.sqrt(1 - (1 - border) ** 2) * np.float32(0.65) + np.float32(0.35) * np.clip(skin / 0.012, 0, 1)
    image = tissue * thickness
    image += 0.075 * np.exp(-(((skin - 0.0035) / 0.0030) ** 2)) * mask
    return np.clip(image * mask, 0, None).astype(np.float32)


def _gland(habitus, borders, skin, muscle, cloud) -> np.ndarray:
    """Fibroglandular tissue, float32 [H, W] in [0, 1], its mean inside the breast near the habitus's fraction."""
    height, width = cloud.shape
    nx, ny = borders.nipple
    x = (np.arange(width, dtype=np.float32) + 0.5 - 0.52 * nx) / (0.46 * nx)
    centre = ny - (0.05 * height if borders.pectoral.any() else 0.02 * height)
    y = (np.arange(height, dtype=np.float32) + 0.5 - centre) / (0.62 * habitus.half_width * height)
    cone = 1.6 * np.exp(-0.5 * (x[None, :] ** 2 + y[:, None] ** 2))
    smooth = cv2.GaussianBlur(cloud, (0, 0), 0.006 * height)
    field = cone + 0.45 * smooth + 0.14 * cloud - 2.5 * np.clip(1 - skin / 0.045, 0, 1) - 3.0 * muscle
    some = (slice(None, None, 4),) * 2  # pixels enough for a quantile
    inside = field[some][(skin[some] > 0) & (muscle[some] < 0.5)]
    threshold = np.quantile(inside, 1 - habitus.glandular_fraction)
    return _sigmoid((field - np.float32(threshold)) / np.float32(0.21))


def _strands(borders: Outline, grain: np.ndarray) -> np.ndarray:
    """Ducts and ligaments: thin bright lines that run towards the nipple, float32 [H, W] in [0, 1]."""
    height, width = grain.shape
    dx = np.arange(width, dtype=np.float32) - borders.nipple[0] - 0.05 * height
    dy = np.arange(height, dtype=np.float32) - borders.nipple[1]
    radius, angle = cv2.cartToPolar(*np.meshgrid(dx, dy))  # the jump from 2 pi to 0 lies in front of the nipple
    along = radius * 0.45 + 0.1 * height
    across = angle * (0.16 * height)
    stretched = cv2.remap(grain, across, along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    radial, any_way = np.exp(-((stretched / 0.22) ** 2)), np.exp(-((grain / 0.16) ** 2))
    return 0.6 * radial + 0.42 * any_way


def _vessels(borders: Outline, rng: np.random.Generator) -> np.ndarray:
    """A few faint curved vessels, float32 [H, W]."""
    height, width = borders.height, borders.width
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(1, 5))):
        steps = np.linspace(0, 1, 24)
        start, end = rng.uniform(0.1, 0.9, 2)
        bend = rng.normal(0, 0.03, 3) @ np.sin(np.outer([2.0, 4.0, 7.0], steps))
        x = steps * rng.uniform(0.5, 0.9) * borders.depth
        y = (start + (end - start) * 0.4 * steps + bend) * height
        points = np.stack([x, y], 1)[None] * 16
        thickness = max(1, round(height * rng.uniform(0.002, 0.0045)))
        cv2.polylines(canvas, points.astype(np.int32), False, int(rng.integers(90, 200)), thickness, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), 0.0016 * height + 0.4).astype(np.float32) * np.float32(0.11 / 255)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)
