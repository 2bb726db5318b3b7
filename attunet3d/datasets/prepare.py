"""Check every case of a data set on disk, and write a datalist of the valid ones.

The modules for the data sets find the cases in their layouts, as ``RawData``.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attunet3d.datasets.datalist import check_split, write_datalist
from attunet3d.datasets.numbering import Renumbering, organs_in
from attunet3d.datasets.separation import voxel_digest
from attunet3d.errors import AttUNet3dError, InputNotFoundError, Notice, OutputError, UnsupportedImageError
from attunet3d.io import read_label, read_volume, write_mask
from attunet3d.io.writer import make_folder
from attunet3d.transforms.grid import voxel_ml
from attunet3d.transforms.labels import LabelValues, check_place, check_values, values_in
from attunet3d.transforms.placing import little_apart, place_on

if TYPE_CHECKING:
    from attunet3d.io import Volume


@dataclass(frozen=True)
class RawCase:
    """A CT (file or DICOM folder) and its label file, paired by the data set's layout.

    Attributes:
        name: name of the case, for messages.
        image: the CT.
        label: its label file.
        renumber: new values for the label; "labelled" of the case then names the organs that it has.
        labelled: these names, if they are known.
    """

    name: str
    image: Path
    label: Path
    renumber: Renumbering | None = None
    labelled: Sequence[str] | None = None


# (CT, label (X, Y, Z), its affine, its file name) -> the label on the CT's grid, and whether its header is right, so
# that the file is used unchanged. Raises GeometryError.
Place = Callable[["Volume", np.ndarray, np.ndarray, str], tuple[np.ndarray, bool]]


def place_by_header(ct: Volume, label: np.ndarray, affine: np.ndarray, file_name: str) -> tuple[np.ndarray, bool]:
    """Align a label by its header: permute and flip its axes like those of the CT.

    Raises:
        GeometryError: the label is not on the CT's grid.
    """
    return place_on(label, affine, ct.array.shape, ct.affine, f"the CT and {file_name}"), True


@dataclass(frozen=True)
class RawData:
    """The cases found in a data set, before any voxel is read.

    Attributes:
        root: folder of the data set.
        metadata: first entries of the datalist: "name", "description", "labels" (names of the label values; others
            that are found are added as "other") and "pancreas_labels" (label values of the pancreas: ``[1, 2]`` as one
            class, ``[[1], [2]]`` as two).
        cases: pairs of CT and label.
        allowed: values that label files may hold; None for any.
        hint: end of the error message about other values.
        arguments: arguments that the hint names.
        refused: names and reasons of cases that are incomplete or ambiguous.
        left_out: names and reasons of cases that are not used.
        place: function that aligns a label with its CT.
    """

    root: Path
    metadata: Mapping[str, Any]
    cases: Sequence[RawCase]
    allowed: frozenset[int] | None
    hint: str = ""
    arguments: tuple[str, ...] = ()
    refused: Sequence[tuple[str, str]] = ()
    left_out: Sequence[tuple[str, str]] = ()
    place: Place = place_by_header

    @property
    def values(self) -> LabelValues:
        """The meaning of the values in the label files."""
        values = LabelValues.of(self.metadata["pancreas_labels"])
        return replace(values, allowed=self.allowed, hint=self.hint, arguments=self.arguments)


def pair_up(
    images: Mapping[str, Sequence[Path]],
    labels: Mapping[str, Sequence[Path]],
    hint: str,
    arguments: tuple[str, ...] = (),
) -> tuple[list[RawCase], list[tuple[str, str]]]:
    """Pair images and labels by case name.

    Args:
        images: images by case name.
        labels: labels by case name.
        hint: remedy for two images, or two labels, of a case.
        arguments: arguments that the hint names.

    Returns:
        The cases with one image and one label, and the names and reasons of all others.
    """
    cases, refused = [], []
    for name in sorted(images.keys() | labels.keys()):
        cts, masks = images.get(name, ()), labels.get(name, ())
        if not cts or not masks:
            refused.append((name, f"{masks[0]}: has no matching CT" if masks else f"{cts[0]}: has no label"))
        elif len(cts) > 1 or len(masks) > 1:
            first, second = (cts if len(cts) > 1 else masks)[:2]
            refused.append((name, Notice(f"both {first} and {second}; {hint}", arguments)))
        else:
            cases.append(RawCase(name, cts[0], masks[0]))
    return cases, refused


@dataclass(frozen=True)
class Prepared:
    """Result of ``prepare``: path of the datalist, and numbers of cases, of those accepted also for test."""

    path: Path
    accepted: int
    test: int
    refused: int
    left_out: int


@dataclass
class _Seen:
    """The cases accepted so far, to detect the same CT under two names."""

    by_path: dict[str, str] = field(default_factory=dict)
    by_voxels: dict[bytes, str] = field(default_factory=dict)


def prepare(
    data: RawData,
    output: str | Path,
    *,
    folds: int = 5,
    seed: int = 0,
    test: int = 0,
    report: Callable[[str, str], None] = lambda kind, text: None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Prepared:
    """Check every case, one at a time, and write a datalist of the valid ones.

    Labels that are not placed by their own header, or get new values, are rewritten with the CT's affine to
    ``<datalist's name>_labels`` beside the datalist; the raw data are not changed. The datalist is written last.

    Args:
        data: the data set.
        output: the datalist to write. Paths in it are relative to the data set, or absolute if they are outside.
        folds, seed, test: as in ``split_cases``.
        report: called with ("refused", "left out" or "warning", "<case>: <reason>").
        progress: called with (cases done, number of cases, name of the next one).

    Raises:
        InputNotFoundError: no case can be used.
        ConfigError: there are too few cases, or an invalid number of folds.
        OutputError: the datalist or a label cannot be written.
    """
    output = Path(output)
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; give a file name, such as {output / 'datalist.json'}")
    for name, reason in data.left_out:
        report("left out", f"{name}: {reason}")
    for name, reason in data.refused:
        report("refused", Notice(f"{name}: {reason}", getattr(reason, "arguments", ())))
    if data.cases:
        check_split(len(data.cases), folds, test)
    refused, seen, entries = len(data.refused), _Seen(), []
    others: set[int] = set()
    with _new_labels(output) as save_label:
        for done, case in enumerate(sorted(data.cases, key=lambda case: case.name)):
            progress(done, len(data.cases), case.name)
            try:
                ct, label, placed, warnings = _check(case, data, seen)
            except AttUNet3dError as error:
                report("refused", Notice(f"{case.name}: {error}", error.arguments))
                refused += 1
                continue
            for warning in warnings:
                report("warning", f"{case.name}: {warning}")
            name, labelled = case.label.name, {}
            if case.renumber is not None:
                old, label = label, case.renumber(label)
                placed = placed and np.array_equal(old, label)
                name = f"{case.name}.nii.gz"
                labelled = {"labelled": organs_in(values_in(label)) if case.labelled is None else list(case.labelled)}
            others.update(values_in(label))
            path = case.label if placed else save_label(name, label, ct)
            paths = {"image": _in_datalist(case.image, data.root), "label": _in_datalist(path, data.root)}
            entries.append({**paths, **labelled})
        if not entries:
            raise InputNotFoundError(f"{data.root}: none of the {refused} cases can be used; nothing was written")
        check_split(len(entries), folds, test)
    make_folder(output.parent)
    names = {str(value): "other" for value in sorted(others)} | dict(data.metadata["labels"])
    labels = dict(sorted(names.items(), key=lambda item: int(item[0])))
    metadata = {**data.metadata, "labels": labels, "dataset_dir": _from(output.parent, data.root)}
    write_datalist(output, metadata, entries, folds=folds, seed=seed, test=test)
    return Prepared(output, len(entries), test, refused, len(data.left_out))


def labels_folder(datalist: str | Path) -> Path:
    """Return the folder for the corrected labels of a datalist."""
    return Path(datalist).with_name(f"{Path(datalist).stem}_labels")


def _check(case: RawCase, data: RawData, seen: _Seen) -> tuple[Volume, np.ndarray, bool, list[str]]:
    """Read and check a case.

    Returns:
        The CT, the label on its grid, whether the label's header is right, and warnings.

    Raises:
        AttUNet3dError: the case is refused.
    """
    same = seen.by_path.get(os.path.abspath(case.image))
    if same is not None:
        raise UnsupportedImageError(f"{case.image}: the same file as the CT of {same}")
    ct = read_volume(case.image)
    label, affine = read_label(case.label)
    values = data.values if case.renumber is None else case.renumber.values
    check_values(case.label, label, values)
    apart = little_apart(label.shape, affine, ct.affine, f"the CT and {case.label.name}")
    label, placed = data.place(ct, label, affine, case.label.name)
    warnings = [*ct.metadata["warnings"], *([apart] if placed and apart else [])]
    warnings += check_place(case.label, label, ct.array, values, voxel_ml(ct.affine))
    voxels = voxel_digest(ct.array.shape, (ct.array[:, :, k] for k in range(ct.array.shape[2])))
    same = seen.by_voxels.get(voxels)
    if same is not None:
        raise UnsupportedImageError(f"{case.image}: the same voxels as the CT of {same}")
    seen.by_voxels[voxels] = seen.by_path[os.path.abspath(case.image)] = case.name
    return ct, label, placed, warnings


@contextmanager
def _new_labels(datalist: Path) -> Iterator[Callable[[str, np.ndarray, Volume], Path]]:
    """Yield a function that writes a label on its CT's grid, and returns its final path.

    If the block succeeds, all labels are moved to the folder of the datalist's labels.
    """
    final = labels_folder(datalist)
    temporary = final.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{final.name}")

    def save(name: str, label: np.ndarray, ct: Volume) -> Path:
        make_folder(temporary)
        write_mask(temporary / name, label, ct.affine, metadata=ct.metadata)
        return final / name

    try:
        yield save
        if temporary.is_dir():
            make_folder(final)
            _move_all(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_all(source: Path, target: Path) -> None:
    try:
        for path in source.iterdir():
            os.replace(path, target / path.name)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); choose another datalist") from error


def _in_datalist(path: Path, root: Path) -> str:
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def _from(folder: Path, root: Path) -> str:
    """Return the path from a folder to another; the whole path if they are on different drives of Windows."""
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:
        return Path(os.path.abspath(root)).as_posix()
