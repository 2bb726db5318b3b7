"""Score all label maps in a folder against the references of the same names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from attunet3d.errors import AttUNet3dError, ConfigError, InputNotFoundError
from attunet3d.io.cases import case_name
from attunet3d.io.slabs import IMAGE_SUFFIXES
from attunet3d.metrics.masks import score

# Case (path below the folder, without the ending and suffix of the file) -> the files that may be its label map.
LabelMaps = Mapping[PurePosixPath, Sequence[Path]]

# Endings of file names, most likely first. If a case has a file with one of them, the one with the bare name is the CT.
_PREDICTION_ENDINGS = ("_seg", "_label")
_REFERENCE_ENDINGS = ("_label", "_seg")

# Maps of `segment --attention`, in the same folder as the masks.
_ATTENTION_MAP = re.compile(r"_attention_level\w+$")


@dataclass(frozen=True)
class FolderScores:
    """Scores of the cases of two folders.

    Attributes:
        rows: a dict for each scored case, ordered by name: "case" and the metrics of ``compare_masks``.
        failures: errors of the predictions that could not be scored, by case.
        unpredicted: cases with a reference but no prediction.
        notes: warnings about scored cases, see ``score``.
    """

    rows: list[dict[str, Any]]
    failures: dict[str, Exception]
    unpredicted: list[str]
    notes: list[str]


def score_folders(
    predictions: str | Path,
    references: str | Path,
    *,
    prediction_label: int | Sequence[int] | None = None,
    reference_label: int | Sequence[int] | None = None,
    tolerance_mm: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
) -> FolderScores:
    """Compare each label map in a folder and its subfolders with the reference of the same name.

    The name of a case is its path in the folder without "_seg" or "_label" and the file suffix: ``p1/ct_seg.nii.gz``
    matches ``p1/ct_label.nii.gz``. If one of the two is directly in its folder, the file name is enough, unless another
    case has it too: ``imagesTs/a_seg.nii.gz`` matches ``a.nii.gz``. If a case has several files, the one with "_seg" is
    preferred as the prediction, the one with "_label" as the reference; one with neither is the CT.

    If a case fails, the others are still scored. A reference without a prediction is not a failure: often only a part
    of a data set has been segmented.

    Args:
        predictions: folder of label maps (NIfTI, NRRD, MetaImage).
        references: folder of label maps on the same voxels.
        prediction_label, reference_label, tolerance_mm: as in ``score``.
        progress: called with (cases done, all cases).

    Raises:
        InputNotFoundError: a folder does not exist or has no label maps.
        ConfigError: the label values or the tolerance are invalid.
    """
    predicted = _label_maps(Path(predictions), _PREDICTION_ENDINGS)
    referenced = _label_maps(Path(references), _REFERENCE_ENDINGS)
    partners = {case: _partners(case, predicted, referenced) for case in predicted}
    pairs: dict[str, tuple[Path, Path]] = {}
    failures: dict[str, Exception] = {}
    for case in predicted:
        try:
            pairs[str(case)] = _pair(case, predicted, referenced, partners)
        except AttUNet3dError as error:
            failures[str(case)] = error
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for done, (name, (prediction, reference)) in enumerate(pairs.items(), start=1):
        try:
            values = score(
                prediction,
                reference,
                prediction_label=prediction_label,
                reference_label=reference_label,
                tolerance_mm=tolerance_mm,
                warn=notes.append,
            )
            rows.append({"case": name, **values})
        except ConfigError:  # the caller's options, not this case
            raise
        except Exception as error:
            failures[name] = error
        if progress is not None:
            progress(done, len(pairs))
    found = {partner for several in partners.values() for partner in several}
    unpredicted = [str(case) for case in referenced if case not in found]
    return FolderScores(rows, dict(sorted(failures.items())), unpredicted, notes)


def _label_maps(folder: Path, endings: Sequence[str]) -> LabelMaps:
    """Find the files of each case, in the order of the cases; of several files, those with the most likely ending."""
    if not folder.is_dir():
        raise InputNotFoundError(f"{folder}: no such folder of label maps")

    def rank(path: Path) -> int:
        return next((n for n, ending in enumerate(endings) if case_name(path).endswith(ending)), len(endings))

    files = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        inside, name = PurePosixPath(path.relative_to(folder).as_posix()), case_name(path)
        if (
            path.name.lower().endswith(IMAGE_SUFFIXES)
            and path.is_file()
            and not any(part.startswith(".") for part in inside.parts)
            and not _ATTENTION_MAP.search(name)
        ):
            files[inside.with_name(re.sub(r"(?<!^)(_seg|_label)+$", "", name))].append(path)
    if not files:
        raise InputNotFoundError(f"{folder}: holds no label maps; expected files like case_seg.nii.gz")
    best = {case: min(map(rank, paths)) for case, paths in files.items()}
    return {case: [path for path in files[case] if rank(path) == best[case]] for case in sorted(files)}


def _partners(case: PurePosixPath, predicted: LabelMaps, referenced: LabelMaps) -> list[PurePosixPath]:
    """Find the references that may match a prediction: the one at the same path, or those of the same name."""
    if case in referenced:
        return [case]
    top = PurePosixPath()
    return [
        other
        for other in referenced
        if other.name == case.name and top in (other.parent, case.parent) and other not in predicted
    ]


def _pair(
    case: PurePosixPath,
    predicted: LabelMaps,
    referenced: LabelMaps,
    partners: Mapping[PurePosixPath, Sequence[PurePosixPath]],
) -> tuple[Path, Path]:
    """Return the prediction and the reference of a case.

    Raises:
        InputNotFoundError: it has no reference.
        ConfigError: it has several predictions or references.
    """
    references = [path for partner in partners[case] for path in referenced[partner]]
    if not references:
        raise InputNotFoundError(
            f"{predicted[case][0]}: has no reference; expected a label map named {case}, {case}_label or {case}_seg"
        )
    predictions = [
        path for other in predicted if set(partners[other]) & set(partners[case]) for path in predicted[other]
    ]
    if len(predictions) > 1 or len(references) > 1:
        listed = [", ".join(map(str, paths)) for paths in (predictions, references)]
        raise ConfigError(f"{case}: is ambiguous between {listed[0]} and {listed[1]}; keep one of each, or rename")
    return predictions[0], references[0]
