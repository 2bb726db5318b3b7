"""Load the cases of a datalist by section and fold. Unusual notation causes a warning, or is refused if ambiguous."""

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

_SECTIONS = ("training", "validation", "test")
# MONAI's Auto3DSeg calls "test" so.
_TESTING = "testing"
# Other common names of sections, which are refused with a hint.
_MEANT = {"train": "training", "trainset": "training", "val": "validation", "valid": "validation", "dev": "validation"}
_CASE_KEYS = ("image", "label", "fold", "negative", "labelled")


@dataclass(frozen=True)
class _Entry:
    """A case in a datalist: its location, for messages; its keys and values; its fold, if any."""

    where: str
    keys: Mapping[str, Any]
    fold: int | None


class _Warnings(defaultdict[str, list[str]]):
    """Warnings about unusual notation, by kind."""

    def __init__(self) -> None:
        super().__init__(list)

    def report(self, warn: Callable[[str], None]) -> None:
        """Pass on the first warning of each kind, with the number of the others."""
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

    If the cases under "training" have folds and none are listed under "validation", the cases of ``fold`` are for
    validation and all others for training. Otherwise a section has the cases listed under its name.

    Two optional keys of a case are passed on for training: "negative", true if the case has no pancreas, and
    "labelled", the organs that are labelled if not all are, by the names in the config's ``classes``.

    Args:
        datalist: a datalist in MONAI's format.
        dataset_dir: folder that the datalist's paths are relative to.
        section: "training", "validation" or "test".
        fold: the fold for validation.
        every_fold: load all cases under "training", of any fold, for comparison with others.
        optional: skip cases with a missing image or label; return none if the datalist or section does not exist.
        warn: called with warnings about unusual notation.

    Raises:
        InputNotFoundError: the datalist, or a file in it, does not exist.
        ConfigError: it is not a datalist, has no such cases or no such fold, or an entry is invalid.
    """
    if section not in _SECTIONS:
        raise ConfigError(f"section must be {', '.join(_SECTIONS[:-1])} or {_SECTIONS[-1]}, got {section!r}")
    if optional and not Path(datalist).is_file():
        return []
    warnings = _Warnings()
    sections = _sections(read_datalist(datalist), datalist, warnings)
    number = _as_fold(fold, "the config's fold", warnings)
    entries = sections[section] if every_fold else _chosen(sections, section, number, datalist, warnings)
    if not entries and not optional:
        outside = f" outside fold {number}" if sections[section] else ""
        raise ConfigError(f'{datalist}: no cases under "{section}"{outside}')
    if optional:
        entries = [e for e in entries if all(_existing(dataset_dir, e.keys.get(key)) for key in ("image", "label"))]
    cases = [_case(entry, datalist, dataset_dir, section, warnings) for entry in entries]
    warnings.report(warn)
    return cases


def _as_fold(value: Any, where: str, warnings: _Warnings) -> int:
    """Return the number of a fold; notation such as 1.0 or "1" causes a warning.

    Raises:
        ConfigError: it is not an integer >= 0.
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
        warnings["fold"].append(f"{where}: fold {value!r} is taken as {number}")
    return number


def _sections(content: Mapping[str, Any], datalist: str | Path, warnings: _Warnings) -> dict[str, list[_Entry]]:
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
    for section in _SECTIONS:
        entries = content.get(section, [])
        if not isinstance(entries, list):
            raise ConfigError(f'{datalist}: no cases under "{section}", which must be a list of cases')
        sections[section] = [
            _entry(entry, f'{datalist}: case {number} under "{section}"', warnings)
            for number, entry in enumerate(entries, start=1)
        ]
    return sections


def _section_meant(name: str, value: Any) -> str | None:
    """Return what to do about a key that holds cases but is no section; None for other keys."""
    if name in _SECTIONS or name == _TESTING or not isinstance(value, list | dict):
        return None
    meant = _MEANT.get(_letters(name)) or next((s for s in _SECTIONS if _is_misspelt(_letters(name), s)), None)
    if meant is not None:
        return f'call it "{meant}"'
    if isinstance(value, list) and any(isinstance(v, dict) and {"image", "label"} <= v.keys() for v in value):
        return f"call it {', '.join(_SECTIONS[:-1])} or {_SECTIONS[-1]}"
    return None


def _entry(entry: Any, where: str, warnings: _Warnings) -> _Entry:
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
    return _Entry(where, entry, _as_fold(entry["fold"], where, warnings) if "fold" in entry else None)


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
    sections: Mapping[str, list[_Entry]], section: str, fold: int, datalist: str | Path, warnings: _Warnings
) -> list[_Entry]:
    training = sections["training"]
    folds = {entry.fold for entry in training if entry.fold is not None}
    if section == "test" or not folds:
        return sections[section]
    if sections["validation"]:
        warnings["folds"].append(f'{datalist}: has "validation", so that its folds are ignored')
        return sections[section]
    if fold not in folds:
        raise ConfigError(f"{datalist}: no fold {fold}; there are {', '.join(map(str, sorted(folds)))}")
    # As in MONAI, a case without a fold is for training, whatever the fold.
    always = sum(entry.fold is None for entry in training)
    if always:
        warnings["always"].append(f"{datalist}: {always} of {len(training)} cases have no fold: always for training")
    wanted = section == "validation"
    return [entry for entry in training if (entry.fold == fold) == wanted]


def _case(
    entry: _Entry, datalist: str | Path, dataset_dir: str | Path, section: str, warnings: _Warnings
) -> dict[str, Any]:
    case: dict[str, Any] = {key: _path(entry, key, datalist, dataset_dir, warnings) for key in ("image", "label")}
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


def _path(entry: _Entry, key: str, datalist: str | Path, dataset_dir: str | Path, warnings: _Warnings) -> str:
    value = entry.keys.get(key)
    if not isinstance(value, str) or not value.strip():
        found = f'"{key}" is {value!r}' if key in entry.keys else f"it has {', '.join(entry.keys) or 'nothing'}"
        raise ConfigError(f"{entry.where}: lacks the path of its {key}: {found}; give a path, as text")
    found_path = _existing(dataset_dir, value)
    if found_path is None:
        raise InputNotFoundError(f"{os.path.join(dataset_dir, value)}: named in {datalist}, but does not exist")
    if found_path != os.path.join(dataset_dir, value):
        warnings["backslashes"].append(f"{entry.where}: {value} has backslashes, which are taken as slashes")
    return found_path


def _existing(dataset_dir: str | Path, value: Any) -> str | None:
    """Return the path of an existing file, see ``path_as_listed``; None if it is missing."""
    if not isinstance(value, str):
        return None
    path = os.path.join(dataset_dir, path_as_listed(dataset_dir, value))
    return path if os.path.exists(path) else None
