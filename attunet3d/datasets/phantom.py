"""Synthetic abdominal CTs with exact pancreas masks, for tests, benchmarks and first steps.

A patient is a list of organs made of ellipsoids and tubes in a body frame (mm; x to the patient's right, y anterior, z superior;
origin in front of the spine near L1). Any grid can sample the same patient: voxel centres go through the affine to world (RAS+ mm),
then to the body frame, and the mask is the analytic inside-test there. The anatomy is schematic and its variation invented: a
network that works on phantoms has shown nothing about patients, and no claim about patients rests on them.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from attunet3d.errors import ConfigError

ORIENTATIONS = ("RAS", "LAS", "LPS", "oblique")
SPACING_RANGE_MM = (0.3, 20.0)
SHAPE_RANGE = (8, 2048)
SLAB_VOXELS = 2**19  # working memory is about 60 bytes per slab voxel, whatever the size of the volume
WARP_MM = ((2.0, 110.0), (0.8, 38.0))  # (amplitude, wavelength) of the waves that make organ surfaces irregular
FAR = 1.0e3  # mm: outside everything

Level = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # body mm -> about the signed distance in mm, < 0 inside


@dataclass(frozen=True)
class Phantom:
    """One synthetic CT.

    image: int16 HU (X, Y, Z); mask: uint8 (X, Y, Z), 1 = pancreas; affine: float64 (4, 4), voxel index to RAS+ mm;
    record: what was drawn (seed, spacing in mm, orientation, noise in HU, pancreas volume in mL, ...), JSON-serialisable.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """A convex piece of an organ: its bounding box (2, 3) in body mm and its level function."""

    box: np.ndarray
    level: Level


@dataclass(frozen=True)
class _Organ:
    """The union of its parts, painted in layers of (inset in mm, HU, clip): gas inside fluid inside a wall, say."""

    parts: list[_Part]
    layers: list[tuple[float, float, Level | None]]


@dataclass(frozen=True)
class _Patient:
    body_to_world: np.ndarray  # (4, 4): scale, small rotation, shift
    fov_mm: np.ndarray  # (3,) field of view centred on the world's origin
    waves: list[tuple[int, float, np.ndarray, float]]  # axis, amplitude, wave vector (3,), phase
    organs: list[_Organ]  # in the order of painting; the last one is the pancreas
    record: dict[str, Any]


def _ellipsoid(center: Any, radii: Any, tilt_deg: float = 0.0) -> _Part:
    """Ellipsoid turned by `tilt_deg` about y; a radius far larger than the body makes a column."""
    (cx, cy, cz), (rx, ry, rz) = np.asarray(center, float).tolist(), np.asarray(radii, float).tolist()
    cos, sin = float(np.cos(np.deg2rad(tilt_deg))), float(np.sin(np.deg2rad(tilt_deg)))

    def level(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, z = x - cx, z - cz
        u, v, w = (cos * x + sin * z) / rx, (y - cy) / ry, (cos * z - sin * x) / rz
        k0 = np.sqrt(u * u + v * v + w * w)
        u, v, w = u / rx, v / ry, w / rz
        return k0 * (k0 - 1.0) / (np.sqrt(u * u + v * v + w * w) + 1e-6)  # first-order distance to the surface

    half = np.array([np.hypot(cos * rx, sin * rz), ry, np.hypot(sin * rx, cos * rz)])
    return _Part(np.stack([center - half, center + half]), level)


def _tube(control: Any, samples: int = 4) -> list[_Part]:
    """Cones with round ends along the Catmull-Rom curve through `control`, rows of (x, y, z, radius) in mm."""
    c = np.asarray(control, float)
    c = np.concatenate([2 * c[:1] - c[1:2], c, 2 * c[-1:] - c[-2:-1]])
    t = (np.arange(samples) / samples)[:, None]
    p0, p1, p2, p3 = (c[k : len(c) - 3 + k, None] for k in range(4))
    spans = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    points = np.concatenate([spans.reshape(-1, 4), c[-2:-1]])
    points[:, 3] = np.maximum(points[:, 3], 0.5)
    return [_cone(a, b) for a, b in zip(points[:-1], points[1:], strict=True)]


def _cone(a: np.ndarray, b: np.ndarray) -> _Part:
    ax, ay, az, ar = a.tolist()
    dx, dy, dz, dr = (b - a).tolist()
    length2 = dx * dx + dy * dy + dz * dz

    def level(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = x - ax, y - ay, z - az
        t = np.clip((x * dx + y * dy + z * dz) / length2, 0.0, 1.0)
        x, y, z = x - t * dx, y - t * dy, z - t * dz
        return np.sqrt(x * x + y * y + z * z) - (ar + t * dr)

    ends = np.stack([a, b])
    return _Part(np.stack([(ends[:, :3] - ends[:, 3:]).min(0), (ends[:, :3] + ends[:, 3:]).max(0)]), level)


def _trunk(a: float, b: float, cy: float) -> _Part:
    """Column whose cross-section is an ellipse with fuller corners; the level is the distance along the radius."""

    def level(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        y = y - cy
        u, v = np.square(x / a), np.square(y / b)
        k0 = np.sqrt(u + v - 0.6 * u * v / (u + v + 1e-6)) + 1e-3
        return np.sqrt(x * x + y * y) * (1.0 - 1.0 / k0)

    return _Part(np.array([[-1.1 * a, cy - 1.1 * b, -FAR], [1.1 * a, cy + 1.1 * b, FAR]]), level)


def _patient(seed: np.random.SeedSequence) -> _Patient:
    """Draw one patient."""
    rng = np.random.default_rng(seed)

    def vary(value: float, by: float) -> float:
        return float(value * rng.uniform(1 - by, 1 + by))

    def near(points: Any, by_mm: float) -> np.ndarray:
        points = np.array(points, float)
        points[..., :3] += rng.uniform(-by_mm, by_mm, points[..., :3].shape)
        return points

    scale = rng.uniform(0.9, 1.1)
    means = {"muscle": 60, "fat": -100, "liver": 105, "spleen": 120, "kidney": 160, "pancreas": 95, "aorta": 150, "vein": 165}
    means |= {"shell": 600, "marrow": 200, "wall": 85, "fluid": 20, "lung": -850}
    hu = {name: vary(mean, 0.07) for name, mean in means.items()}
    gas = -900.0

    # Trunk: skin and fat, muscle wall, abdominal cavity filled with fat.
    fat_mm, wall_mm = rng.uniform(8, 24), rng.uniform(8, 12)
    a, b = vary(146, 0.04), vary(104, 0.04)
    skin = _trunk(a, b, 0)
    wall = _trunk(a - fat_mm, b - 0.7 * fat_mm, -0.2 * fat_mm)
    cavity = _trunk(a - fat_mm - wall_mm, b - 0.8 * fat_mm - wall_mm, 4 - 0.2 * fat_mm)

    def inside(margin: float) -> Level:
        return lambda x, y, z: cavity.level(x, y, z) + margin

    organs = [
        _Organ([skin], [(0, 40.0, None), (2.0, hu["fat"], None)]),
        _Organ([wall], [(0, hu["muscle"], None)]),
        _Organ([cavity], [(0, hu["fat"], None)]),
    ]

    def add(parts: list[_Part], value: float, margin: float | None = None) -> None:
        organs.append(_Organ(parts, [(0, value, None if margin is None else inside(margin))]))

    def add_hollow(parts: list[_Part], wall_mm: float, gas_from_y: float, content: float) -> None:
        """A gut segment: wall, content, and gas on top: the patient lies on the back, so above a plane of constant y."""
        layers: list[tuple[float, float, Level | None]] = [
            (0, vary(hu["wall"], 0.1), inside(2)),
            (wall_mm, content, inside(2 + wall_mm)),
            (wall_mm, gas, lambda x, y, z: np.maximum(gas_from_y - y, cavity.level(x, y, z) + 2 + wall_mm)),
        ]
        organs.append(_Organ(parts, layers))

    # Lungs above a dome, heart, mediastinal fat.
    top = rng.uniform(70, 84)

    def above_diaphragm(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        dome = top - 45 * ((x / (a - fat_mm)) ** 2 + (y / b) ** 2)
        return np.maximum(0.7 * (dome - z), cavity.level(x, y, z) + 2)

    organs.append(_Organ([_Part(cavity.box.clip([-FAR, -FAR, 10], FAR), above_diaphragm)], [(0, hu["lung"], None)]))
    add(_tube([(0, -28, 40, 26), (0, -28, 220, 26)]), hu["fat"])
    add([_ellipsoid(near((-20, 38, top + 42), 4), (56, 40, 44), 15)], hu["aorta"], 6)

    # Muscles of the back, spine.
    for side in (-1, 1):
        add([_ellipsoid((34 * side, -75, 0), (27, 17, FAR))], hu["muscle"], None)
        add([_ellipsoid((36 * side, -47, -75), (17, 17, 72), 8 * side)], hu["muscle"], None)
    period, phase = vary(36, 0.06), rng.uniform(0, 36)

    def vertebra(margin: float) -> Level:
        return lambda x, y, z: np.abs((z - phase) % period - period / 2) - (0.38 * period - margin)

    bone, marrow = hu["shell"], hu["marrow"]
    organs.append(_Organ([_ellipsoid((0, -84, 0), (4, 10, FAR))], [(0, bone, vertebra(2))]))
    organs.append(_Organ([_ellipsoid((0, -72, 0), (17, 13, FAR))], [(0, bone, vertebra(-1)), (3, marrow, vertebra(3))]))
    add([_ellipsoid((0, -72, 0), (10, 8, FAR))], 35.0)
    spine = _ellipsoid((0, -48, 0), (vary(21, 0.08), vary(16, 0.08), FAR))
    organs.append(_Organ([spine], [(0, 85.0, None), (0, bone, vertebra(0)), (2.5, marrow, vertebra(2.5))]))

    # Ribs, running down and forward inside the muscle wall.
    for side in (-1, 1):
        for k in range(7):
            angle = np.linspace(0.35, 1.4 if k < 2 else 2.3, 9)
            x = side * (a - fat_mm - wall_mm / 2) * np.sin(angle)
            y = 2 - 0.2 * fat_mm - (b - 0.75 * fat_mm - wall_mm / 2) * np.cos(angle)
            rib = np.stack([x, y, 26 + 25 * k - 32 * angle, np.full(9, 5.0)], 1)
            organs.append(_Organ(_tube(rib, 2), [(0, bone, None), (2.2, marrow, None)]))

    # The pancreas' curve comes first, because its neighbours are placed along it.
    rise, bow, thick = rng.uniform(-8, 14), rng.uniform(-5, 6), rng.uniform(1.0, 1.22)
    course = near(
        [
            (36, 2, -42, 11.5), (42, 6, -24, 14.0), (25, 17 + bow, -8, 10.0), (0, 23 + bow, 2, 8.6),
            (-28, 14 + bow, 8 + 0.4 * rise, 8.8), (-54, 0, 15 + 0.8 * rise, 8.4), (-76, -11, 20 + rise, 6.6),
        ],
        4.0,
    )  # fmt: skip
    course[:, 3] *= thick * rng.uniform(0.94, 1.06, 7)

    # Solid organs.
    for side, z in ((1, -36), (-1, -18)):
        c = near((60 * side, -42, z), 5)
        kidney = [_ellipsoid(c, (vary(28, 0.1), vary(25, 0.1), vary(52, 0.1)), 10 * side)]
        organs.append(_Organ(kidney, [(0, hu["kidney"], inside(3)), (9, 0.85 * hu["kidney"], inside(9))]))
        add([_ellipsoid(c - (13 * side, -4, 0), (11, 9, 24), 10 * side)], hu["fat"])
    add([_ellipsoid(near((-93, -24, 36), 5), (vary(28, 0.12), vary(46, 0.1), vary(44, 0.12)), -15)], hu["spleen"], 2)
    liver = [_ellipsoid(near((82, 6, 16), 4), (vary(60, 0.06), vary(76, 0.06), vary(66, 0.06)), -18)]
    liver.append(_ellipsoid(near((8, 52, 38), 6), (vary(62, 0.1), vary(32, 0.1), vary(30, 0.1)), 12))
    add(liver, hu["liver"], 2)
    for end in near([(100, -25, 45), (95, 25, 40), (45, 50, 45)], 8):
        add(_tube([(26, -8, 62, 5.5), (*(0.5 * (end + (26, -8, 62)) + (0, 0, 4)), 4.5), (*end, 2.0)]), hu["vein"])
    add([_ellipsoid(near((64, 44, -28), 4), (14, 17, vary(26, 0.2)))], 12.0, 3)

    # Stomach, small bowel, colon.
    stomach = near([(-58, 2, 56, 33), (-66, 34, 32, 30), (-46, 58, 2, 24), (-8, 64, -16, 18), (30, 46, -14, 12)], 4)
    stomach[:, 3] *= rng.uniform(0.75, 1.1)
    add_hollow(_tube(stomach), 4.0, rng.uniform(45, 70), hu["fluid"])
    for center in ((-66, 26, -30), (-40, 40, -48), (-62, 14, -70), (-20, 36, -85), (24, 44, -72), (52, 24, -92), (0, 14, -112)):
        loop = near([(*center, 11)] * 5, 26) + np.linspace(-1, 1, 5)[:, None] * (22 * rng.choice((-1, 1)), 0, 0, 0)
        add_hollow(_tube(loop * (1, 1, 0.8, vary(1, 0.2)) + (0, 0, 0.2 * center[2], 0)), 2.5, center[1] + rng.uniform(2, 40), 30.0)
    colon = [(96, 0, -150, 20), (92, 8, -90, 21), (88, 30, -52, 19), (48, 66, -46, 18), (0, 74, -54, 17), (-50, 68, -34, 17)]
    colon += [(-92, 22, 2, 16), (-98, -12, -40, 14), (-96, -10, -90, 14), (-94, 0, -150, 14)]
    add_hollow(_tube(near(colon, 5)), 2.5, rng.uniform(15, 70), 35.0)

    # A fat plane of varying width round the pancreas, then the structures that may touch it.
    envelope = course + (0, 0, 0, rng.uniform(1.0, 5.0))
    add(_tube(envelope), hu["fat"])
    add(_tube(near([(-4, -18, -170, 9), (-6, -18, -70, 9.5), (-5, -18, 0, 10), (-2, -22, 170, 11)], 2)), hu["aorta"])
    add(_tube(near([(20, -17, -170, 11), (20, -17, -40, 11), (22, -14, 20, 12), (26, -6, 70, 12), (22, 8, 130, 12)], 2)), hu["vein"] * 0.85)
    for side, z in ((1, -36), (-1, -18)):
        add(_tube([(8 + 10 * side, -20, z + 6, 4), (28 * side + 8, -28, z + 4, 4), (50 * side, -40, z, 4)]), hu["vein"])
    behind = course - course[:, 3:] * (0, 0.95, 0, 0) - (0, 3, 0, 0)
    confluence = behind[2, :3] + (-8, -1, 2)
    splenic_vein = np.concatenate([behind[:2:-1, :3], [confluence]])
    add(_tube(np.column_stack([splenic_vein, np.linspace(3.2, 4.5, 5)])), hu["vein"])
    add(_tube([(*confluence, 6.5), (*(confluence + (16, 2, 20)), 6.5), (56, 8, 34, 6), (84, 10, 38, 4)]), hu["vein"])
    add(_tube([(*confluence, 6), (*(confluence + (-4, 0, -22)), 5.5), (6, 14, -70, 5), (10, 26, -120, 4)]), hu["vein"])
    add(_tube([(-5, -14, -2, 4), (-7, -3, -10, 4), (-8, 3, -40, 3.6), (-8, 14, -80, 3), (-4, 24, -120, 2.5)]), hu["aorta"])
    r = vary(11.5, 0.12)
    lateral = course[:2, :3] + (course[:2, 3:] + r - 1) * (0.9, -0.35, -0.1)
    duodenum = [(*stomach[-1, :3], r), (*(course[1, :3] + (18, 18, 18)), r), (*lateral[1], r), (*(lateral[0] - (0, 0, 8)), r)]
    duodenum += [(*(course[0, :3] + (-4, -4, -27)), r), (-8, 3, -68, 0.8 * r), (-34, 12, -52, r)]
    add_hollow(_tube(duodenum), 3.0, rng.uniform(5, 60), 30.0)
    add(_tube(course, 6), hu["pancreas"])

    waves = []
    for amplitude, length in WARP_MM:
        for axis in range(3):
            vector = rng.normal(size=3)
            vector *= 2 * np.pi / (vary(length, 0.2) * np.linalg.norm(vector))
            waves.append((axis, amplitude, vector, rng.uniform(0, 2 * np.pi)))
    pose = np.eye(4)
    pose[:3, :3] = scale * _rotation(rng.uniform((-3, -3, -6), (3, 3, 6)))
    pose[:3, 3] = rng.uniform(-6, 6, 3)
    fov = np.array([1, 1, 0]) * (2 * a * scale + rng.uniform(24, 44)) + (0, 0, rng.uniform(185, 235))
    return _Patient(pose, fov, waves, organs, {"scale": float(scale), "hu": hu, "fat_mm": float(fat_mm)})


def _rotation(degrees: Any) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _voxel_boxes(organ: _Organ, voxel_from_body: np.ndarray, shape: tuple[int, ...], pad_mm: float) -> np.ndarray:
    """Index ranges (parts, 2, 3) of voxels that can lie within `pad_mm` of each part."""
    boxes = np.stack([part.box for part in organ.parts]) + np.array([[-pad_mm], [pad_mm]])
    center, half = boxes.mean(1), (boxes[:, 1] - boxes[:, 0]) / 2
    center = center @ voxel_from_body[:3, :3].T + voxel_from_body[:3, 3]
    half = half @ np.abs(voxel_from_body[:3, :3]).T
    return np.stack([np.ceil(center - half), np.floor(center + half) + 1], 1).clip(0, shape).astype(int)


def _render(patient: _Patient, affine: np.ndarray, shape: tuple[int, ...], noise_hu: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample the patient on a grid, slab by slab along the last axis: image int16 HU and mask uint8, both (X, Y, Z)."""
    image, mask = np.empty(shape, np.int16, order="F"), np.zeros(shape, np.uint8, order="F")
    body_from_voxel = np.linalg.inv(patient.body_to_world) @ affine
    voxel_mm = np.linalg.norm(body_from_voxel[:3, :3], axis=0)
    edge_mm = float(voxel_mm.mean()) + 0.4  # organ surfaces are ramps this wide: partial volume and the scanner's blur
    pad = edge_mm + sum(amplitude for amplitude, _ in WARP_MM) * 1.8
    boxes = [_voxel_boxes(organ, np.linalg.inv(body_from_voxel), shape, pad) for organ in patient.organs]
    i, j = np.arange(shape[0])[:, None, None], np.arange(shape[1])[:, None]
    depth = max(1, SLAB_VOXELS // (shape[0] * shape[1]))
    previous = rng.standard_normal((*shape[:2], 1), np.float32)
    for start in range(0, shape[2], depth):
        k = np.arange(start, min(start + depth, shape[2]))
        straight = [(m[0] * i + m[1] * j + (m[2] * k + m[3])).astype(np.float32) for m in body_from_voxel[:3]]
        xyz, texture = [c.copy() for c in straight], np.float32(0)
        for axis, amplitude, (wx, wy, wz), phase in patient.waves:
            phases = (wx * body_from_voxel[0] + wy * body_from_voxel[1] + wz * body_from_voxel[2])
            wave = np.sin((phases[0] * i + phases[1] * j + (phases[2] * k + phases[3] + phase)).astype(np.float32))
            xyz[axis] += np.float32(amplitude) * wave
            texture = texture + wave
        hu = np.full(xyz[0].shape, -1000, np.float32)
        inner = np.zeros(0)
        for organ, box in zip(patient.organs, boxes, strict=True):
            box = box.clip([0, 0, start], [*shape[:2], start + len(k)]) - [0, 0, start]
            hit = np.flatnonzero((box[:, 1] > box[:, 0]).all(1))
            if not len(hit):
                continue
            low, high = box[hit, 0].min(0), box[hit, 1].max(0)
            level = np.full(high - low, FAR, np.float32)
            for p in hit:
                here = tuple(map(slice, box[p, 0], box[p, 1]))
                view = level[tuple(map(slice, box[p, 0] - low, box[p, 1] - low))]
                np.minimum(view, organ.parts[p].level(*(c[here] for c in xyz)), out=view)
            here = tuple(map(slice, low, high))
            for inset, value, clip in organ.layers:
                inner = level + inset if clip is None else np.maximum(level + inset, clip(*(c[here] for c in xyz)))
                hu[here] += np.clip(0.5 - inner / edge_mm, 0, 1) * (value - hu[here])
            if organ is patient.organs[-1]:
                mask[..., start : start + len(k)][here] = inner < 0
        noise = np.concatenate([previous, rng.standard_normal(hu.shape, np.float32)], axis=2)
        previous = noise[..., -1:].copy()
        hu += 1.5 * texture + noise_hu * _correlate(noise)
        image[..., start : start + len(k)] = np.rint(hu).clip(-1024, 3071)
    return image, mask


def _correlate(white: np.ndarray) -> np.ndarray:
    """White noise (X, Y, Z + 1) to noise (X, Y, Z) of the same variance, correlated between neighbours."""
    noise = white[..., 1:] + 0.4 * white[..., :-1]
    for axis in (0, 1):
        noise = 2 * noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise / np.float32(6 * np.sqrt(1.16))
