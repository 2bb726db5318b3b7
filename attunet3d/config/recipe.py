"""The recipe of weights: the values they were trained with that decide a voxel of a mask, inside the weights' own file.

A file that `torch.save` wrote is a zip archive, of which torch reads the records it knows by name; the recipe is one
more, JSON. So it goes wherever the weights go, and cannot be that of others.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from attunet3d.config.plain import MOST_CHARACTERS, is_network
from attunet3d.errors import CheckpointError, ConfigError
from attunet3d.io.json_text import json_text, parse_json
from attunet3d.networks.limits import MOST_CHANNELS, MOST_LEVELS

logger = logging.getLogger(__name__)

FORMAT = 1
MEMBER = "recipe.json"
_NETWORK = "attunet3d.networks.AttentionUNet"
# Of a network: what inference has no use for, and what the ids ``channels`` and ``num_classes`` say.
_OF_TRAINING = "auxiliary_channels"
_NAMED = {"channels": "channels", "out_channels": "num_classes"}


def _is_number(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_count(value: Any, low: int = 1, high: int = 2**40) -> bool:
    return type(value) is int and low <= value <= high


def _are(length: range, fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) in length and all(map(fits, value))


def _is_window(value: Any) -> bool:
    return _are(range(2, 3), _is_number)(value) and bool(value[0] < value[1])


# Of the network: what its own constructor takes, so that nothing else is built.
_ARGUMENTS: dict[str, Callable[[Any], bool]] = {
    "_target_": is_network,
    "spatial_dims": lambda value: _is_count(value, 3, 3),
    "in_channels": lambda value: _is_count(value, 1, 1),
    "out_channels": lambda value: _is_count(value, 2, MOST_CHANNELS),
    "channels": lambda value: _are(range(2, MOST_LEVELS + 1), lambda width: _is_count(width, 1, MOST_CHANNELS))(value),
    "gate": lambda value: value in ("grid", "additive", None),
    "gates_per_skip": lambda value: _is_count(value, 1, MOST_LEVELS),
    "gate_first_skip": lambda value: type(value) is bool,
    "deep_supervision": lambda value: type(value) is bool,
    "upsample": lambda value: value in ("linear", "conv"),
    "dropout": lambda value: _is_number(value, 0, 0.999),
    "input_mean": _is_number,
    "input_std": lambda value: _is_number(value, 1e-6),
    _OF_TRAINING: lambda value: _is_count(value, 0, 0),
}


def _is_definition(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _ARGUMENTS.keys()
        and all(fits(value[key]) for key, fits in _ARGUMENTS.items())
    )


# What decides a voxel, each id with the values that it may have. All but the network must be there: one of another
# package cannot be written down as values.
_FITS: dict[str, Callable[[Any], bool]] = {
    "spacing": _are(range(3, 4), lambda value: _is_number(value, 1e-3, 1e3)),
    "antialias": lambda value: type(value) is bool,
    "hu_window": _is_window,
    "roi_size": _are(range(3, 4), lambda value: _is_count(value, -1) and value != 0),
    "max_window_voxels": lambda value: value is None or _is_count(value),
    "overlap": lambda value: _is_number(value, 0, 1),
    "skip_below": lambda value: value is None or _is_number(value),
    "body_threshold": lambda value: value is None or _is_number(value),
    "scales": _are(range(1, 20), lambda value: _is_number(value, 0.5, 2)),
    "threshold": lambda value: _is_number(value, 0, 1),
    "keep_components": lambda value: _is_number(value, 0, 1),
    "num_classes": _ARGUMENTS["out_channels"],
    "channels": _ARGUMENTS["channels"],
    "network_def": _is_definition,
}
RECIPE_IDS = tuple(_FITS)
# Of these, what a training that starts from weights takes over, and what is said where it has another.
FINE_TUNE_IDS = ("spacing", "antialias", "hu_window", "num_classes", "channels", "network_def")


def make_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a config's values.

    Args:
        values: of `RECIPE_IDS`; ``network_def`` may be the network itself. One of another package is left out.

    Raises:
        ConfigError: a value is not one that a recipe may have.
    """
    recipe = {name: _plain(name, values[name]) for name in RECIPE_IDS}
    if not _is_definition(recipe["network_def"]):
        del recipe["network_def"]
    wrong = _misfit(recipe)
    if wrong:
        raise ConfigError(f"{wrong}, with which no CT could be segmented; write another value")
    return recipe


def _plain(name: str, value: Any) -> Any:
    """A value in the one form that it has in a recipe."""
    if name == "network_def":
        if is_network(f"{type(value).__module__}.{type(value).__qualname__}"):
            value = {"_target_": _NETWORK, **value.arguments}
        if not isinstance(value, Mapping):
            return {}
        target = value.get("_target_")
        return {**value, "_target_": _NETWORK if is_network(target) else target, _OF_TRAINING: 0}
    if name in ("spacing", "roi_size") and type(value) in (int, float):
        return [value] * 3
    return list(value) if isinstance(value, tuple) else value


def _misfit(recipe: Mapping[str, Any]) -> str | None:
    for name, fits in _FITS.items():
        if name not in recipe:
            if name != "network_def":
                return f"{name} is missing"
        elif not fits(recipe[name]):
            return f"{name} is {str(recipe[name])!r:.80}"
    return None


def add_recipe(archive: IO[bytes], recipe: Mapping[str, Any]) -> None:
    """Put a recipe into what `torch.save` has written, which must not have one."""
    with zipfile.ZipFile(archive, "a") as records:
        records.writestr(zipfile.ZipInfo(f"{_folder(records)}/{MEMBER}"), recipe_text(recipe))


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as JSON, with the version of its form."""
    return json_text({"format": FORMAT, **recipe}, indent=1)


def _folder(records: zipfile.ZipFile) -> str:
    """The one in which torch keeps all records: another record beside it would be refused."""
    return records.namelist()[0].partition("/")[0]


def read_recipe(checkpoint: str | Path) -> dict[str, Any] | None:
    """The recipe in a file of weights; None if there is none, or no file.

    It is data of others, as a preset is: plain values of known ids, none of which names a path or code.

    Raises:
        CheckpointError: it is damaged, of a newer version of this package, or holds anything else.
    """
    path = Path(checkpoint)
    text = _member(path)
    if text is None:
        return None
    what = f"{path}: the recipe in it"
    cure = "take other weights of the run, or train again"
    if len(text) > MOST_CHARACTERS:
        raise CheckpointError(f"{what} has more than {MOST_CHARACTERS} characters; {cure}")
    try:
        recipe = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{what} cannot be read ({str(error)!r:.120}); {cure}") from error
    version = recipe.pop("format", None) if isinstance(recipe, dict) else None
    if version != FORMAT or type(version) is not int:
        raise CheckpointError(f"{what} is of format {str(version)!r:.40}, not {FORMAT}; update attunet3d, or {cure}")
    unknown = [key for key in recipe if key not in _FITS]
    wrong = f"{unknown[0]!r:.40} is no id of a recipe" if unknown else _misfit(recipe) or _excess(recipe, path)
    if wrong:
        raise CheckpointError(f"{what} does not fit ({wrong}); {cure}")
    return recipe


def _excess(recipe: Mapping[str, Any], path: Path) -> str | None:
    """A network of more weights than its file can hold, which would take all memory before that is seen."""
    for widths in (recipe["channels"], recipe.get("network_def", recipe)["channels"]):
        least = 2 * 27 * sum(width**2 for width in widths)  # bytes: each level has a 3x3x3 convolution of its width
        if least > path.stat().st_size:
            return f"the file is too small for channels {widths}"
    return None


def _member(path: Path) -> bytes | None:
    """The text of a file's recipe: never more than is needed to see that it is too long."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return None  # written by an old torch, or no weights at all, which who loads them will say
        with zipfile.ZipFile(path) as records:
            name = f"{_folder(records)}/{MEMBER}"
            found = records.namelist().count(name)
            if found > 1:
                raise zipfile.BadZipFile(f"{name} is there {found} times")
            if not found:
                return None
            with records.open(name) as member:
                return member.read(MOST_CHARACTERS + 1)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except (OSError, EOFError, ValueError, IndexError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        why = f"damaged (cut short, or {' '.join(str(error).split())[:200] or type(error).__name__})"
        raise CheckpointError(f"{path}: {why}; copy it again, or take other weights of the run") from error


def recipe_changes(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as ids of the bundle's configs: the network still follows ``channels`` and ``num_classes``."""
    changes = dict(recipe)
    if "network_def" in recipe:
        definition = dict(recipe["network_def"])
        for argument, name in _NAMED.items():
            if definition.get(argument) == recipe[name]:
                definition[argument] = f"@{name}"
        changes["network_def"] = definition
    return changes


def contradictions(recipe: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Where values are other ones than those of a recipe, each in words; of ids that both have."""
    return [
        f"{name} {_short(given)} (recipe: {_short(own)})" for name, own, given in _pairs(recipe, values) if own != given
    ]


def _pairs(recipe: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, own in recipe.items():
        if name not in values:
            continue
        given = _plain(name, values[name])
        if name != "network_def":
            yield name, own, given
            continue
        for argument in own:
            said_already = argument in _NAMED and recipe[_NAMED[argument]] == own[argument]
            if argument in given and not said_already:
                yield f"{name}::{argument}", own[argument], given[argument]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def said_of_recipe(checkpoint: str | Path, recipe: Mapping[str, Any] | None, values: Mapping[str, Any]) -> list[str]:
    """What whoever uses weights has to know: the values in use contradict their recipe, or they have none.

    Args:
        checkpoint: the weights, of which the name is said.
        recipe: theirs.
        values: in use, by their ids; without a recipe those that nobody has given.
    """
    name = Path(checkpoint).name
    if recipe is None:
        assumed = ", ".join(
            f"{key} {_short(values[key])}" for key in RECIPE_IDS if key in values and key != "network_def"
        )
        line = f"{name}: no recipe with these weights: the bundle's values are assumed ({assumed}); give the preset "
        return [f"{line}they were trained with"] if assumed else []
    found = contradictions(recipe, values)
    return [f"{name}: used with other values than it was trained with: {', '.join(found)}"] if found else []


def warn_of_recipe(checkpoint: str | Path, values: Mapping[str, Any], ids: Sequence[str] = RECIPE_IDS) -> list[str]:
    """`said_of_recipe` for values in use, and logged as warnings: what configs call that MONAI runs.

    Args:
        checkpoint: the weights.
        values: in use, as `make_recipe` gives them.
        ids: those that matter.

    Raises:
        CheckpointError: the recipe cannot be read.
    """
    said = said_of_recipe(checkpoint, read_recipe(checkpoint), {key: values[key] for key in ids if key in values})
    for line in said:
        logger.warning(line)
    return said
