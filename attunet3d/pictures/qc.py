"""A picture to judge a mask by: three planes through it, with its outline."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attunet3d.io.printable import printable, shortened
from attunet3d.pictures.planes import PREDICTION, Outline, draw_plane, fullest_slices, ras_spacing, three_planes, to_ras

MOST_CHARACTERS = 120  # of the title, which is as wide as the picture


def qc_picture(path: Path | BinaryIO, ct: np.ndarray, mask: np.ndarray, affine: np.ndarray, title: str) -> None:
    """Write a PNG: axial, coronal and sagittal planes through the mask's middle, its outline drawn over the CT.

    Planes run along the CT's own axes and are turned as radiologists look at them: the patient's right, or front, is
    on the left. An empty mask shows the middle of the CT.

    Args:
        path: the PNG to write, or a file that is open for it.
        ct: int16 HU (X, Y, Z).
        mask: uint8 (X, Y, Z), not 0 inside.
        affine: voxel -> RAS+ mm.
        title: line above the pictures; what cannot be shown of it is not, and a long one loses its middle.
    """
    # The figure is drawn without pyplot: no display, no global state.
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
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of another script than the font's: boxes are drawn
        figure.savefig(path, format="png", dpi=110, facecolor="black")
