"""The files of the bundle and the presets: where they are, and what stands in them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from attunet3d.config.plain import split_id
from attunet3d.errors import ConfigError

BUNDLE = "pancreas_ct_attunet3d_segmentation"


Mode = Literal["train", "evaluate", "inference"]


# evaluate is an overlay on train, as in MONAI's model zoo.
CONFIG_FILES: dict[Mode, tuple[str, ...]] = {
    "train": ("train.yaml",),
    "evaluate": ("train.yaml", "evaluate.yaml"),
    "inference": ("inference.yaml",),
}


def _shipped(folder: str) -> Path:
    """A data folder: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def bundle_root() -> Path:
    """The bundle's folder: the working directory if it is a copy of this bundle, else the one that is installed."""
    here = Path.cwd()
    if (here / "configs" / "inference.yaml").is_file() and _metadata(here).get("name") == bundle_metadata()["name"]:
        return here
    return installed_bundle()


def installed_bundle() -> Path:
    """The bundle that came with this package."""
    return _shipped("bundles") / BUNDLE


def bundle_metadata() -> dict[str, Any]:
    """metadata.json of the installed bundle."""
    return _metadata(installed_bundle())


def _metadata(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def preset_path(preset: str | Path) -> Path:
    """A preset's file: a path to a YAML file, or the name of one that is shipped.

    Raises:
        ConfigError: there is no such preset; the message lists those that are.
    """
    path = Path(preset)
    if path.suffix in (".yaml", ".yml", ".json") and os.path.isfile(path):
        return path
    shipped = _shipped("configs")
    named = shipped / f"{path.name}.yaml"
    if path.name == str(preset) and named.is_file():
        return named
    names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
    raise ConfigError(f"no preset {str(preset)!r}: give a YAML file, or one of {names}")


def read_config(mode: Mode) -> dict[str, Any]:
    """The bundle's config for ``mode`` as it stands in its files, nothing evaluated."""
    content: dict[str, Any] = {}
    for name in CONFIG_FILES[mode]:
        for key, value in deepcopy(_shipped_config(installed_bundle() / "configs" / name)).items():
            set_id(content, key, value)
    return content


def bundled_weights() -> Path:
    """The weights of the installed bundle."""
    return installed_bundle() / "models" / "model.pt"


def defines(mode: Mode, key: str) -> bool:
    """Whether the bundle's config for ``mode`` has an id."""
    return defines_id(read_config(mode), key)


def refuse_unknown(key: str) -> None:
    """Pass an id that one of the bundle's configs defines.

    Raises:
        ConfigError: none does.
    """
    if not any(defines(mode, key) for mode in CONFIG_FILES):
        raise ConfigError(f"id {key!r} is not in the bundle's configs: see {configs_folder()}")


def default_value(key: str) -> Any:
    """What the bundle's configs have for an id, nothing evaluated: the first that defines it; None where none does."""
    for mode in CONFIG_FILES:
        value: Any = read_config(mode)
        if defines_id(value, key):
            for part in split_id(key):
                value = value[part]
            return value
    return None


@cache
def _shipped_config(path: Path) -> dict[str, Any]:
    """A config of the bundle, which takes longer to parse than to copy, and does not change while the program runs."""
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); install attunet3d again") from error
    return content


def configs_folder() -> Path:
    return installed_bundle() / "configs"


def defines_id(config: Mapping[str, Any], key: str) -> bool:
    value: Any = config
    for part in split_id(key):
        if not isinstance(value, dict) or part not in value:  # a list is changed as a whole, not by position
            return False
        value = value[part]
    return True


def set_id(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = split_id(key)
    target: Any = config
    for part in parents:
        target = target.get(part) if isinstance(target, dict) else None
    if not isinstance(target, dict):  # as another change has made it
        raise ConfigError(f"id {key!r}: there is no {'::'.join(parents)!r} any more to change it in")
    target[last] = value
