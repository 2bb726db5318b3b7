"""Load the cases of a datalist's sections and folds. Unusual notation gives a warning, or is refused if ambiguous."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attunet3d.datasets.datalist import read_datalist
from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io.paths import path_as_listed

SECTIONS = ("training", "validation", "test")
# Other names: MONAI's Auto3DSeg has "testing" for "test".
_TESTING = "testing"
_MEANT = {"train": "training", "trainset": "training", "val": "validation", "valid": "validation", "dev": "validation"}
_CASE_KEYS = ("image", "label", "fold", "negative", "labelled")


@dataclass(frozen=True)
class _Entry:
    """A case in a datalist: its location for messages, its keys, and its fold."""

    where: str
    keys: Mapping[str, Any]
    fold: int | None


class _Notes(defaultdict[str, list[str]]):
    """Warnings about unusual notation, by kind; only the first of each kind is reported."""

    def __init__(self) -> None:
        super().__init__(list)

    def report(self, warn: Callable[[str], None]) -> None:
        for first, *more in self.values():
            warn(f"{first} ({len(more)} more like it)" if more else first)


def load_cases(
    datalist: str | Path,
    dataset_dir: str | Path,
    section: str,
    fold: Any = 0,
    *,
    every_fold: bool = False,
    optional: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Load the cases for training, validation or test as MONAI data dicts {"image": path, "label": path}.

    If the cases under "training" have folds and there is no "validation", the cases of ``fold`` are for validation and
    all others for training. Otherwise a section has the cases listed under its name. A training case with "negative":
    true may have no pancreas. If not all organs are labelled in a case, "labelled" lists those that are, by the names
    of the config's ``classes``. The dicts of training cases have these two keys too.

    Args:
        datalist: A datalist in MONAI's format.
        dataset_dir: Folder that the datalist's paths are relative to.
        section: "training", "validation" or "test".
        fold: The fold for validation.
        every_fold: Load all cases under "training", whatever their fold, to distinguish others from them.
        optional: Only load cases whose image and label exist; none if there is no datalist or no such section.
        warn: Called with warnings about unusual notation.

    Raises:
        InputNotFoundError: The datalist, or a file in it, does not exist.
        ConfigError: It is not a datalist, has no such cases or no such fold, or an entry is invalid.
    """
    if section not in SECTIONS:
        raise ConfigError(f"section must be {', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}, got {section!r}")
    if optional and not Path(datalist).is_file():
        return []
    notes = _Notes()
    sections = _sections(read_datalist(datalist), datalist, notes)
    number = _as_fold(fold, "the config's fold", notes)
    entries = sections[section] if every_fold else _chosen(sections, section, number, datalist, notes)
    if not entries and not optional:
        outside = f" outside fold {number}" if sections[section] else ""
        raise ConfigError(f'{datalist}: no cases under "{section}"{outside}')
    if optional:
        entries = [e for e in entries if all(_existing(dataset_dir, e.keys.get(key)) for key in ("image", "label"))]
    cases = [_case(entry, datalist, dataset_dir, section, notes) for entry in entries]
    notes.report(warn)
    return cases


def _as_fold(value: Any, where: str, notes: _Notes) -> int:
    """Return the number of a fold, which may be written as 1.0 or "1".

    Raises:
        ConfigError: It is not an integer >= 0.
    """
    number = value
    is_text = isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,6}\s*", value)
    if is_text or (isinstance(value, float) and value.is_integer()):
        number = int(value)
    if type(number) is not int or number < 0:
        raise ConfigError(
            f'{where}: fold {value!r}; folds are whole numbers from 0: give one, or no "fold" for a case that is '
            "always for training"
        )
    if type(value) is not int:
        notes["fold"].append(f"{where}: fold {value!r} is taken as {number}")
    return number


def _sections(content: Mapping[str, Any], datalist: str | Path, notes: _Notes) -> dict[str, list[_Entry]]:
    """Return the entries of each section; keys that seem to be misspelt sections are refused."""
    for name, value in content.items():
        meant = _section_meant(name, value)
        if meant is not None:
            raise ConfigError(f'{datalist}: has cases under "{name}", which is no section; {meant}')
    if _TESTING in content:
        if content.get("test"):
            raise ConfigError(f'{datalist}: has "test" and "{_TESTING}"; put all cases for test under "test"')
        content = {**content, "test": content[_TESTING]}
    sections = {}
    for section in SECTIONS:
        entries = content.get(section, [])
        if not isinstance(entries, list):
            raise ConfigError(f'{datalist}: no cases under "{section}", which must be a list of cases')
        sections[section] = [
            _entry(entry, f'{datalist}: case {number} under "{section}"', notes)
            for number, entry in enumerate(entries, start=1)
        ]
    return sections


def _section_meant(name: str, value: Any) -> str | None:
    """Return what to do about a key that holds cases but is no section; None for other keys."""
    if name in SECTIONS or name == _TESTING or not isinstance(value, list | dict):
        return None
    meant = _MEANT.get(_letters(name)) or next((s for s in SECTIONS if _is_misspelt(_letters(name), s)), None)
    if meant is not None:
        return f'call it "{meant}"'
    if isinstance(value, list) and any(isinstance(v, dict) and {"image", "label"} <= v.keys() for v in value):
        return f"call it {', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}"
    return None


def _entry(entry: Any, where: str, notes: _Notes) -> _Entry:
    if isinstance(entry, str):  # as MSD lists images without labels
        return _Entry(where, {"image": entry}, None)
    if not isinstance(entry, dict):
        raise ConfigError(f'{where} is {entry!r}, and should be {{"image": path, "label": path}}')
    if isinstance(entry.get("image"), str):
        where += f" ({entry['image']})"
    for key, value in entry.items():
        meant = _key_meant(key, value, entry)
        if meant is not None:
            raise ConfigError(f'{where}: unknown key "{key}"; is "{meant}" meant?')
    if type(entry.get("negative", False)) is not bool:
        raise ConfigError(f'{where}: "negative" is {entry["negative"]!r}, and can be true or false')
    return _Entry(where, entry, _as_fold(entry["fold"], where, notes) if "fold" in entry else None)


def _key_meant(key: str, value: Any, entry: Mapping[str, Any]) -> str | None:
    """Return the key that a similar or nested key seems to mean; None for unrelated keys."""
    if key in _CASE_KEYS:
        return None
    if isinstance(value, dict):
        return next((known for known in _CASE_KEYS if known in value), None)
    if "fold" not in entry and "fold" in re.split("[^a-z]+", key.lower()):
        return "fold"
    return next((known for known in _CASE_KEYS if _is_misspelt(_letters(key), known)), None)


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def _is_misspelt(word: str, known: str) -> bool:
    """Return whether a word is a misspelling: a letter added, missing or different, or letters in another order."""
    short, long = sorted((word, known), key=len)
    if len(short) == len(long):
        return sum(a != b for a, b in zip(short, long, strict=True)) <= 1 or sorted(short) == sorted(long)
    return len(long) - len(short) == 1 and any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def _chosen(
    sections: Mapping[str, list[_Entry]], section: str, fold: int, datalist: str | Path, notes: _Notes
) -> list[_Entry]:
    training = sections["training"]
    folds = {entry.fold for entry in training if entry.fold is not None}
    if section == "test" or not folds:
        return sections[section]
    if sections["validation"]:
        notes["folds"].append(f'{datalist}: has "validation", so that its folds are ignored')
        return sections[section]
    if fold not in folds:
        raise ConfigError(f"{datalist}: no fold {fold}; there are {', '.join(map(str, sorted(folds)))}")
    # As in MONAI, a case without a fold is for training, whatever the fold.
    always = sum(entry.fold is None for entry in training)
    if always:
        notes["always"].append(f"{datalist}: {always} of {len(training)} cases have no fold: always for training")
    wanted = section == "validation"
    return [entry for entry in training if (entry.fold == fold) == wanted]


def _case(entry: _Entry, datalist: str | Path, dataset_dir: str | Path, section: str, notes: _Notes) -> dict[str, Any]:
    case: dict[str, Any] = {key: _path(entry, key, datalist, dataset_dir, notes) for key in ("image", "label")}
    if os.path.samefile(case["image"], case["label"]):
        raise ConfigError(f"{entry.where}: image and label are the same file; give that of the label")
    if entry.keys.get("negative"):
        if section != "training":
            raise ConfigError(
                f'{entry.where}: has no pancreas ("negative"), and none can be evaluated; remove it from {section} '
                '(without a "fold" a case is always for training)'
            )
        case["negative"] = True
    labelled = entry.keys.get("labelled")
    if labelled is not None:
        if not isinstance(labelled, list) or not all(isinstance(name, str) for name in labelled):
            raise ConfigError(f'{entry.where}: "labelled" is {labelled!r}, and should be a list of names of organs')
        if section == "training":
            case["labelled"] = labelled
        elif "pancreas" not in labelled:
            raise ConfigError(f"{entry.where}: the pancreas is not labelled; remove this case from {section}")
    return case


def _path(entry: _Entry, key: str, datalist: str | Path, dataset_dir: str | Path, notes: _Notes) -> str:
    value = entry.keys.get(key)
    if not isinstance(value, str) or not value.strip():
        found = f'"{key}" is {value!r}' if key in entry.keys else f"it has {', '.join(entry.keys) or 'nothing'}"
        raise ConfigError(f"{entry.where}: lacks the path of its {key}: {found}; give a path, as text")
    found_path = _existing(dataset_dir, value)
    if found_path is None:
        raise InputNotFoundError(f"{os.path.join(dataset_dir, value)}: named in {datalist}, but does not exist")
    if found_path != os.path.join(dataset_dir, value):
        notes["backslashes"].append(f"{entry.where}: {value} has backslashes, which are taken as slashes")
    return found_path


def _existing(dataset_dir: str | Path, value: Any) -> str | None:
    """Return the path of an existing file, see ``path_as_listed``; None if it is missing."""
    if not isinstance(value, str):
        return None
    path = os.path.join(dataset_dir, path_as_listed(dataset_dir, value))
    return path if os.path.exists(path) else None
