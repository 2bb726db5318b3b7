"""From a data set on disk to a datalist: what is checked in every case, whatever the data set.

A module beside this one for each data set knows its layout and says so in a `RawData`.
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
from attunet3d.datasets.separation import voxel_digest
from attunet3d.errors import AttUNet3dError, InputNotFoundError, OutputError, UnsupportedImageError
from attunet3d.io import read_label, read_volume, write_mask
from attunet3d.io.writer import make_folder
from attunet3d.transforms.grid import voxel_ml
from attunet3d.transforms.labels import LabelValues, check_place, check_values, values_in
from attunet3d.transforms.placing import little_apart, place_on

if TYPE_CHECKING:
    from attunet3d.io import Volume


@dataclass(frozen=True)
class RawCase:
    """A CT (file or DICOM folder) and its label file, as the data set's layout pairs them."""

    name: str
    image: Path
    label: Path


# (CT, label (X, Y, Z), its affine, the label's file name) -> the label on the CT's voxels, and whether the label's own
# header places it there. Raises GeometryError.
Place = Callable[["Volume", np.ndarray, np.ndarray, str], tuple[np.ndarray, bool]]


def place_by_header(ct: Volume, label: np.ndarray, affine: np.ndarray, file_name: str) -> tuple[np.ndarray, bool]:
    """A label whose header says where it lies: its axes turned to the CT's; GeometryError if it lies elsewhere."""
    return place_on(label, affine, ct.array.shape, ct.affine, f"the CT and {file_name}"), True


@dataclass(frozen=True)
class RawData:
    """What a data set's layout says, before any voxel is read.

    `metadata` opens the datalist: "name", "description", "labels" (the meaning of the values in the label files; others
    that are found are added as "other") and "pancreas_labels" (the values that count as pancreas: `[1, 2]` as one
    class, `[[1], [2]]` as two). `allowed` is what a label file may hold, None for anything; `cure` ends the message
    about another value. `refused` and `left_out` are names with reasons.
    """

    root: Path
    metadata: Mapping[str, Any]
    cases: Sequence[RawCase]
    allowed: frozenset[int] | None
    cure: str = ""
    refused: Sequence[tuple[str, str]] = ()
    left_out: Sequence[tuple[str, str]] = ()
    place: Place = place_by_header

    @property
    def values(self) -> LabelValues:
        """What the values of its label files mean."""
        return replace(LabelValues.of(self.metadata["pancreas_labels"]), allowed=self.allowed, cure=self.cure)


def pair_up(
    images: Mapping[str, Sequence[Path]], labels: Mapping[str, Sequence[Path]], cure: str
) -> tuple[list[RawCase], list[tuple[str, str]]]:
    """Images and labels by the names of their cases -> the cases that have one of each, and the others with a reason.

    ``cure``: what to do about two images, or labels, of one case.
    """
    cases, refused = [], []
    for name in sorted(images.keys() | labels.keys()):
        cts, masks = images.get(name, ()), labels.get(name, ())
        if not cts or not masks:
            refused.append((name, f"{masks[0]}: there is no CT to it" if masks else f"{cts[0]}: has no label"))
        elif len(cts) > 1 or len(masks) > 1:
            first, second = (cts if len(cts) > 1 else masks)[:2]
            refused.append((name, f"both {first} and {second}; {cure}"))
        else:
            cases.append(RawCase(name, cts[0], masks[0]))
    return cases, refused


@dataclass(frozen=True)
class Prepared:
    """The datalist that was written; how many cases are in it, for test among them, were refused and were left out."""

    path: Path
    accepted: int
    test: int
    refused: int
    left_out: int


@dataclass
class _Seen:
    """The cases accepted so far, to find the same CT under two names."""

    by_path: dict[str, str] = field(default_factory=dict)
    by_voxels: dict[bytes, str] = field(default_factory=dict)


def prepare(
    data: RawData,
    output: str | Path,
    *,
    folds: int = 5,
    seed: int = 0,
    test: int = 0,
    say: Callable[[str, str], None] = lambda kind, text: None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Prepared:
    """Check every case, one at a time, and write a datalist of the good ones.

    Labels whose own header does not place them are written beside the datalist, to ``<datalist's name>_labels``, with
    the CT's affine; the raw data stay as they are. The datalist comes last.

    Args:
        data: the data set.
        output: the datalist to write. Paths in it are relative to the data set where they lie in it, else absolute.
        folds, seed, test: as in ``split_cases``.
        say: called with ("refused", "left out" or "warning", "<case>: <reason>").
        progress: called with (cases done, cases, name of the next).

    Raises:
        InputNotFoundError: no case can be used.
        ConfigError: there cannot be so many folds.
        OutputError: nothing can be written there.
    """
    output = Path(output)
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; give a file name, such as {output / 'datalist.json'}")
    for name, reason in data.left_out:
        say("left out", f"{name}: {reason}")
    for name, reason in data.refused:
        say("refused", f"{name}: {reason}")
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
                say("refused", f"{case.name}: {error}")
                refused += 1
                continue
            for warning in warnings:
                say("warning", f"{case.name}: {warning}")
            others.update(values_in(label))
            path = case.label if placed else save_label(case.label.name, label, ct)
            entries.append({"image": _in_datalist(case.image, data.root), "label": _in_datalist(path, data.root)})
        if not entries:
            raise InputNotFoundError(f"{data.root}: none of the {refused} cases can be used; nothing was written")
        check_split(len(entries), folds, test)
    make_folder(output.parent)
    names = {str(value): "other" for value in sorted(others)} | dict(data.metadata["labels"])
    metadata = {**data.metadata, "labels": dict(sorted(names.items(), key=lambda item: int(item[0])))}
    write_datalist(output, metadata, entries, folds=folds, seed=seed, test=test)
    return Prepared(output, len(entries), test, refused, len(data.left_out))


def labels_folder(datalist: str | Path) -> Path:
    """Where the labels go that had to be corrected for a datalist."""
    return Path(datalist).with_name(f"{Path(datalist).stem}_labels")


def _check(case: RawCase, data: RawData, seen: _Seen) -> tuple[Volume, np.ndarray, bool, list[str]]:
    """The CT, the label on its voxels, whether the label file places itself, and warnings; a typed error if refused."""
    same = seen.by_path.get(os.path.abspath(case.image))
    if same is not None:
        raise UnsupportedImageError(f"{case.image}: the CT of {same} once more")
    ct = read_volume(case.image)
    label, affine = read_label(case.label)
    check_values(case.label, label, data.values)
    apart = little_apart(label.shape, affine, ct.affine, f"the CT and {case.label.name}")
    label, placed = data.place(ct, label, affine, case.label.name)
    warnings = [*ct.metadata["warnings"], *([apart] if placed and apart else [])]
    warnings += check_place(case.label, label, ct.array, data.values, voxel_ml(ct.affine))
    voxels = voxel_digest(ct.array.shape, (ct.array[:, :, k] for k in range(ct.array.shape[2])))
    same = seen.by_voxels.get(voxels)
    if same is not None:
        raise UnsupportedImageError(f"{case.image}: the same voxels as the CT of {same}")
    seen.by_voxels[voxels] = seen.by_path[os.path.abspath(case.image)] = case.name
    return ct, label, placed, warnings


@contextmanager
def _new_labels(datalist: Path) -> Iterator[Callable[[str, np.ndarray, Volume], Path]]:
    """A function that writes a label on its CT's grid; if the block succeeds, all go to the datalist's labels at once.

    It returns where the label will be.
    """
    final = labels_folder(datalist)
    beside = final.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{final.name}")

    def save(name: str, label: np.ndarray, ct: Volume) -> Path:
        make_folder(beside)
        write_mask(beside / name, label, ct.affine, metadata=ct.metadata)
        return final / name

    try:
        yield save
        if beside.is_dir():
            make_folder(final)
            _move_all(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _move_all(source: Path, target: Path) -> None:
    try:
        for path in source.iterdir():
            os.replace(path, target / path.name)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); choose another datalist") from error


def _in_datalist(path: Path, root: Path) -> str:
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)
