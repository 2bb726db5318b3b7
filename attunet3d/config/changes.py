"""Presets and overrides applied to the bundle's configs, as plain values.

Segmentation reads them without MONAI, whose import takes longer than a CT; ``workflow`` passes the same to MONAI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attunet3d.config.files import (
    CONFIG_FILES,
    Mode,
    bundled_weights,
    configs_folder,
    defines_id,
    preset_path,
    read_config,
    set_id,
)
from attunet3d.config.plain import MOST_CHARACTERS, for_monai, is_plain, read_yaml, refuse_code, split_id
from attunet3d.config.recipe import FINE_TUNE_IDS, RECIPE_IDS, read_recipe, recipe_changes, recipe_warnings
from attunet3d.errors import ConfigError

# Ids of inference.yaml that are values; the others are components, which only MONAI builds. Those in `RECIPE_IDS` are
# saved with the weights.
INFERENCE_IDS = (
    "checkpoint",
    "device",
    "precision",
    "backend",
    "allow_uneven",
    "allow_smaller_windows",
    "spacing",
    "antialias",
    "hu_window",
    "roi_size",
    "max_window_voxels",
    "sw_batch_size",
    "overlap",
    "skip_below",
    "body_threshold",
    "scales",
    "threshold",
    "keep_components",
    "num_classes",
    "channels",
    "network_def",
)


def config_changes(
    mode: Mode, presets: Sequence[str | Path], overrides: Mapping[str, Any], allow_code: bool = False
) -> dict[str, Any]:
    """Merge presets, in order, and then overrides into changes of the config for ``mode``: {id: value}.

    Only ids of the config can be changed. A preset may serve training and inference: ids that only another config of
    the bundle defines are ignored. A ``Path`` is always a path, whatever it begins with.

    Raises:
        ConfigError: a preset does not exist or is not a mapping, an id is unknown, or, without ``allow_code``, a value
            contains code, see ``refuse_code``.
    """
    own = read_config(mode)
    others = [read_config(other) for other in CONFIG_FILES if other != mode]
    changes: dict[str, Any] = {}
    for preset in presets:
        path = preset_path(preset)
        for key, value in _read_preset(path).items():
            name = str(key).removeprefix("+")
            if not allow_code:
                refuse_code(name, value, f"{path}: ", _may_refer)
            if defines_id(own, name):
                changes[name] = value
            elif not any(defines_id(other, name) for other in others):
                raise ConfigError(f"{path}: id {name!r} is not in the bundle's configs: see {configs_folder()}")
    for key, value in overrides.items():
        if not allow_code:
            refuse_code(key, value, "", _may_refer)
        if not defines_id(own, key):
            raise ConfigError(f"id {key!r} is not in the bundle's {mode} config: see {configs_folder()}")
        changes[key] = value
    if not allow_code:  # with it, references are left to MONAI
        config = own
        for key, value in changes.items():
            set_id(config, key, value)
        for key, value in changes.items():
            _resolve(value, config, key)
    return changes


def changed_config(
    mode: Mode,
    presets: Sequence[str | Path],
    overrides: Mapping[str, Any],
    allow_code: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the bundle's config for ``mode``, unevaluated, with the recipe and then ``config_changes`` applied.

    Raises:
        ConfigError: as ``config_changes``.
    """
    config = read_config(mode)
    changes = recipe_changes(recipe or {}) | config_changes(mode, presets, overrides, allow_code)
    for key, value in changes.items():
        set_id(config, key, for_monai(value, allow_code))
    return config


def changes_with_recipe(
    mode: Mode, presets: Sequence[str | Path], overrides: Mapping[str, Any], allow_code: bool = False
) -> dict[str, Any]:
    """Return the recipe of the weights to use, or to start training from, updated with ``config_changes``.

    Raises:
        ConfigError: as ``config_changes``.
        CheckpointError: the recipe cannot be read.
    """
    changes = config_changes(mode, presets, overrides, allow_code)
    named = changes.get("initial_checkpoint" if mode == "train" else "checkpoint", "")
    if mode == "train" and named in ("", "bundled"):  # the config has the values of the bundle's own weights
        return changes
    recipe = read_recipe(named or bundled_weights())
    wanted = FINE_TUNE_IDS if mode == "train" else RECIPE_IDS
    own = {key: value for key, value in recipe_changes(recipe or {}).items() if key in wanted}
    if mode == "evaluate" and recipe is None and presets:  # assumed to be the presets of the training
        own["recipe_warnings"] = []
    return own | changes


def inference_values(
    presets: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Return the values to segment with, one for each of ``INFERENCE_IDS``, with references (``@id``) resolved.

    The bundle's inference config is updated with the recipe of the weights, then the presets, then the overrides.
    ``warn`` is called with a line if presets or overrides contradict the recipe, or if there is neither a recipe nor a
    preset.

    Raises:
        ConfigError: as ``config_changes``; or an id is a component, or its value an expression.
        CheckpointError: the recipe cannot be read.
    """
    config = read_config("inference")
    # Expressions in the file, which only MONAI evaluates.
    config["checkpoint"] = str(bundled_weights())
    config["device"] = "auto"
    changes = config_changes("inference", presets, overrides or {}, allow_code)
    for key in changes:
        if split_id(key)[0] not in INFERENCE_IDS:
            raise ConfigError(
                f"id {key!r} is a component of the pipeline, not a value: change it with "
                "`python -m monai.bundle run --config_file <bundle>/configs/inference.yaml`"
            )
    checkpoint = _resolve(changes.get("checkpoint", config["checkpoint"]), config | changes, "checkpoint")
    recipe = read_recipe(checkpoint)
    for key, value in (recipe_changes(recipe or {}) | changes).items():
        set_id(config, key, value)
    values = {name: _resolve(config[name], config, name) for name in INFERENCE_IDS}
    if recipe is not None or (not presets and Path(checkpoint).is_file()):
        given = {split_id(key)[0] for key in changes} if recipe is None else set()
        for line in recipe_warnings(checkpoint, recipe, {key: values[key] for key in RECIPE_IDS if key not in given}):
            warn(line)
    return values


def _resolve(value: Any, config: Mapping[str, Any], name: str, depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, config, name, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, config, name, depth) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        if value[1:] not in config or depth > len(config):
            raise ConfigError(f"config id {name!r}: reference {value!r} cannot be resolved")
        return _resolve(config[value[1:]], config, name, depth + 1)
    if isinstance(value, str) and value.startswith("$"):
        raise ConfigError(f"config id {name!r}: expressions ({value}) are only run by `python -m monai.bundle run`")
    return value


def _read_preset(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = read_yaml(file.read(MOST_CHARACTERS + 1), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the preset cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a preset is a mapping of ids to values, got {type(content).__name__}")
    return content


def _may_refer(name: str) -> bool:
    """Whether an id is a plain value in each config of the bundle that defines it, as ``_resolve`` requires."""
    return all(is_plain(name, config.get(name)) for config in map(read_config, CONFIG_FILES))
