"""Draw planes of a CT in radiological convention, with outlines of masks."""

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
# Distinguishable with any colour vision; line styles distinguish them in greyscale prints.
PREDICTION, REFERENCE = "#ffb000", "#3fc8ff"
HEAT_COLOURS, _HEAT_OPACITY = "magma", 0.5  # perceptually uniform: equal steps of a map look equal

Index = tuple[int, int, int]


class View(NamedTuple):
    """An orientation of planes: name, RAS axis of the normal, patient's sides on the left and right of a picture."""

    name: str
    axis: int
    left: str
    right: str


_VIEWS = (View("axial", 2, "R", "L"), View("coronal", 1, "R", "L"), View("sagittal", 0, "A", "P"))


class Outline(NamedTuple):
    """The outline of a mask: its plane (rows, columns), not 0 inside; colour, and line style of matplotlib."""

    plane: np.ndarray
    colour: str
    style: str = "solid"


@dataclass(frozen=True)
class Plane:
    """A plane through volumes with RAS axes.

    Attributes:
        view: orientation of the plane.
        index, count: number of the slice, from 0, and number of slices.
        rows, columns: voxels shown along the two other axes; rows run upwards.
        spacing: mm between rows and between columns.
    """

    view: View
    index: int
    count: int
    rows: slice
    columns: slice
    spacing: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width in mm."""
        rows, columns = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return rows * self.spacing[0], columns * self.spacing[1]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Copy this plane (rows, columns) out of a volume (R, A, S), which then need not stay in memory."""
        return np.take(volume, self.index, axis=self.view.axis).T[self.rows, self.columns].copy()


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Permute and flip the axes of a volume to the closest RAS orientation; returns a view."""
    return apply_orientation(volume, io_orientation(affine))


def ras_spacing(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the spacing in mm along the axes of ``to_ras``."""
    return nib.affines.voxel_sizes(affine @ inv_ornt_aff(io_orientation(affine), shape))


def three_planes(box: Sequence[slice], shape: Sequence[int], spacing: np.ndarray, middle: Index) -> list[Plane]:
    """Return the axial, coronal and sagittal plane through a voxel, cropped to a box."""
    planes = []
    for view in _VIEWS:
        across, up = (a for a in range(3) if a != view.axis)
        mm = (float(spacing[up]), float(spacing[across]))
        planes.append(Plane(view, middle[view.axis], shape[view.axis], box[up], box[across], mm))
    return planes


def fullest_slices(mask: np.ndarray) -> Index:
    """Return, per axis, the slice with the largest area of the mask; the middle of the volume if the mask is empty."""
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
    """Draw a plane of a CT with the right, or front, of the patient on the left, and letters for the sides.

    Args:
        axes: matplotlib axes to draw on.
        plane: the plane that ``hu`` was cut along.
        hu: HU (rows, columns).
        outlines: outlines of masks, drawn over the CT.
        heat: values in [0, 1] (rows, columns), drawn as a half-transparent overlay.
        scale: size of lines and letters.
    """
    low, high = WINDOW_HU
    aspect = plane.spacing[0] / plane.spacing[1]
    axes.imshow(hu, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="bilinear")
    if heat is not None:
        look = {"cmap": HEAT_COLOURS, "vmin": 0, "vmax": 1, "alpha": _HEAT_OPACITY, "interpolation": "bilinear"}
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
    """Write white letters with a dark rim, legible on any tissue; x and y are fractions of the picture's size."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2 * scale, foreground="black")]
    axes.text(x, y, text, color="white", fontsize=10 * scale, path_effects=rim, transform=axes.transAxes, **layout)
