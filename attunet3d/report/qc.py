"""A picture to judge a mask by: three planes through it, with its outline."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

WINDOW_HU = (-160.0, 240.0)
OUTLINE = "#ffb000"


def qc_picture(path: Path, ct: np.ndarray, mask: np.ndarray, affine: np.ndarray, title: str) -> None:
    """Write a PNG: axial, coronal and sagittal planes through the mask's middle, its outline drawn over the CT.

    Planes run along the CT's own axes and are turned as radiologists look at them: the patient's right, or front, is
    on the left. An empty mask shows the middle of the CT.

    Args:
        path: the PNG to write.
        ct: int16 HU (X, Y, Z).
        mask: uint8 (X, Y, Z), not 0 inside.
        affine: voxel -> RAS+ mm.
        title: line above the pictures.
    """
    # The figure is drawn without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    orientation = io_orientation(affine)
    spacing = nib.affines.voxel_sizes(affine @ inv_ornt_aff(orientation, ct.shape))
    ct, mask = apply_orientation(ct, orientation), apply_orientation(mask, orientation)  # axes R, A, S: views, no copy
    middle = _middle(mask)
    # Plane, the axis across it, and the patient's sides at the picture's left and right.
    planes = (("axial", 2, "R", "L"), ("coronal", 1, "R", "L"), ("sagittal", 0, "A", "P"))

    figure = Figure(figsize=(13.5, 5), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color="white", fontsize=11)
    extents = [n * s for n, s in zip(ct.shape, spacing, strict=True)]
    widths = [extents[0], extents[0], extents[1]]
    for axes, (name, axis, left, right) in zip(
        figure.subplots(1, 3, gridspec_kw={"width_ratios": widths}), planes, strict=True
    ):
        across, up = [a for a in range(3) if a != axis]
        plane = np.take(ct, middle[axis], axis=axis).T
        outline = (np.take(mask, middle[axis], axis=axis).T != 0).astype(np.float32)
        axes.imshow(
            plane,
            cmap="gray",
            vmin=WINDOW_HU[0],
            vmax=WINDOW_HU[1],
            origin="lower",
            aspect=spacing[up] / spacing[across],
        )
        if outline.any():
            # Padded, so that an outline closes where the mask touches the edge.
            n, m = outline.shape
            axes.contour(
                np.arange(-1, m + 1),
                np.arange(-1, n + 1),
                np.pad(outline, 1),
                levels=[0.5],
                colors=OUTLINE,
                linewidths=1.2,
            )
        axes.invert_xaxis()  # indices grow towards R and A
        for side, letter in ((0.02, left), (0.98, right)):
            axes.text(
                side,
                0.5,
                letter,
                color="white",
                transform=axes.transAxes,
                ha="left" if side < 0.5 else "right",
                va="center",
            )
        axes.set_title(f"{name}, slice {middle[axis] + 1} of {ct.shape[axis]}", color="white", fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=110, facecolor="black")


def _middle(mask: np.ndarray) -> tuple[int, int, int]:
    """Per axis the plane that holds the most of the mask; the middle of the CT if the mask is empty."""
    if not mask.any():
        return mask.shape[0] // 2, mask.shape[1] // 2, mask.shape[2] // 2
    best = []
    for axis in range(3):
        area = np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis))
        best.append(int(area.argmax()))
    return best[0], best[1], best[2]
