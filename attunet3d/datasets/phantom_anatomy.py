"""Draw the anatomy of a phantom: organs made of ellipsoids and tubes in a body frame, varied for each patient.

Body frame: mm; x to the patient's right, y anterior, z superior; origin in front of the spine near L1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

WAVES_MM = ((2.0, 110.0), (0.8, 38.0))  # (amplitude, wavelength) of the waves that make organ surfaces irregular
FAR = 1.0e3  # mm: outside everything
_GAS_HU = -900.0
# Portal-venous phase; each patient varies by a few percent.
_MEAN_HU = {"muscle": 60, "fat": -100, "liver": 105, "spleen": 120, "kidney": 160, "pancreas": 95, "gut wall": 85}
_MEAN_HU |= {"aorta": 150, "vein": 165, "cava": 140, "bone": 600, "marrow": 200, "lung": -850}

# Label values of organs: the numbers of TotalSegmentator's "total" task, version 2.
NUMBERS = {"spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "liver": 5, "stomach": 6, "pancreas": 7}
NUMBERS |= {"small bowel": 18, "duodenum": 19, "colon": 20, "vertebra": 31, "heart": 51, "aorta": 52, "cava": 63}
NUMBERS |= {"portal vein": 64, "spinal canal": 79}

# Maps body coordinates in mm to the approximate signed distance in mm, negative inside.
Level = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Part:
    """A convex part of an organ: its bounding box (2, 3) in body mm and its level function."""

    box: np.ndarray
    level: Level


@dataclass(frozen=True)
class Organ:
    """The union of its parts, painted in layers, such as a wall, then fluid in it, then gas.

    Attributes:
        parts: convex parts.
        layers: (inset in mm, HU, clip) of each layer.
        number: label value, that of TotalSegmentator's classes; 0 for none.
    """

    parts: list[Part]
    layers: list[tuple[float, float, Level | None]]
    number: int = 0


@dataclass(frozen=True)
class Patient:
    """A patient: organs in the body frame, and their pose in the world, RAS+ mm."""

    body_to_world: np.ndarray  # (4, 4): scale, small rotation, shift
    fov_mm: np.ndarray  # (3,) field of view centred on the world's origin
    waves: list[tuple[int, float, np.ndarray]]  # axis, amplitude, (3 wave numbers, phase)
    organs: list[Organ]  # in the order of painting; the last one is the pancreas
    record: dict[str, Any]


def _ellipsoid(center: Any, radii: Any, tilt_deg: float = 0.0) -> Part:
    """Return an ellipsoid rotated by ``tilt_deg`` about y; a radius far larger than the body makes it a column."""
    (cx, cy, cz), (rx, ry, rz) = np.asarray(center, float).tolist(), np.asarray(radii, float).tolist()
    cos, sin = float(np.cos(np.deg2rad(tilt_deg))), float(np.sin(np.deg2rad(tilt_deg)))

    def level(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, z = x - cx, z - cz
        u, v, w = (cos * x + sin * z) / rx, (y - cy) / ry, (cos * z - sin * x) / rz
        k0 = np.sqrt(u * u + v * v + w * w)
        u, v, w = u / rx, v / ry, w / rz
        return k0 * (k0 - 1) / (np.sqrt(u * u + v * v + w * w) + 1e-6)  # first-order distance to the surface

    half = np.array([np.hypot(cos * rx, sin * rz), ry, np.hypot(sin * rx, cos * rz)])
    return Part(np.stack([center - half, center + half]), level)


def _cone(a: np.ndarray, b: np.ndarray) -> Part:
    """Return a cone with round ends between two rows of (x, y, z, radius) in mm."""
    ax, ay, az, ar = a.tolist()
    dx, dy, dz, dr = (b - a).tolist()
    length2 = dx * dx + dy * dy + dz * dz

    def level(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = x - ax, y - ay, z - az
        t = np.clip((x * dx + y * dy + z * dz) / length2, 0.0, 1.0)
        x, y, z = x - t * dx, y - t * dy, z - t * dz
        return np.sqrt(x * x + y * y + z * z) - (ar + t * dr)

    return Part(np.stack([np.minimum(a[:3] - ar, b[:3] - b[3]), np.maximum(a[:3] + ar, b[:3] + b[3])]), level)


def _tube(control: Any, samples: int = 4) -> list[Part]:
    """Return cones along the Catmull-Rom curve through ``control``, rows of (x, y, z, radius) in mm."""
    c = np.asarray(control, float)
    c = np.concatenate([2 * c[:1] - c[1:2], c, 2 * c[-1:] - c[-2:-1]])
    t = (np.arange(samples) / samples)[:, None]
    p0, p1, p2, p3 = (c[k : len(c) - 3 + k, None] for k in range(4))
    spans = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    points = np.concatenate([spans.reshape(-1, 4), c[-2:-1]])
    return [_cone(a, b) for a, b in pairwise(points)]


def _trunk(a: float, b: float, cy: float) -> Part:
    """Return a column with an ellipse with fuller corners as cross-section; the level is the radial distance."""

    def level(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        y = y - cy
        u, v = np.square(x / a), np.square(y / b)
        k0 = np.sqrt(u + v - 0.6 * u * v / (u + v + 1e-6)) + 1e-3
        return np.sqrt(x * x + y * y) * (1 - 1 / k0)

    return Part(np.array([[-1.1 * a, cy - 1.1 * b, -FAR], [1.1 * a, cy + 1.1 * b, FAR]]), level)


def rotation(degrees: Any) -> np.ndarray:
    """Return the rotation matrix (3, 3) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


class _Drawing:
    """A patient while it is drawn: its random numbers, HU, size, and organs so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.organs: list[Organ] = []
        self.hu = {name: self.vary(mean, 0.07) for name, mean in _MEAN_HU.items()}
        self.scale, self.fat_mm, self.wall_mm = rng.uniform(0.9, 1.1), rng.uniform(8, 24), rng.uniform(8, 12)
        self.a, self.b = self.vary(146, 0.04), self.vary(104, 0.04)  # half axes of the trunk, mm
        a, b = self.a - self.fat_mm - self.wall_mm, self.b - 0.8 * self.fat_mm - self.wall_mm
        self.cavity = _trunk(a, b, 4 - 0.2 * self.fat_mm)

    def vary(self, value: float, by: float) -> float:
        """Vary a value by up to the fraction ``by``."""
        return float(value * self.rng.uniform(1 - by, 1 + by))

    def near(self, points: Any, by_mm: float) -> np.ndarray:
        """Move points (..., 3 or more) by up to ``by_mm`` along x, y and z."""
        points = np.array(points, float)
        points[..., :3] += self.rng.uniform(-by_mm, by_mm, points[..., :3].shape)
        return points

    def inside(self, margin: float) -> Level:
        """Return the level of the cavity, shrunk by a margin in mm."""
        return lambda x, y, z: self.cavity.level(x, y, z) + margin

    def add(self, parts: list[Part], *layers: tuple[float, float, Level | None], name: str = "") -> None:
        """Add an organ."""
        self.organs.append(Organ(parts, list(layers), NUMBERS.get(name, 0)))

    def fill(self, parts: list[Part], value: float, margin: float | None = None, name: str = "") -> None:
        """Add an organ of a single HU value, within the cavity if a margin is given."""
        self.add(parts, (0, value, None if margin is None else self.inside(margin)), name=name)

    def add_gut(self, parts: list[Part], wall: float, gas_from_y: float, content: float, name: str) -> None:
        """Add wall, content, and gas above a plane of constant y, since the patient is supine."""

        def gas(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
            return np.maximum(gas_from_y - y, self.cavity.level(x, y, z) + 2 + wall)

        self.add(
            parts,
            (0, self.vary(self.hu["gut wall"], 0.1), self.inside(2)),
            (wall, content, self.inside(2 + wall)),
            (wall, _GAS_HU, gas),
            name=name,
        )


def draw_patient(seed: np.random.SeedSequence) -> Patient:
    """Draw one patient. Later organs are painted over earlier ones."""
    rng = np.random.default_rng(seed)
    d = _Drawing(rng)
    _draw_trunk(d)
    _draw_skeleton(d)
    course = _draw_course(d)
    _draw_solid_organs(d, course)
    stomach = _draw_gut(d)
    _draw_vessels(d, course)
    _draw_duodenum(d, course, stomach)
    _draw_pancreas(d, course)
    waves = _draw_waves(d)
    pose = np.eye(4)
    pose[:3, :3] = d.scale * rotation(rng.uniform((-3, -3, -6), (3, 3, 6)))
    pose[:3, 3] = rng.uniform(-6, 6, 3)
    across = 2 * d.a * d.scale + rng.uniform(24, 44)
    record = {"scale": float(d.scale), "fat_mm": float(d.fat_mm), "hu": d.hu}
    return Patient(pose, np.array([across, across, rng.uniform(185, 235)]), waves, d.organs, record)


def _draw_trunk(d: _Drawing) -> None:
    """Draw skin and fat, the muscle wall, a cavity filled with fat; lungs above a dome, mediastinum and heart."""
    d.add([_trunk(d.a, d.b, 0)], (0, 40.0, None), (2, d.hu["fat"], None))
    d.fill([_trunk(d.a - d.fat_mm, d.b - 0.7 * d.fat_mm, -0.2 * d.fat_mm)], d.hu["muscle"])
    d.fill([d.cavity], d.hu["fat"])
    top = d.rng.uniform(70, 84)

    def lungs(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        dome = top - 45 * (np.square(x / (d.a - d.fat_mm)) + np.square(y / d.b))
        return np.maximum(0.7 * (dome - z), d.cavity.level(x, y, z) + 2)

    d.fill([Part(d.cavity.box.clip([-FAR, -FAR, 10], FAR), lungs)], d.hu["lung"])
    d.fill(_tube([(0, -28, 40, 26), (0, -28, 220, 26)]), d.hu["fat"])
    d.fill([_ellipsoid(d.near((-20, 38, top + 42), 4), (56, 40, 44), 15)], d.hu["aorta"], 6, "heart")


def _draw_skeleton(d: _Drawing) -> None:
    """Draw muscles of the back, the spine with discs and canal, and ribs inside the muscle wall."""
    for side in (-1, 1):
        d.fill([_ellipsoid((34 * side, -75, 0), (27, 17, FAR))], d.hu["muscle"])
        d.fill([_ellipsoid((36 * side, -47, -75), (17, 17, 72), 8 * side)], d.hu["muscle"])
    period, phase = d.vary(36, 0.06), d.rng.uniform(0, 36)

    def vertebra(margin: float) -> Level:
        return lambda x, y, z: np.abs((z - phase) % period - period / 2) - (0.38 * period - margin)

    bone, marrow = d.hu["bone"], d.hu["marrow"]
    d.add([_ellipsoid((0, -84, 0), (4, 10, FAR))], (0, bone, vertebra(2)), name="vertebra")
    d.add([_ellipsoid((0, -72, 0), (17, 13, FAR))], (0, bone, vertebra(-1)), (3, marrow, vertebra(3)), name="vertebra")
    d.fill([_ellipsoid((0, -72, 0), (10, 8, FAR))], 35.0, name="spinal canal")
    body = _ellipsoid((0, -48, 0), (d.vary(21, 0.08), d.vary(16, 0.08), FAR))
    d.add([body], (0, 85.0, None), (0, bone, vertebra(0)), (2.5, marrow, vertebra(2.5)), name="vertebra")
    for side in (-1, 1):
        for k in range(7):
            angle = np.linspace(0.35, 1.4 if k < 2 else 2.3, 9)
            x = side * (d.a - d.fat_mm - d.wall_mm / 2) * np.sin(angle)
            y = 2 - 0.2 * d.fat_mm - (d.b - 0.75 * d.fat_mm - d.wall_mm / 2) * np.cos(angle)
            rib = np.stack([x, y, 26 + 25 * k - 32 * angle, np.full(9, 5.0)], axis=1)
            d.add(_tube(rib, 2), (0, bone, None), (2.2, marrow, None))


def _draw_course(d: _Drawing) -> np.ndarray:
    """Draw the course of the pancreas, head to tail, which places its neighbours: rows of (x, y, z, radius) in mm."""
    rise, bow = d.rng.uniform(-8, 14), d.rng.uniform(-5, 6)
    course = d.near([
        (36, 2, -42, 11), (42, 6, -24, 14), (25, 17 + bow, -8, 10), (0, 23 + bow, 2, 8.6),
        (-28, 14 + bow, 8 + 0.4 * rise, 8.8), (-54, 0, 15 + 0.8 * rise, 8.4), (-73, -11, 20 + rise, 6.6),
    ], 4)  # fmt: skip
    course[:, 3] *= d.rng.uniform(1.06, 1.24) * d.rng.uniform(0.94, 1.06, 7)
    return course


def _draw_solid_organs(d: _Drawing, course: np.ndarray) -> None:
    """Draw kidneys, spleen, liver with its veins, gallbladder, and a fat plane of varying width round the pancreas."""
    for side, z in ((1, -36), (-1, -18)):
        c = d.near((60 * side, -42, z), 5)
        kidney = _ellipsoid(c, (d.vary(28, 0.1), d.vary(25, 0.1), d.vary(52, 0.1)), 10 * side)
        name = "right kidney" if side > 0 else "left kidney"
        d.add([kidney], (0, d.hu["kidney"], d.inside(3)), (9, 0.85 * d.hu["kidney"], d.inside(9)), name=name)
        d.fill([_ellipsoid(c - (13 * side, -4, 0), (11, 9, 24), 10 * side)], d.hu["fat"])
    d.fill(
        [_ellipsoid(d.near((-93, -24, 36), 5), (d.vary(28, 0.12), d.vary(46, 0.1), d.vary(44, 0.12)), -15)],
        d.hu["spleen"],
        2,
        "spleen",
    )
    right_lobe = _ellipsoid(d.near((90, 4, 20), 4), (d.vary(53, 0.06), d.vary(74, 0.06), d.vary(64, 0.06)), -20)
    left_lobe = _ellipsoid(d.near((12, 50, 42), 6), (d.vary(62, 0.1), d.vary(32, 0.1), d.vary(28, 0.1)), 12)
    d.fill([right_lobe, left_lobe], d.hu["liver"], 2, "liver")
    for x, y, z in d.near([(100, -25, 45), (95, 25, 40), (45, 45, 45)], 8):
        d.fill(
            _tube([(28, -8, 62, 5.5), (x / 2 + 14, y / 2 - 4, z / 2 + 35, 4.5), (x, y, z, 2)]),
            d.hu["vein"],
            name="liver",
        )
    d.fill([_ellipsoid(d.near((64, 44, -28), 4), (14, 17, d.vary(26, 0.2)))], 12.0, 3, "gallbladder")
    d.fill(_tube(course + np.array([0, 0, 0, d.rng.uniform(1.5, 6)])), d.hu["fat"])


def _draw_gut(d: _Drawing) -> np.ndarray:
    """Draw stomach, small bowel and colon, and return the course of the stomach.

    They may touch the pancreas, and collapsed loops have about its HU.
    """
    stomach = d.near([(-58, 2, 56, 33), (-66, 32, 34, 30), (-46, 54, 6, 24), (-8, 58, -12, 18), (28, 42, -12, 12)], 4)
    stomach[:, 3] *= d.rng.uniform(0.75, 1.1)
    d.add_gut(_tube(stomach), 4, d.rng.uniform(45, 70), d.vary(25, 0.5), "stomach")
    centers = "-66 22 -22  -36 34 -32  -62 14 -70  -20 36 -85  24 44 -72  52 24 -98  0 14 -122"
    for x, y, z in np.array(centers.split(), float).reshape(-1, 3):
        sweep = np.linspace(-22, 22, 5) * d.rng.choice((-1, 1))
        loop = d.near(np.stack([x + sweep, *np.full((3, 5), [[y], [z], [d.vary(10.5, 0.2)]])], axis=1), 20)
        d.add_gut(_tube(loop), 2.5, y + d.rng.uniform(2, 40), d.rng.uniform(20, 90), "small bowel")
    colon = d.near([
        (96, 0, -150, 20), (92, 8, -90, 21), (88, 30, -56, 19), (48, 66, -50, 18), (0, 74, -56, 17),
        (-50, 68, -38, 17), (-92, 22, 0, 16), (-98, -12, -40, 14), (-96, -10, -90, 14), (-94, 0, -150, 14),
    ], 5)  # fmt: skip
    d.add_gut(_tube(colon), 2.5, d.rng.uniform(15, 70), d.vary(40, 0.4), "colon")
    return stomach


def _draw_vessels(d: _Drawing, course: np.ndarray) -> None:
    """Draw aorta, inferior vena cava, renal, splenic, portal and superior mesenteric veins, and mesenteric artery."""
    neck = course[2, :3]
    d.fill(
        _tube(d.near([(-4, -18, -170, 9), (-6, -18, -70, 9.5), (-5, -18, 0, 10), (-2, -22, 170, 11)], 2)),
        d.hu["aorta"],
        name="aorta",
    )
    cava = d.near([(20, -17, -170, 11), (20, -17, -40, 11), (22, -14, 20, 12), (26, -6, 70, 12), (22, 8, 130, 12)], 2)
    d.fill(_tube(cava), d.hu["cava"], name="cava")
    for side, z in ((1, -36), (-1, -18)):
        renal = [(8 + 10 * side, -20, z + 6, 4), (28 * side + 8, -28, z + 4, 4), (50 * side, -40, z, 4)]
        d.fill(_tube(renal), d.hu["vein"])
    confluence = neck - (8, 0.95 * course[2, 3] + 4, -2)
    splenic = [(x, y - 0.95 * r - 3, z, 4) for x, y, z, r in course[3:]]
    d.fill(_tube([(*confluence, 5), *splenic]), d.hu["vein"], name="portal vein")
    hilum = (*(confluence + np.array([16, 2, 20])), 6.5)
    d.fill(_tube([(*confluence, 6.5), hilum, (56, 8, 34, 6), (84, 10, 38, 4)]), d.hu["vein"], name="portal vein")
    below = (*(confluence + np.array([-4, 0, -22])), 5.5)
    d.fill(_tube([(*confluence, 6), below, (6, 14, -70, 5), (10, 26, -120, 4)]), d.hu["vein"])
    mesenteric_artery = [(-5, -14, -2, 4), (-7, -3, -10, 4), (-8, 3, -40, 3.6), (-8, 14, -80, 3), (-4, 24, -120, 2.5)]
    d.fill(_tube(mesenteric_artery), d.hu["aorta"])


def _draw_duodenum(d: _Drawing, course: np.ndarray, stomach: np.ndarray) -> None:
    """Draw the duodenum, a C round the head of the pancreas."""
    head = course[1, :3]
    r = d.vary(11.5, 0.12)
    upper, lower = course[1::-1, :3] + (course[1::-1, 3:] + r - 1) * np.array([0.9, -0.35, -0.1])
    arc = [stomach[-1, :3], head - (-18, -18, -18), upper, lower - (0, 0, 8), course[0, :3] - (4, 4, 27)]
    duodenum = [*((*point, r) for point in arc), (-8, 3, -68, 0.8 * r), (-34, 12, -52, r)]
    d.add_gut(_tube(duodenum), 3, d.rng.uniform(5, 60), d.rng.uniform(20, 70), "duodenum")


def _draw_pancreas(d: _Drawing, course: np.ndarray) -> None:
    """Draw the pancreas over everything else, with lobules of lower HU."""
    px, py, pz = 2 * np.pi / d.rng.uniform(9, 14, 3)

    def lobules(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return 4 * (0.3 - np.sin(px * x) * np.sin(py * y) * np.sin(pz * z))

    fatty = d.hu["pancreas"] - d.rng.uniform(0, 25)
    d.add(_tube(course, 6), (0, d.hu["pancreas"], None), (0, fatty, lobules), name="pancreas")


def _draw_waves(d: _Drawing) -> list[tuple[int, float, np.ndarray]]:
    """Draw the waves that make organ surfaces irregular, see ``Patient``."""
    waves = []
    for amplitude, length in WAVES_MM:
        for axis in range(3):
            direction = d.rng.normal(size=3)
            numbers = direction * (2 * np.pi / d.vary(length, 0.2) / np.linalg.norm(direction))
            waves.append((axis, amplitude, np.append(numbers, d.rng.uniform(0, 2 * np.pi))))
    return waves
