"""Valid values of a recipe, which is untrusted data from which a network is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attunet3d.config.plain import is_network
from attunet3d.networks.limits import MOST_CHANNELS, MOST_LEVELS

# An argument of the network that only training uses.
OF_TRAINING = "auxiliary_channels"


def _is_number(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_count(value: Any, low: int = 1, high: int = 2**40) -> bool:
    return type(value) is int and low <= value <= high


def _are(length: range, fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) in length and all(map(fits, value))


def _is_window(value: Any) -> bool:
    return _are(range(2, 3), _is_number)(value) and bool(value[0] < value[1])


# Arguments of the network, each with a check that its constructor accepts the value.
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
    OF_TRAINING: lambda value: _is_count(value, 0, 0),
}


def is_definition(value: Any) -> bool:
    """Whether a value has exactly the arguments of a network of this package, all valid."""
    return (
        isinstance(value, dict)
        and value.keys() == _ARGUMENTS.keys()
        and all(fits(value[key]) for key, fits in _ARGUMENTS.items())
    )


# The ids that affect masks, each with a check of its value. All are required except the network: one of another package
# has no plain values.
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
    "network_def": is_definition,
}
RECIPE_IDS = tuple(_FITS)
# Of these, the ids that fine-tuning takes over from its initial weights; other values cause a warning.
FINE_TUNE_IDS = ("spacing", "antialias", "hu_window", "num_classes", "channels", "network_def")


def misfit(recipe: Mapping[str, Any]) -> str | None:
    """Describe the first id of a recipe that is missing or has an invalid value; None if all are valid."""
    for name, fits in _FITS.items():
        if name not in recipe:
            if name != "network_def":
                return f"{name} is missing"
        elif not fits(recipe[name]):
            return f"{name} is {str(recipe[name])!r:.80}"
    return None
