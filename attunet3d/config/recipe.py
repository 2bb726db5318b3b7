"""The recipe of weights: the values they were trained with that affect masks, stored in the file of the weights.

``torch.save`` writes a zip archive, and torch ignores records that it does not know; the recipe is such a record, as
JSON. In a safetensors file it is part of the metadata.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from attunet3d.config.plain import MOST_CHARACTERS, is_network
from attunet3d.config.recipe_values import FINE_TUNE_IDS as FINE_TUNE_IDS
from attunet3d.config.recipe_values import OF_TRAINING, RECIPE_IDS, is_definition, misfit
from attunet3d.errors import CheckpointError, ConfigError
from attunet3d.io.json_text import json_text, parse_json
from attunet3d.io.safetensors_file import START_BYTES, is_safetensors, read_metadata
from attunet3d.io.weights_format import ARCHIVE_ERRORS

logger = logging.getLogger(__name__)

FORMAT = 1
MEMBER = "recipe.json"  # of a zip archive
METADATA = "recipe"  # of formats with metadata
_NETWORK = "attunet3d.networks.AttentionUNet"
# Arguments of the network that have an id of their own.
_NAMED = {"channels": "channels", "out_channels": "num_classes"}


def make_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a config's values.

    Args:
        values: for each of ``RECIPE_IDS``; ``network_def`` may be the network itself. A network of another package is
            left out.

    Raises:
        ConfigError: a value is not one that a recipe may have.
    """
    recipe = {name: _plain(name, values[name]) for name in RECIPE_IDS}
    if not is_definition(recipe["network_def"]):
        del recipe["network_def"]
    wrong = misfit(recipe)
    if wrong:
        raise ConfigError(f"{wrong}, and no CT could be segmented with that; choose another value")
    return recipe


def _plain(name: str, value: Any) -> Any:
    """Normalize a value to the form that it has in recipes."""
    if name == "network_def":
        if is_network(f"{type(value).__module__}.{type(value).__qualname__}"):
            value = {"_target_": _NETWORK, **value.arguments}
        if not isinstance(value, Mapping):
            return {}
        target = value.get("_target_")
        return {**value, "_target_": _NETWORK if is_network(target) else target, OF_TRAINING: 0}
    if name in ("spacing", "roi_size") and type(value) in (int, float):
        return [value] * 3
    return list(value) if isinstance(value, tuple) else value


def add_recipe(archive: IO[bytes], recipe: Mapping[str, Any]) -> None:
    """Add a recipe to an archive that ``torch.save`` wrote, which must not have one yet."""
    with zipfile.ZipFile(archive, "a") as records:
        records.writestr(zipfile.ZipInfo(f"{_folder(records)}/{MEMBER}"), recipe_text(recipe))


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as JSON, with the version of its format."""
    return json_text({"format": FORMAT, **recipe}, indent=1)


def _folder(records: zipfile.ZipFile) -> str:
    """Return the folder of all records: torch refuses an archive with a record outside it."""
    return records.namelist()[0].partition("/")[0]


def read_recipe(checkpoint: str | Path) -> dict[str, Any] | None:
    """Read the recipe in a file of weights, of torch or safetensors; None if it has none, or there is no such file.

    Raises:
        CheckpointError: it is damaged, from a newer version of this package, or contains anything but plain values of
            ``RECIPE_IDS``.
    """
    path = Path(checkpoint)
    text = stored_recipe(path)
    if text is None:
        return None
    recipe = parse_recipe(text, path)
    too_large = _excess(recipe, path)
    if too_large:
        raise _refusal(path, f"does not fit ({too_large})")
    return recipe


def parse_recipe(text: bytes, path: Path) -> dict[str, Any]:
    """Parse the JSON text of a recipe.

    Args:
        text: as in the file; untrusted.
        path: of the file, for messages.

    Raises:
        CheckpointError: as ``read_recipe``.
    """
    if len(text) > MOST_CHARACTERS:
        raise _refusal(path, f"has more than {MOST_CHARACTERS} characters")
    try:
        recipe = parse_json(text)
    except ValueError as error:
        raise _refusal(path, f"cannot be read ({str(error)!r:.120})") from error
    version = recipe.pop("format", None) if isinstance(recipe, dict) else None
    if version != FORMAT or type(version) is not int:
        raise _refusal(path, f"is of format {str(version)!r:.40}, not {FORMAT}", "update attunet3d, or ")
    unknown = [key for key in recipe if key not in RECIPE_IDS]
    wrong = f"{unknown[0]!r:.40} is no id of a recipe" if unknown else misfit(recipe)
    if wrong:
        raise _refusal(path, f"does not fit ({wrong})")
    return recipe


def _refusal(path: Path, why: str, hint: str = "") -> CheckpointError:
    return CheckpointError(f"{path}: the recipe in it {why}; {hint}take other weights of the run, or train again")


def _excess(recipe: Mapping[str, Any], path: Path) -> str | None:
    """Describe a network with more weights than the file contains: building it could take all memory."""
    for widths in (recipe["channels"], recipe.get("network_def", recipe)["channels"]):
        least = 2 * 27 * sum(width**2 for width in widths)  # bytes: each level has a 3x3x3 convolution of its width
        if least > path.stat().st_size:
            return f"the file is too small for channels {widths}"
    return None


def stored_recipe(path: Path, name: str = MEMBER) -> bytes | None:
    """Read the text of a file's recipe, not validated; None if it has none, or there is no such file.

    Args:
        path: of the file.
        name: of the record that contains it in an archive of torch.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        if is_safetensors(start):
            text = read_metadata(path).get(METADATA)
            return None if text is None else text.encode()
        # Anything else is from an old torch or not weights, which loading will find.
        return _member(path, name) if start.startswith(b"PK\x03\x04") else None
    except (FileNotFoundError, IsADirectoryError):
        return None
    except ARCHIVE_ERRORS as error:
        why = f"damaged (truncated, or {' '.join(str(error).split())[:200] or type(error).__name__})"
        raise CheckpointError(f"{path}: {why}; copy it again, or take other weights of the run") from error


def _member(path: Path, name: str) -> bytes | None:
    """Read a record of an archive of torch, up to one byte more than a recipe may have; None if missing."""
    with zipfile.ZipFile(path) as records:
        full_name = f"{_folder(records)}/{name}"
        found = records.namelist().count(full_name)
        if found > 1:
            raise zipfile.BadZipFile(f"{full_name} is there {found} times")
        if not found:
            return None
        with records.open(full_name) as record:
            return record.read(MOST_CHARACTERS + 1)


def recipe_changes(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as changes to the configs, in which the network refers to ``channels`` and ``num_classes``."""
    changes = dict(recipe)
    if "network_def" in recipe:
        definition = dict(recipe["network_def"])
        for argument, name in _NAMED.items():
            if definition.get(argument) == recipe[name]:
                definition[argument] = f"@{name}"
        changes["network_def"] = definition
    return changes


def contradictions(recipe: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Describe each value that differs from that of a recipe, for the ids that both have."""
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
            listed = argument in _NAMED and recipe[_NAMED[argument]] == own[argument]
            if argument in given and not listed:
                yield f"{name}::{argument}", own[argument], given[argument]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def recipe_warnings(checkpoint: str | Path, recipe: Mapping[str, Any] | None, values: Mapping[str, Any]) -> list[str]:
    """Return a warning if the values in use contradict the recipe of the weights, or if there is no recipe.

    Args:
        checkpoint: the weights, whose file name is quoted.
        recipe: of these weights, or None.
        values: in use, by their ids; without a recipe, those that are assumed.
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
    """Log and return the ``recipe_warnings`` of weights; used by configs that MONAI runs.

    Args:
        checkpoint: the weights.
        values: in use, as ``make_recipe`` returns them.
        ids: the ids to compare.

    Raises:
        CheckpointError: the recipe cannot be read.
    """
    compared = {key: values[key] for key in ids if key in values}
    warnings = recipe_warnings(checkpoint, read_recipe(checkpoint), compared)
    for line in warnings:
        logger.warning(line)
    return warnings
