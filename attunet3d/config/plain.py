"""Distinguish plain values in presets and overrides from what MONAI's ConfigParser would run or look up.

MONAI evaluates a string that begins with "$" as Python code, replaces one with "%" by content of a file and one with
"@" by the value of another id, and calls the ``_target_`` of a mapping.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from attunet3d.errors import ConfigError

# The only class that ``network_def`` may name, by each of its import paths.
NETWORKS = frozenset(
    {
        "attunet3d.AttentionUNet",
        "attunet3d.networks.AttentionUNet",
        "attunet3d.networks.attention_unet.AttentionUNet",
    }
)
ALLOW_CODE_HINT = (
    "allow_code=True accepts it, but then a preset can run any program with your permissions: use it only if you trust "
    "its author"
)
_MARKS = ("$", "@", "%")
_INSIDE = (*_MARKS, "#")  # MONAI also interprets "@#" and "%#" inside a text, and replaces "#" by "::"
MOST_CHARACTERS = 100_000
_MOST_NODES = 10_000
_DEEPEST = 50
_MOST_BITS = 1024  # of an integer: no float has more, and Python does not print many more
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


def split_id(key: str) -> list[str]:
    """Split one of MONAI's nested ids, such as "network_def::gate" or "network_def#gate", into its parts."""
    return str(key).replace("#", "::").split("::")


def refuse_code(key: str, value: Any, where: str, may_refer: Callable[[str], bool]) -> None:
    """Check that a value is plain: numbers, strings, lists and mappings in which MONAI runs and looks up nothing.

    Args:
        key: the id to change.
        value: its new value.
        where: prefix of the message: the file, or nothing.
        may_refer: whether an id may be referenced as "@id", by the whole value of another id or in ``network_def``.

    Raises:
        ConfigError: the value is not plain.
    """
    found = _special("", key, value) or _code_in("::".join(split_id(key)), value, may_refer)
    if found is not None:
        name, what = found
        raise ConfigError(
            f"{where}id {name!r} is code or a component, not a plain value ({_SHORT.repr(what)}): write a value "
            f"(arguments have ids of their own, such as loss::lambda_ce; start the path of a file with ./ or /). "
            f"{ALLOW_CODE_HINT}",
            arguments=("allow_code",),
        )


def _code_in(name: str, value: Any, may_refer: Callable[[str], bool], depth: int = 0) -> tuple[str, Any] | None:
    """Return the first id, and its value, that is not plain; None if all are."""
    if isinstance(value, str):
        text = value.lstrip()
        if not text.startswith(_MARKS):
            return None
        # In lists and other mappings, references to each other could form an infinite value.
        whole = depth == 0 or (depth == 1 and split_id(name)[0] == "network_def")
        return None if whole and value.startswith("@") and may_refer(value[1:]) else (name, value)
    if depth > _DEEPEST:
        raise ConfigError(f"id {name.partition('::')[0]!r}: nested more than {_DEEPEST} deep; write a plain value")
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        items = enumerate(value)
    for key, item in items:
        found = _special(f"{name}::", key, item) or _code_in(f"{name}::{key}", item, may_refer, depth + 1)
        if found is not None:
            return found
    return None


def _special(above: str, key: Any, value: Any) -> tuple[str, Any] | None:
    """Return an id with a part that MONAI interprets, and its value; None without one, or for an allowed network."""
    name = above + "::".join(split_id(key))
    if name == "network_def::_target_" and is_network(value):
        return None
    parts = [part.strip() for part in split_id(key)]
    special = any(part.startswith((*_MARKS, "+")) or (part.startswith("_") and part.endswith("_")) for part in parts)
    return (name, value) if special else None


def is_plain(name: str, value: Any) -> bool:
    """Whether MONAI leaves a value of the bundle's configs unchanged."""
    return _code_in(name, value, lambda _: False) is None


def is_network(target: Any) -> bool:
    """Whether a ``_target_`` is one of ``NETWORKS``."""
    return isinstance(target, str) and target in NETWORKS


def for_monai(value: Any, allow_code: bool = False) -> Any:
    """Escape a checked value so that MONAI takes each path, and each string except references, literally.

    With ``allow_code`` strings are left to MONAI; a ``Path`` is always a path.
    """
    if isinstance(value, Path):
        return _literal(str(value))
    if isinstance(value, str):
        return value if allow_code or value.startswith("@") else _literal(value)
    if isinstance(value, dict):
        return {key: for_monai(item, allow_code) for key, item in value.items()}
    if isinstance(value, list):
        return [for_monai(item, allow_code) for item in value]
    return value


def _literal(text: str) -> str:
    """Return a string that MONAI takes literally, or else an expression for it without any of MONAI's marks."""
    if not any(mark in text for mark in _INSIDE):
        return text
    expression = ascii(str(text))
    for mark in _INSIDE:
        expression = expression.replace(mark, f"\\x{ord(mark):02x}")
    return f"${expression}"


class _Loader(yaml.SafeLoader):
    """A safe loader that rejects integers too large to print in a message."""

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > _MOST_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str | bytes, where: str) -> Any:
    """Parse a YAML text, within limits of its size.

    Args:
        text: str, or UTF-8 bytes.
        where: prefix of error messages.

    Raises:
        ConfigError: the text, with its aliases expanded, is too long or nested too deeply.
        ValueError: the text is not YAML.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: more than {MOST_CHARACTERS} characters, which no preset or value needs")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        problem = _excess(yaml.parse(text, yaml.SafeLoader))
        if problem is None:
            return yaml.load(text, _Loader)
    except Exception as error:  # invalid scalars such as "!!int x" or "2001-13-45" raise various errors
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from error
    raise ConfigError(f"{where}: {problem}; write the values out, fewer and flatter")


def _excess(events: Iterable[Any]) -> str | None:
    """Describe what exceeds the limits in a YAML text, with aliases expanded, before anything is built; or None."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > _DEEPEST:
                return f"nested more than {_DEEPEST} deep"
            continue
        if isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(str(event.anchor), 0)
            if not size:
                return f"the alias *{event.anchor} has no anchor, or is a part of its own value"
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if opened:
            around, so_far = opened[-1]
            opened[-1] = around, so_far + size
            if so_far + size > _MOST_NODES:
                return f"more than {_MOST_NODES} values, with its aliases expanded"
    return None
