"""Parameters of requests to the MONAI Label server, with their types and ranges.

MONAI Label passes some of them to a parser that can execute strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attunet3d.errors import ConfigError
from attunet3d.io.json_text import parse_json
from attunet3d.label.checks import IMAGE_SUFFIXES, is_name, shown

_DEEPEST = 10
# Fields of an image's or label's information that the server writes; viewers take "name" for a file name.
_KEPT_BY_SERVER = {"path", "name", "ts", "checksum", "strategy", "epistemic_entropy", "epistemic_ts"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a request.

    Attributes:
        expected: description for messages.
        fits: whether a value, of any JSON type, is valid.
    """

    expected: str
    fits: Callable[[Any], bool]


Parameters = Mapping[str, Parameter]


def parsed(what: str, text: str) -> Any:
    """Parse the JSON of a form's field; an empty one is an empty object.

    Raises:
        ConfigError: it is not JSON, or JSON that ``parse_json`` refuses.
    """
    try:
        return parse_json(text or "{}")
    except ValueError as error:
        raise ConfigError(f"{what}: expected JSON ({error})") from None


def check_parameters(what: str, given: Any, allowed: Parameters, model: str = "") -> None:
    """Check that parameters are known and valid.

    Args:
        what: name of the field that holds them.
        given: decoded JSON.
        allowed: parameters by name.
        model: name under which parameters may be nested, as in requests for all models.

    Raises:
        ConfigError: a parameter is unknown or invalid; the message names it and what is allowed.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"{what}: {shown(given)}; expected a JSON object")
    for name, value in given.items():
        if model and name == model:
            check_parameters(what, value, allowed)
        elif name not in allowed:
            raise ConfigError(f"{what}: there is no {shown(name)}; allowed are {', '.join(allowed) or 'none'}")
        elif not allowed[name].fits(value):
            raise ConfigError(f"{name}: {shown(value)}; expected {allowed[name].expected}")


def check_information(what: str, given: Any) -> None:
    """Check an annotator's information about an image or label: no fields of the server, and no executable strings.

    Raises:
        ConfigError: it contains such.
    """
    if not isinstance(given, dict) or not _is_plain(given):
        raise ConfigError(f"{what}: expected a JSON object whose texts do not start with $, @ or %, nor names with _")
    if kept := _KEPT_BY_SERVER & set(given):
        raise ConfigError(f"{what}: {', '.join(sorted(kept))}: only the server itself writes this")


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether nothing in a JSON value executes in a MONAI config: no expression, reference, macro or component."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, dict):
        names = all(name.isprintable() and not name.startswith(("_", "$", "@", "%")) for name in value)
        return names and _is_plain([*value.values()], depth)
    if isinstance(value, list):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return "\0" not in value and not value.lstrip().startswith(("$", "@", "%"))
    return not isinstance(value, float) or math.isfinite(value)


def _is_plain_name(value: Any) -> bool:
    return is_name(value) and _is_plain(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_plain_name, value))


def _whole(low: int, high: int) -> Parameter:
    return Parameter(
        f"a whole number from {low} to {high}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def _one_of(*allowed: str) -> Parameter:
    return Parameter(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


_FLAG = Parameter("true or false", lambda value: isinstance(value, bool))
_SHARE = Parameter(
    "a number from 0 to less than 1",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
)
_NAME = Parameter("a name without / and \\, that does not start with a dot, $, @ or %", _is_plain_name)
_CLIENT = Parameter("a name, or null", lambda value: value in (None, "") or _is_plain_name(value))
_LABELS = Parameter(
    "a list of objects, one for each label",
    lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value) and _is_plain(value),
)
_GPUS = Parameter(
    "all, or numbers with commas",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"all|[0-9]{1,3}(,[0-9]{1,3})*", value)),
)


def saving() -> dict[str, Parameter]:
    """Return the parameters of saving a label."""
    return {"label_info": _LABELS, "client_id": _CLIENT}


def choosing() -> dict[str, Parameter]:
    """Return the parameters of choosing the next case."""
    return {
        "label_tag": _NAME,
        "labels": Parameter("a list of names", _are_names),
        "client_id": _CLIENT,
    }


def training(devices: Collection[str], models: Path) -> dict[str, Parameter]:
    """Return the parameters of training.

    Args:
        devices: names of GPUs that the server offers.
        models: folder of initial weights.
    """
    return {
        **_computing(devices),
        "max_epochs": _whole(1, 100_000),
        "val_split": _SHARE,
        "pretrained": _FLAG,
        "model_filename": _weights(models),
    }


def scoring(devices: Collection[str]) -> dict[str, Parameter]:
    """Return the parameters of scoring by uncertainty."""
    return {
        **_computing(devices),
        "max_samples": _whole(0, 1_000_000),
        "simulation_size": _whole(2, 100),
        "max_workers": _whole(0, 64),
    }


def inference(devices: Collection[str], models: Path) -> dict[str, Parameter]:
    """Return the parameters of segmenting one case; see ``training``."""
    return {
        "device": _device(devices),
        "model_filename": _weights(models),
        "result_extension": _one_of(*IMAGE_SUFFIXES),
        "result_dtype": _one_of("uint8", "uint16", "int16", "int32", "float32"),
        "result_compress": _FLAG,
        "restore_label_idx": _FLAG,
        "save_label": _FLAG,
        "label_tag": _NAME,
        "label_info": _LABELS,
        "logging": _one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "client_id": _CLIENT,
    }


def batch(devices: Collection[str], models: Path) -> dict[str, Parameter]:
    """Return the parameters of segmenting many cases; see ``training``."""
    return {
        **inference(devices, models),
        **_computing(devices),
        "max_workers": _whole(0, 64),
        "max_batch_size": _whole(0, 1_000_000),
    }


def _computing(devices: Collection[str]) -> dict[str, Parameter]:
    return {"device": _device(devices), "multi_gpu": _FLAG, "gpus": _GPUS, "client_id": _CLIENT}


def _device(devices: Collection[str]) -> Parameter:
    return Parameter(
        ", ".join(["cpu", "cuda", "cuda:N", "mps", *(name for name in devices if name not in ("cpu", "mps"))]),
        lambda value: (
            isinstance(value, str) and (value in devices or bool(re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,2})?", value)))
        ),
    )


def _weights(models: Path) -> Parameter:
    def fits(value: Any) -> bool:
        names = value if isinstance(value, list) else [value]  # OHIF sends all that it was offered
        return bool(names) and all(
            is_name(name) and name.endswith(".pt") and (models / name).is_file() for name in names
        )

    return Parameter("a file of weights that the server offers", fits)
