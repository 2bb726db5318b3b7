"""Several datalists as one, whose labels have one numbering."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from attunet3d.datasets.datalist import names_of_labels, pancreas_labels, read_datalist
from attunet3d.datasets.numbering import ORGANS, PANCREAS, Renumbering, metadata_of
from attunet3d.datasets.prepare import RawCase, RawData
from attunet3d.datasets.sections import load_cases
from attunet3d.errors import ConfigError, OutputError
from attunet3d.io.cases import case_name, collision_key
from attunet3d.transforms.labels import LabelValues

_HINT = '; name them under "labels" of the datalist'


def find_cases(
    datalists: Sequence[str | Path], output: str | Path, warn: Callable[[str], None] = lambda text: None
) -> RawData:
    """Find all cases of several datalists.

    "labels" and "pancreas_labels" of each datalist tell which of its values are which organ of ``ORGANS``; all other
    values become background. "labelled" of a case names the organs that are known to be drawn in it.

    Args:
        datalists: datalists with cases under "training" only. Their paths are relative to "dataset_dir", which is
            relative to the datalist; without it, to the datalist's folder.
        output: the datalist to write.
        warn: called with warnings about unusual notation.

    Raises:
        InputNotFoundError: a datalist, or a file in it, does not exist.
        ConfigError: a datalist is invalid, has cases for validation or test, or several classes of pancreas.
        OutputError: the output is one of the datalists.
    """
    roots, cases, refused = [], [], []
    taken: set[str] = set()
    for datalist in map(Path, datalists):
        if os.path.abspath(datalist) == os.path.abspath(output):
            raise OutputError(f"{output}: is one of the datalists to join; choose another name")
        root, renumber, names = _described(datalist)
        roots.append(root)
        for case in load_cases(datalist, root, "training", every_fold=True, warn=warn):
            name = _unused(f"{datalist.stem}_{_name(case['image'], root)}", taken)
            drawn = case.get("labelled")
            if case.get("negative") or (drawn is not None and "pancreas" not in drawn):
                reason = 'without pancreas ("negative", or "labelled" without it); add it by hand, without a fold'
                refused.append((name, f"{case['image']}: {reason}"))
                continue
            labelled = None if drawn is None else [organ for organ in drawn if organ in names]
            cases.append(RawCase(name, Path(case["image"]), Path(case["label"]), renumber, labelled))
    metadata = {
        "name": " + ".join(Path(datalist).stem for datalist in datalists),
        "description": "CTs of several datalists; organs have TotalSegmentator's numbers",
        **metadata_of(list(ORGANS)),
    }
    return RawData(_common(roots), metadata, cases, None, refused=refused)


def _described(datalist: Path) -> tuple[str, Renumbering, set[str]]:
    """Return a datalist's folder of data, the new numbers of its values, and the names of its organs."""
    content = read_datalist(datalist)
    if others := [section for section in ("validation", "test", "testing") if content.get(section)]:
        raise ConfigError(
            f'{datalist}: has cases under "{others[0]}"; put them under "training": folds are made of all cases, and '
            "test holds some out",
            arguments=("test",),
        )
    root = content.get("dataset_dir", ".")
    if not isinstance(root, str):
        raise ConfigError(f'{datalist}: "dataset_dir" is {root!r}, and should be the path of a folder')
    pancreas = pancreas_labels(datalist)
    if any(isinstance(value, list) for value in pancreas):
        raise ConfigError(f"{datalist}: has {len(pancreas)} classes of pancreas, {pancreas}; make them one to join it")
    names = {value: name.lower() for value, name in names_of_labels(content).items()}
    organs = {value: name for value, name in names.items() if name in ORGANS and name != "pancreas" and 0 < value < 256}
    numbers = {value: ORGANS[name] for value, name in organs.items()} | dict.fromkeys(pancreas, PANCREAS)
    values = LabelValues.of(pancreas, named=names, hint=_HINT)
    return os.path.abspath(datalist.parent / root), Renumbering(values, numbers), {"pancreas", *organs.values()}


def _name(image: str, root: str) -> str:
    """Return the name of a case: its path in the data set, with underscores for slashes."""
    path = Path(os.path.abspath(image))
    folders = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
    return "_".join([*folders, case_name(path)])


def _unused(name: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken, and take it; no two name the same file on any file system."""
    unused, number = name, 2
    while collision_key(unused) in taken:
        unused, number = f"{name}_{number}", number + 1
    taken.add(collision_key(unused))
    return unused


def _common(folders: Sequence[str]) -> Path:
    """Return the folder that contains all folders; the first one if they are on different drives of Windows."""
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return Path(folders[0])
