"""From a data set on disk to a datalist: what is checked in every case, whatever the data set.

A module beside this one for each data set knows its layout and says so in a `RawData`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attunet3d.datasets.datalist import check_split, write_datalist
from attunet3d.errors import AttUNet3dError, InputNotFoundError, OutputError, UnsupportedImageError
from attunet3d.io import read_label, read_volume, write_mask
from attunet3d.io.writer import make_folder
from attunet3d.metrics import foreground, place_on

if TYPE_CHECKING:
    from attunet3d.io import Volume

# Pancreas, with its fat, vessels, cysts and tumours, in any phase; a few voxels of a mask may be gas or a metal stent.
BODY_HU = (-150, 300)
MIN_IN_BODY = 0.9
PLAUSIBLE_ML = (10.0, 300.0)


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

    `facts` opens the datalist: "name", "description", "labels" (the meaning of the values in the label files) and
    "pancreas_labels" (the values that count as pancreas: `[1, 2]` as one class, `[[1], [2]]` as two). `allowed` is what
    a label file may hold, None for anything; `cure` ends the message about another value. `refused` and `left_out` are
    names with reasons.
    """

    root: Path
    facts: Mapping[str, Any]
    cases: Sequence[RawCase]
    allowed: frozenset[int] | None
    cure: str = ""
    refused: Sequence[tuple[str, str]] = ()
    left_out: Sequence[tuple[str, str]] = ()
    place: Place = place_by_header

    @property
    def pancreas_values(self) -> list[int]:
        """Every label value that is pancreas, of whatever class."""
        entries = self.facts["pancreas_labels"]
        return [value for entry in entries for value in (entry if isinstance(entry, list) else [entry])]


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
            path = case.label if placed else save_label(case.label.name, label, ct)
            entries.append({"image": _in_datalist(case.image, data.root), "label": _in_datalist(path, data.root)})
        if not entries:
            raise InputNotFoundError(f"{data.root}: none of the {refused} cases can be used; nothing was written")
        check_split(len(entries), folds, test)
    make_folder(output.parent)
    write_datalist(output, data.facts, entries, folds=folds, seed=seed, test=test)
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
    _check_values(case.label, label, data)
    label, placed = data.place(ct, label, affine, case.label.name)
    mask = foreground(label, data.pancreas_values)
    share = share_in_body(ct.array, mask)
    if share < MIN_IN_BODY:
        low, high = BODY_HU
        raise UnsupportedImageError(
            f"{case.label}: {share:.0%} of the mask lies in tissue of {low} to {high} HU, expected at least "
            f"{MIN_IN_BODY:.0%}; is it the label of this CT?"
        )
    # Of the voxels, not of the file: a copy may be compressed, named or placed otherwise.
    voxels = hashlib.sha256(repr(ct.array.shape).encode())
    voxels.update(np.ascontiguousarray(ct.array.T))
    same = seen.by_voxels.get(voxels.digest())
    if same is not None:
        raise UnsupportedImageError(f"{case.image}: the same voxels as the CT of {same}")
    seen.by_voxels[voxels.digest()] = seen.by_path[os.path.abspath(case.image)] = case.name
    warnings = list(ct.source["warnings"])
    volume_ml = float(np.count_nonzero(mask) * abs(np.linalg.det(ct.affine[:3, :3])) / 1000)
    if not PLAUSIBLE_ML[0] <= volume_ml <= PLAUSIBLE_ML[1]:
        warnings.append(f"pancreas of {volume_ml:.1f} mL; {PLAUSIBLE_ML[0]:g} to {PLAUSIBLE_ML[1]:g} mL are plausible")
    return ct, label, placed, warnings


def _check_values(path: Path, label: np.ndarray, data: RawData) -> None:
    # Slice by slice: bincount widens what it counts to int64.
    counts = sum(np.bincount(label[:, :, k].ravel(), minlength=256) for k in range(label.shape[2]))
    found = np.flatnonzero(counts).tolist()
    if data.allowed is not None and not data.allowed.issuperset(found):
        expected = ", ".join(map(str, sorted(data.allowed)))
        raise UnsupportedImageError(f"{path}: holds the values {', '.join(map(str, found))}, not {expected}{data.cure}")
    if not set(found).intersection(data.pancreas_values):
        wanted = " or ".join(map(str, data.pancreas_values))
        raise UnsupportedImageError(f"{path}: an empty mask: no voxel has the value {wanted}")


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The box round a mask that is not empty, wider by ``margin`` voxels where the array goes on."""
    box = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(max(int(inside[0]) - margin, 0), int(inside[-1]) + 1 + margin))
    return tuple(box)


def share_in_body(hu: np.ndarray, mask: np.ndarray) -> float:
    """Share of a mask's voxels, from 0 to 1, with the HU of a pancreas and its surroundings: not air, lung or bone."""
    box = box_of(mask)
    inside = hu[box][mask[box]]
    return float(np.mean((inside >= BODY_HU[0]) & (inside <= BODY_HU[1])))


@contextmanager
def _new_labels(datalist: Path) -> Iterator[Callable[[str, np.ndarray, Volume], Path]]:
    """A function that writes a label on its CT's grid; if the block succeeds, all go to the datalist's labels at once.

    It returns where the label will be.
    """
    final = labels_folder(datalist)
    beside = final.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{final.name}")

    def save(name: str, label: np.ndarray, ct: Volume) -> Path:
        make_folder(beside)
        write_mask(beside / name, label, ct.affine, like=ct.source)
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
