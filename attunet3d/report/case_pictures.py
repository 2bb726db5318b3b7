"""Draw pictures of a case for the report: the CT with outlines of both masks, and with attention maps."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attunet3d.errors import GeometryError
from attunet3d.io import read_ct, read_label
from attunet3d.pictures.planes import (
    PREDICTION,
    REFERENCE,
    Index,
    Outline,
    Plane,
    draw_plane,
    fullest_slices,
    ras_spacing,
    three_planes,
    to_ras,
    write,
)
from attunet3d.report.figures import data_uri
from attunet3d.transforms.boxes import bounding_box
from attunet3d.transforms.placing import place_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AttentionMaps = Callable[[str], Mapping[str, np.ndarray]]

MARGIN_MM = 30.0  # tissue shown around the masks
SMALLEST_MM = 140.0  # so that a small pancreas is shown with its surroundings
LONGEST_PX = 640
DPI = 100
SCALE = 1.7  # of lines and letters: the pictures are shown at about half their size
WEBP_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """A picture of a slice: view ("axial"), slice ("slice 3 of 90"), data: URI of the image, and size in pixels."""

    view: str
    slice: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Row:
    """Axial, coronal and sagittal picture through a point of the CT, with a title that may be empty."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class CasePictures:
    """Pictures of a case: rows with outlines of both masks, and a row for each attention map."""

    outlines: list[Row]
    attention: list[Row]


def case_pictures(
    image: str, prediction: str, reference: str, pancreas_labels: Sequence[int], attention: AttentionMaps | None = None
) -> CasePictures:
    """Draw slices through the largest area of both masks of a case, or of each mask if they do not overlap.

    Args:
        image: path of the CT. The masks have its voxels, but may have another orientation.
        prediction: path of a mask, not 0 inside.
        reference: path of a label map.
        pancreas_labels: values of the reference that count as pancreas.
        attention: image -> {title: map (X, Y, Z) on the CT's grid}, floats in [0, 1] or uint8 with 255 for 1.

    Raises:
        GeometryError: masks or maps do not have the voxels of the CT. Others as ``read_ct`` and ``read_label``.
    """
    hu, affine = read_ct(image)
    shape, spacing = hu.shape, ras_spacing(hu.shape, affine)
    predicted = _read_on(prediction, image, shape, affine) != 0
    referenced = np.isin(_read_on(reference, image, shape, affine), pancreas_labels)
    hu, predicted, referenced = (to_ras(volume, affine) for volume in (hu, predicted, referenced))
    box = _surroundings(predicted | referenced, spacing)
    longest_mm = max((part.stop - part.start) * mm for part, mm in zip(box, spacing, strict=True))
    points = _points(predicted, referenced)

    def rows(title: str, heat: np.ndarray | None = None) -> list[Row]:
        made = []
        for place, point in points.items():
            pictures = []
            for plane in three_planes(box, hu.shape, spacing, point):
                outlines = [Outline(plane.cut(referenced), REFERENCE, "dashed")]
                if heat is None:
                    outlines.insert(0, Outline(plane.cut(predicted), PREDICTION))
                pictures.append(_picture(plane, plane.cut(hu), outlines, heat, longest_mm))
            made.append(Row(", ".join(filter(None, (title, place))), pictures))
        return made

    outlined, attended = rows(""), []
    for level, values in (attention(image) if attention else {}).items():
        if values.shape != shape:
            raise GeometryError(f"the attention map of {level} has the shape {values.shape}, the CT {shape}")
        attended += rows(level, to_ras(values, affine))
    return CasePictures(outlined, attended)


def _read_on(label: str, image: str, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    values, own_affine = read_label(label)
    return place_on(values, own_affine, shape, affine, f"{image} and {label}")


def _points(predicted: np.ndarray, referenced: np.ndarray) -> dict[str, Index]:
    """Return the voxels to draw planes through, by title: one, or two if the masks do not overlap."""
    if predicted.any() and referenced.any() and not (predicted & referenced).any():
        return {
            "through the reference": fullest_slices(referenced),
            "through the prediction": fullest_slices(predicted),
        }
    return {"": fullest_slices(predicted | referenced)}


def _surroundings(mask: np.ndarray, spacing: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box of a mask and some tissue around it; the whole volume if the mask is empty."""
    found = bounding_box(mask)
    if found is None:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
    box = []
    for side, n, mm in zip(found, mask.shape, spacing, strict=True):
        margin = max(MARGIN_MM / mm, (SMALLEST_MM / mm - (side.stop - side.start)) / 2)
        box.append(slice(max(0, int(side.start - margin)), min(n, int(side.stop + margin) + 1)))
    return box[0], box[1], box[2]


def _picture(
    plane: Plane, hu: np.ndarray, outlines: Sequence[Outline], map_: np.ndarray | None, longest_mm: float
) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = (max(16, round(mm * LONGEST_PX / longest_mm)) for mm in plane.size_mm)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    heat = None if map_ is None else plane.cut(map_)
    if heat is not None and heat.dtype == np.uint8:
        heat = heat / np.float32(255)
    draw_plane(axes, plane, hu, outlines, heat=heat, scale=SCALE)
    if heat is None and plane.view.name == "axial":
        _scale_bar(axes, plane)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", facecolor="black", pil_kwargs={"quality": WEBP_QUALITY})
    place = f"slice {plane.index + 1} of {plane.count}"
    return Picture(plane.view.name, place, data_uri("image/webp", buffer.getvalue()), width, height)


def _scale_bar(axes: Axes, plane: Plane) -> None:
    width_mm = plane.size_mm[1]
    length_mm = next((mm for mm in (50, 20, 10, 5, 2) if mm < width_mm / 2), 1)
    start, end = 0.98, 0.98 - length_mm / width_mm
    axes.plot([start, end], [0.04, 0.04], color="white", linewidth=4, solid_capstyle="butt", transform=axes.transAxes)
    write(axes, (start + end) / 2, 0.06, f"{length_mm} mm", SCALE, ha="center", va="bottom")
