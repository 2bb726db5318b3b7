"""Read and write datalists: MONAI's JSON lists of images and labels, with folds for cross-validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io import write_text_atomic
from attunet3d.io.json_text import parse_json


def split_cases(
    cases: Sequence[Mapping[str, Any]], folds: int, seed: int = 0, test: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw ``test`` cases at random, and split the others into ``folds`` folds whose sizes differ by at most one.

    Args:
        cases: data dicts; their order is kept within each part.
        folds: from 2 to the number of cases not for test.
        seed: the same seed gives the same folds.
        test: number of cases kept out of all folds.

    Returns:
        The training cases, each with its "fold" (as in MONAI's Auto3DSeg), and the test cases.

    Raises:
        ConfigError: there are too few cases, or an invalid number of folds.
    """
    check_split(len(cases), folds, test)
    order = np.random.default_rng(seed).permutation(len(cases)).tolist()
    fold = {index: place % folds for place, index in enumerate(order[test:])}
    training = [{**cases[index], "fold": fold[index]} for index in sorted(fold)]
    return training, [dict(cases[index]) for index in sorted(order[:test])]


def check_split(cases: int, folds: int, test: int = 0) -> None:
    """Check that so many cases, without those for test, can be split into so many folds.

    Raises:
        ConfigError: there are fewer than 2 folds or cases, or fewer cases than folds.
    """
    left = cases - test
    if left < 2:
        raise ConfigError(f"cases: {cases}, of them for test: {test}; at least 2 must be left, for 2 folds")
    if not 2 <= folds <= left:
        raise ConfigError(f"{folds} folds of {left} cases: give from 2 to {left}")


def write_datalist(
    path: str | Path,
    metadata: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    *,
    folds: int,
    seed: int = 0,
    test: int = 0,
) -> Path:
    """Write a datalist in MONAI's (MSD) format atomically; the same arguments give the same bytes.

    Args:
        path: the JSON file.
        metadata: entries before the cases: "name", "labels", "pancreas_labels", ...
        cases: {"image": path, "label": path}, and "labelled" if known, in the order of the cases' names.
        folds, seed, test: as in ``split_cases``.

    Raises:
        ConfigError: there are too few cases, or an invalid number of folds.
        OutputError: the file cannot be written.
    """
    training, held_out = split_cases(cases, folds, seed, test)
    content = {
        **metadata,
        "seed": seed,
        "folds": folds,
        "numTraining": len(training),
        "numTest": len(held_out),
        "training": training,
        "test": held_out,
    }
    return write_text_atomic(path, json.dumps(content, indent=2) + "\n")


def read_datalist(path: str | Path) -> dict[str, Any]:
    """Read a datalist: JSON in UTF-8, or UTF-16 as written by Windows, with or without a byte order mark.

    Raises:
        InputNotFoundError: there is no such file.
        ConfigError: it cannot be read, or is not a mapping in JSON, see ``parse_json``.
    """
    if not Path(path).is_file():
        raise InputNotFoundError(f"{path}: no such datalist; `attunet3d prepare` writes one, `attunet3d phantom` too")
    try:
        content = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON that can be used ({error})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: not a datalist, which is a mapping with "training"')
    return content


def pancreas_labels(datalist: str | Path) -> list[Any]:
    """Return the label values of the pancreas in a datalist: ``[1, 2]``, or ``[[1], [2]]`` for two classes.

    Without "pancreas_labels" it is the value that "labels" calls pancreas, or else 1.

    Raises:
        ConfigError: the file is not a datalist, or its "pancreas_labels" is invalid.
    """
    if not Path(datalist).is_file():  # MONAI Label trains without one
        return [1]
    content = read_datalist(datalist)
    names = names_of_labels(content)
    values = content.get("pancreas_labels", [v for v, name in names.items() if name.lower() == "pancreas"] or [1])
    groups = [value if isinstance(value, list) else [value] for value in values] if isinstance(values, list) else []
    valid = all(group and all(type(value) is int and 1 <= value <= 255 for value in group) for group in groups)
    if not groups or not valid or len({isinstance(value, list) for value in values}) > 1:
        raise ConfigError(
            f'{datalist}: "pancreas_labels" must be a list of label values from 1 to 255, or lists of them: {values}'
        )
    return list(values)


def named_labels(datalist: str | Path) -> list[int]:
    """Return the label values in "labels" of a datalist, sorted; an empty list if the file does not exist.

    Raises:
        ConfigError: the file is not a datalist.
    """
    return sorted(names_of_labels(read_datalist(datalist))) if Path(datalist).is_file() else []


def names_of_labels(content: Mapping[str, Any]) -> dict[int, str]:
    """Return names by value from "labels": {"1": "pancreas"} as in MONAI and MSD, or {"pancreas": 1} as in nnU-Net."""
    labels = content.get("labels")
    names: dict[int, str] = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if key.isdecimal() and len(key) < 10:  # Python refuses thousands of digits
            names[int(key)] = str(value)
        else:
            numbers = value if isinstance(value, list) else [value]
            names.update({number: key for number in numbers if type(number) is int})
    return names


def label_groups(pancreas: Sequence[Any], organs: Mapping[str, Sequence[int]]) -> list[Any]:
    """Return the label values of each class from 1 on: of the pancreas, then of the other organs, in their order.

    Args:
        pancreas: from ``pancreas_labels``.
        organs: label values by name of the organ.

    Raises:
        ConfigError: ``organs`` is invalid.
    """
    if not organs:
        return list(pancreas)
    groups = [list(group) for group in (pancreas if isinstance(pancreas[0], Sequence) else [pancreas])]
    for name, values in organs.items():
        if not isinstance(values, Sequence) or not values or not all(type(value) is int for value in values):
            raise ConfigError(f"organs: {name} needs a list of label values, got {values}")
        groups.append(list(values))
    return groups


def check_classes(
    labels: Sequence[Any], num_classes: int, organs: Mapping[str, Any] | None = None, auxiliary: int = 0
) -> None:
    """Check that the channels of a network match the classes of the labels.

    Args:
        labels: from ``pancreas_labels``.
        num_classes: classes of the network, background included.
        organs: label values of the organs of the auxiliary task, by name.
        auxiliary: auxiliary channels of the network: 0, or those of all classes and organs.

    Raises:
        ConfigError: they do not match.
    """
    found = 1 + (len(labels) if all(isinstance(value, Sequence) for value in labels) else 1)
    if found != num_classes:
        raise ConfigError(
            f"pancreas_labels {list(labels)} make {found} classes with the background, the network has {num_classes}: "
            f"set num_classes={found}, also for evaluation and segmentation"
        )
    wanted = num_classes + len(organs or {})
    if auxiliary and auxiliary != wanted:
        raise ConfigError(
            f"network_def::auxiliary_channels is {auxiliary}: {wanted} are needed, for {num_classes} classes with the "
            f"background and {wanted - num_classes} organs; or 0, to train without organs"
        )
