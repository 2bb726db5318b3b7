"""Planes of a CT as radiologists look at them: which ones, cut from volumes, drawn with outlines of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW_HU = (-160.0, 240.0)
# Told apart by readers with any colour vision, and by their lines where a print has none.
PREDICTION, REFERENCE = "#ffb000", "#3fc8ff"
HEAT_COLOURS, HEAT_OPACITY = "magma", 0.5  # perceptually uniform: equal steps of a map look equal

Index = tuple[int, int, int]


class View(NamedTuple):
    """A kind of plane: its name, the RAS axis across it, the patient's sides at the picture's left and right."""

    name: str
    axis: int
    left: str
    right: str


VIEWS = (View("axial", 2, "R", "L"), View("coronal", 1, "R", "L"), View("sagittal", 0, "A", "P"))


class Outline(NamedTuple):
    """The edge of a mask: its plane (rows, columns), not 0 inside; the line's colour and matplotlib style."""

    plane: np.ndarray
    colour: str
    style: str = "solid"


@dataclass(frozen=True)
class Plane:
    """Where one picture lies in volumes with RAS axes.

    view: its kind; index, count: the slice and how many there are; rows, columns: the voxels shown of the two other
    axes (rows run upwards); spacing: mm between rows and between columns.
    """

    view: View
    index: int
    count: int
    rows: slice
    columns: slice
    spacing: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return rows * self.spacing[0], columns * self.spacing[1]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """These voxels of a volume (R, A, S) as a copy (rows, columns), which does not keep the volume in memory."""
        return np.take(volume, self.index, axis=self.view.axis).T[self.rows, self.columns].copy()


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume with its axes permuted and flipped to run towards R, A and S as nearly as they can: a view."""
    return apply_orientation(volume, io_orientation(affine))


def ras_spacing(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Spacing in mm along the axes of `to_ras`."""
    return nib.affines.voxel_sizes(affine @ inv_ornt_aff(io_orientation(affine), shape))


def three_planes(box: Sequence[slice], shape: Sequence[int], spacing: np.ndarray, middle: Index) -> list[Plane]:
    """The axial, coronal and sagittal plane through a voxel, as far as a box of voxels reaches."""
    planes = []
    for view in VIEWS:
        across, up = (a for a in range(3) if a != view.axis)
        mm = (float(spacing[up]), float(spacing[across]))
        planes.append(Plane(view, middle[view.axis], shape[view.axis], box[up], box[across], mm))
    return planes


def fullest_slices(mask: np.ndarray) -> Index:
    """Per axis the slice that holds the most of the mask; the middle of the volume if the mask is empty."""
    if not mask.any():
        return mask.shape[0] // 2, mask.shape[1] // 2, mask.shape[2] // 2
    area = [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return int(area[0].argmax()), int(area[1].argmax()), int(area[2].argmax())


def draw_plane(
    axes: Axes,
    plane: Plane,
    hu: np.ndarray,
    outlines: Sequence[Outline] = (),
    *,
    heat: np.ndarray | None = None,
    scale: float = 1,
) -> None:
    """Draw a CT's plane, the patient's right, or front, on the left, and the letters of the patient's sides.

    Args:
        axes: where.
        plane: what `hu` was cut with.
        hu: HU (rows, columns).
        outlines: drawn over it.
        heat: values in [0, 1] (rows, columns), drawn half transparent over the CT.
        scale: of the lines and letters.
    """
    low, high = WINDOW_HU
    aspect = plane.spacing[0] / plane.spacing[1]
    axes.imshow(hu, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="bilinear")
    if heat is not None:
        look = {"cmap": HEAT_COLOURS, "vmin": 0, "vmax": 1, "alpha": HEAT_OPACITY, "interpolation": "bilinear"}
        axes.imshow(heat, origin="lower", aspect=aspect, **look)
    for outline in outlines:
        inside = (outline.plane != 0).astype(np.float32)
        if inside.any():
            rows, columns = inside.shape
            axes.contour(
                np.arange(-1, columns + 1),
                np.arange(-1, rows + 1),
                np.pad(inside, 1),  # so that an outline closes where the mask touches the edge
                levels=[0.5],
                colors=outline.colour,
                linestyles=outline.style,
                linewidths=1.2 * scale,
            )
    rows, columns = hu.shape
    # Indices grow towards R and A.
    axes.set(xlim=(columns - 0.5, -0.5), ylim=(-0.5, rows - 0.5))
    write(axes, 0.02, 0.5, plane.view.left, scale, ha="left", va="center")
    write(axes, 0.98, 0.5, plane.view.right, scale, ha="right", va="center")
    axes.set_axis_off()


def write(axes: Axes, x: float, y: float, text: str, scale: float, **layout: Any) -> None:
    """White letters with a dark rim, to be read on any tissue, at a share of the picture's width and height."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2 * scale, foreground="black")]
    axes.text(x, y, text, color="white", fontsize=10 * scale, path_effects=rim, transform=axes.transAxes, **layout)
