"""Create the folder of a MONAI Label app with its own copy of the bundle, which training changes."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from attunet3d.config.changes import changed_config, inference_values
from attunet3d.config.files import BUNDLE, CONFIG_FILES, Mode, defines, installed_bundle
from attunet3d.config.recipe import read_recipe
from attunet3d.errors import ConfigError
from attunet3d.io.weights_format import weights_format
from attunet3d.io.writer import atomic_path, make_folder, write_text_atomic

logger = logging.getLogger(__name__)

_MODES: tuple[Mode, ...] = ("train", "inference")
# Replaces MONAI Label's main.py, which becomes monaibundle.py. MONAI Label looks for a subclass of MONAILabelApp.
_MAIN = '''"""MONAI Label's app `monaibundle` with the extensions of attunet3d; written by `attunet3d label`."""

from attunet3d.label.app import Additions  # first: it makes torchvision importable

import monaibundle
from monailabel.interfaces.app import MONAILabelApp


class App(Additions, monaibundle.MyApp, MONAILabelApp):
    """The app that MONAI Label finds in this file."""
'''
# The server offers every *.pt as weights, the shortest name first: the training state, last.pt, must not be there.
# Labels come from an annotator and not from a datalist: 1 is the only structure that the server offers.
_SERVED = {"state_interval": 0, "pancreas_labels": [1]}


def make_app(
    folder: str | Path,
    checkpoint: str | Path | None = None,
    presets: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> Path:
    """Create the app, or update an existing one: its configs are rewritten, its weights are kept.

    Args:
        folder: of the app; created if it does not exist.
        checkpoint: initial weights; by default those in the folder, or else the bundle's.
        presets: merged in order over the bundle's configs and the recipe of the weights; training and inference each
            use the ids they define.
        overrides: ids of these configs and their values.
        allow_code: presets and overrides may contain expressions and class names, which the server then runs.

    Returns:
        The bundle in the app.

    Raises:
        ConfigError: MONAI Label is not installed; a preset or an id does not exist, or contains code.
        CheckpointError: the weights, or their recipe, cannot be read, or do not fit the network of the presets.
        OutputError: the folder cannot be written.
    """
    app = sample_app()
    bundle = Path(folder) / "model" / BUNDLE
    changes = _by_mode(overrides or {})
    changes["train"] = _SERVED | changes["train"]
    weights = bundle / "models" / "model.pt"
    installed = installed_bundle()
    default = weights if weights.is_file() else installed / "models" / "model.pt"
    start = default if checkpoint is None else Path(checkpoint)
    chosen = changes["inference"] | {"checkpoint": start}
    values = inference_values(presets, chosen, allow_code, warn=logger.warning)
    recipe = read_recipe(start)
    configs = {mode: changed_config(mode, presets, changes[mode], allow_code, recipe) for mode in _MODES}
    _check_weights(start, values, allow_code)

    make_folder(bundle / "configs")
    make_folder(bundle / "models")
    write_text_atomic(Path(folder) / "monaibundle.py", app.read_text(encoding="utf-8"))
    write_text_atomic(Path(folder) / "main.py", _MAIN)
    for path in (installed / "configs").iterdir():
        write_text_atomic(bundle / "configs" / path.name, path.read_text(encoding="utf-8"))
    for mode, config in configs.items():
        write_text_atomic(bundle / "configs" / CONFIG_FILES[mode][0], yaml.safe_dump(config, sort_keys=False))
    if start != weights:
        with atomic_path(weights) as temporary:
            _copy_weights(start, temporary, recipe)
    return bundle


def _copy_weights(source: Path, target: Path, recipe: Mapping[str, Any] | None) -> None:
    """Copy weights to a model.pt, in the format of torch, which MONAI Label expects."""
    from attunet3d.checkpoint import read_weights, saved

    if weights_format(source) == "safetensors":
        target.write_bytes(saved(read_weights(source), recipe))
    else:
        shutil.copyfile(source, target)


def sample_app() -> Path:
    """Find the main.py of MONAI Label's sample app ``monaibundle``.

    Raises:
        ConfigError: MONAI Label is not installed; the message says how to install it.
    """
    try:
        files = importlib.metadata.files("monailabel") or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "MONAI Label is not installed here: in a clone run `make label` and use .venv-label/bin/attunet3d, or in "
            "an environment of its own `pip install 'attunet3d[label]'`, then `pip install --no-deps monailabel==0.8.5 "
            "pydicom-seg==0.4.1`"
        ) from None
    for file in files:
        if file.parts[-3:] == ("sample-apps", "monaibundle", "main.py"):
            return Path(str(file.locate())).resolve()
    raise ConfigError("this MONAI Label has no app `monaibundle`: install monailabel==0.8.5")


def _by_mode(overrides: Mapping[str, Any]) -> dict[Mode, dict[str, Any]]:
    """Split overrides by the config that defines them; unknown ids go to the first one, which refuses them."""
    changes: dict[Mode, dict[str, Any]] = {mode: {} for mode in _MODES}
    for key, value in overrides.items():
        for mode in [mode for mode in _MODES if defines(mode, key)] or _MODES[:1]:
            changes[mode][key] = value
    return changes


def _check_weights(checkpoint: Path, values: Mapping[str, Any], allow_code: bool) -> None:
    from attunet3d.checkpoint import load_weights
    from attunet3d.runtime.loading import build_network

    load_weights(build_network(values["network_def"], allow_code), checkpoint)
