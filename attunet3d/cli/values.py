"""Parse ``--set ID=VALUE``: YAML, and other unambiguous notations."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from attunet3d.config.files import default_value
from attunet3d.config.plain import read_yaml
from attunet3d.errors import ConfigError

_AXES = 3
_ONE_PER_AXIS = ("spacing", "roi_size", "patch_size")  # one number stands for all three
_ANY_LENGTH = ("scales",)  # one number is a list of one
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019"  # straight and typographic
_BRACKETS = "[](){}"
_LONGEST = 10_000  # characters; the regular expressions below backtrack


def override(pair: str) -> tuple[str, Any]:
    """Parse ``"overlap=0.5"`` to ``("overlap", 0.5)``.

    If the value in the bundle's configs is a list of numbers, ``2,2,2`` and ``(2 2 2)`` are accepted too; if it is a
    float, ``0,5``. Quotes that the shell left are removed.

    Raises:
        ConfigError: ID or VALUE is missing, or the value has another type than in the configs; the message shows the
            notation.
    """
    if len(pair) > _LONGEST:
        raise ConfigError(f"--set {pair[:60]}...: {len(pair)} characters, the limit is {_LONGEST}; use a preset")
    pair = _unquoted(pair)
    key, equals, text = pair.partition("=")
    key, text = key.strip(), _unquoted(text)
    if not equals or not key:
        raise ConfigError(f"--set {pair!r}: expected ID=VALUE, e.g. --set overlap=0.5")
    usual = default_value(key)
    if isinstance(usual, list) and all(_is_number(item) for item in usual):
        return key, _list(key, text, usual)
    if _is_number(usual):
        return key, _number(key, text, usual)
    return key, _yaml(key, text)


def _list(key: str, text: str, usual: list[Any]) -> Any:
    found = _numbers(text)
    if found is None:
        found = _yaml_or_text(key, text)
        if found is None or _is_reference(found):
            return found
        raise _not_so(key, text, "a list of numbers", usual)
    if len(found) == 1 and not text.strip().startswith(tuple(_BRACKETS)):
        if key in _ONE_PER_AXIS:
            return found * _AXES
        if key not in _ANY_LENGTH:
            raise _not_so(key, text, "a list of numbers", usual)
    if key in _ONE_PER_AXIS and len(found) != _AXES:
        raise _not_so(key, text, f"{_AXES} numbers", usual)
    return found


def _number(key: str, text: str, usual: float) -> Any:
    if isinstance(usual, float) and re.fullmatch(r"[+-]?\d+,\d+", text):
        return float(text.replace(",", "."))
    found = _yaml_or_text(key, text)
    if isinstance(found, str) and not _is_reference(found):
        with suppress(ValueError):  # 1e-4 is a string in YAML
            return float(found)
    if isinstance(found, str | list | dict) and not _is_reference(found):
        raise _not_so(key, text, "a number", usual)
    return found


def _numbers(text: str) -> list[int | float] | None:
    """Parse numbers, in brackets or not, separated by commas, spaces, "x" or semicolons (with decimal commas)."""
    inner = text.strip(_BRACKETS + " ")
    if ";" in inner:
        parts = inner.replace(",", ".").split(";")
    else:
        if re.search(r"\d,\d", inner) and re.search(r"\d\s+\d", inner):
            return None  # "0,8 1" could be two numbers or three
        parts = re.split(r"\s*[,x\u00d7]\s*|\s+", inner)
    try:
        return [_parsed(part.strip()) for part in parts] if inner else []
    except ValueError:
        return None


def _parsed(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _yaml(key: str, text: str) -> Any:
    if _is_reference(text):  # YAML reserves some of the marks
        return text
    try:
        value = read_yaml(text, f"--set {key}")
    except ValueError as error:
        raise ConfigError(f"--set '{key}={text[:80]}': the value is not YAML") from error
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _yaml_or_text(key: str, text: str) -> Any:
    try:
        return read_yaml(text, f"--set {key}")
    except ValueError:
        return text


def _is_reference(value: Any) -> bool:
    """Whether MONAI would evaluate the value; ``refuse_code`` decides whether it may."""
    return isinstance(value, str) and value.startswith(("@", "$", "%"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unquoted(text: str) -> str:
    text = text.strip()
    while len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES and not {text[0], text[-1]} & {*text[1:-1]}:
        text = text[1:-1].strip()
    return text


def _not_so(key: str, text: str, expected: str, usual: Any) -> ConfigError:
    return ConfigError(f"--set {key}: expected {expected}, got {text[:80]!r}; write it like --set '{key}={usual}'")
