"""Write pictures for quality control: three planes through a mask, with its outline."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attunet3d.io.printable import printable, shortened
from attunet3d.pictures.planes import PREDICTION, Outline, draw_plane, fullest_slices, ras_spacing, three_planes, to_ras

MOST_CHARACTERS = 120  # of the title, which is as wide as the picture


def qc_picture(path: Path | BinaryIO, ct: np.ndarray, mask: np.ndarray, affine: np.ndarray, title: str) -> None:
    """Write a PNG of the axial, coronal and sagittal slice with the largest area of a mask, outlined over the CT.

    Planes run along the axes of the CT, in radiological convention: the right, or front, of the patient is on the left.
    For an empty mask the planes are in the middle of the CT.

    Args:
        path: the PNG file to write, or an open binary file.
        ct: int16 HU (X, Y, Z).
        mask: uint8 (X, Y, Z), not 0 inside.
        affine: from voxel indices to RAS+ mm.
        title: line above the pictures; unprintable characters are escaped, and long titles shortened in the middle.
    """
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spacing = ras_spacing(ct.shape, affine)
    ct, mask = to_ras(ct, affine), to_ras(mask, affine)
    planes = three_planes([slice(0, n) for n in ct.shape], ct.shape, spacing, fullest_slices(mask))

    figure = Figure(figsize=(13.5, 5), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(shortened(printable(title), MOST_CHARACTERS), color="white", fontsize=11, parse_math=False)
    widths = [plane.size_mm[1] for plane in planes]
    for axes, plane in zip(figure.subplots(1, 3, gridspec_kw={"width_ratios": widths}), planes, strict=True):
        draw_plane(axes, plane, plane.cut(ct), [Outline(plane.cut(mask), PREDICTION)])
        axes.set_title(f"{plane.view.name}, slice {plane.index + 1} of {plane.count}", color="white", fontsize=9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # scripts that the font lacks are drawn as boxes
        figure.savefig(path, format="png", dpi=110, facecolor="black")
