"""Files of the bundle and presets: their paths and contents."""

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
    """Return a data folder: inside the package if installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def bundle_root() -> Path:
    """Return the bundle's folder: the working directory if it is a copy of this bundle, else the installed one."""
    here = Path.cwd()
    if (here / "configs" / "inference.yaml").is_file() and _metadata(here).get("name") == bundle_metadata()["name"]:
        return here
    return installed_bundle()


def installed_bundle() -> Path:
    """Return the folder of the bundle in this package."""
    return _shipped("bundles") / BUNDLE


def bundle_metadata() -> dict[str, Any]:
    """Return metadata.json of the installed bundle; empty if it cannot be read."""
    return _metadata(installed_bundle())


def _metadata(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def preset_path(preset: str | Path) -> Path:
    """Return the file of a preset: a path of a YAML file, or the name of a shipped one.

    Raises:
        ConfigError: there is no such preset; the message lists the shipped ones.
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
    """Return the bundle's config for ``mode``, unevaluated."""
    content: dict[str, Any] = {}
    for name in CONFIG_FILES[mode]:
        for key, value in deepcopy(_shipped_config(installed_bundle() / "configs" / name)).items():
            set_id(content, key, value)
    return content


def bundled_weights() -> Path:
    """Return the file of the installed bundle's weights."""
    return installed_bundle() / "models" / "model.pt"


def defines(mode: Mode, key: str) -> bool:
    """Whether the bundle's config for ``mode`` has an id."""
    return defines_id(read_config(mode), key)


def refuse_unknown(key: str) -> None:
    """Check that one of the bundle's configs defines an id.

    Raises:
        ConfigError: none does.
    """
    if not any(defines(mode, key) for mode in CONFIG_FILES):
        raise ConfigError(f"id {key!r} is not in the bundle's configs: see {configs_folder()}")


def default_value(key: str) -> Any:
    """Return the unevaluated value of an id in the first of the bundle's configs that defines it; else None."""
    for mode in CONFIG_FILES:
        value: Any = read_config(mode)
        if defines_id(value, key):
            for part in split_id(key):
                value = value[part]
            return value
    return None


@cache
def _shipped_config(path: Path) -> dict[str, Any]:
    """Read a config of the bundle; cached, as it does not change while the program runs and is slow to parse."""
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
        if not isinstance(value, dict) or part not in value:  # lists are changed as a whole, not by index
            return False
        value = value[part]
    return True


def set_id(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = split_id(key)
    target: Any = config
    for part in parents:
        target = target.get(part) if isinstance(target, dict) else None
    if not isinstance(target, dict):  # after another change
        raise ConfigError(f"id {key!r}: another change has replaced {'::'.join(parents)!r}, which contains it")
    target[last] = value
