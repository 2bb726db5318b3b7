"""What of a preset or an override is a plain value, and what MONAI's ConfigParser would run or look up.

To MONAI a text that begins with "$" is Python code, with "%" the content of another file and with "@" another id's, and
a mapping with the key ``_target_`` is a call of what that names.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from attunet3d.errors import ConfigError

# All that a ``network_def`` may name: of a module's attributes only this class, by each of its names.
NETWORKS = frozenset(
    {
        "attunet3d.AttentionUNet",
        "attunet3d.networks.AttentionUNet",
        "attunet3d.networks.attention_unet.AttentionUNet",
    }
)
CURE = (
    "--allow-code (in Python allow_code=True) takes it all the same; with it a preset can run any program, with all "
    "your rights, so that you must trust who wrote it"
)
_MARKS = ("$", "@", "%")
_INSIDE = (*_MARKS, "#")  # "@#" and "%#" mean something to MONAI within a text as well, and "#" is made "::"
MOST_CHARACTERS = 100_000
_MOST_NODES = 10_000
_DEEPEST = 50
_MOST_BITS = 1024  # of a whole number: more no float has, and Python does not print much more
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


def split_id(key: str) -> list[str]:
    """The parts of one of MONAI's nested ids: "network_def::gate", or with "#"."""
    return str(key).replace("#", "::").split("::")


def refuse_code(key: str, value: Any, where: str, may_refer: Callable[[str], bool]) -> None:
    """Pass only values: numbers, texts, and lists and mappings of those, in which nothing is run or looked up.

    Args:
        key: the id that is to be changed.
        value: as it was given.
        where: before the message: the file, or nothing.
        may_refer: whether an id may be referred to, as "@id": by another id as its whole value, or in ``network_def``.

    Raises:
        ConfigError: something else is there.
    """
    found = _special("", key, value) or _code_in("::".join(split_id(key)), value, may_refer)
    if found is not None:
        name, what = found
        raise ConfigError(
            f"{where}id {name!r} is code or wiring and no value ({_SHORT.repr(what)}): write a value (arguments are "
            f"ids of their own, as loss::lambda_ce; a file of such a name is its path from ./ or / on). {CURE}"
        )


def _code_in(name: str, value: Any, may_refer: Callable[[str], bool], depth: int = 0) -> tuple[str, Any] | None:
    """The first id, and its value, that is no plain value."""
    if isinstance(value, str):
        text = value.lstrip()
        if not text.startswith(_MARKS):
            return None
        # In lists and other mappings a few references to one another would make a value without end.
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
    """An id with a part that means something to MONAI, and its value; None if there is none, or an allowed network."""
    name = above + "::".join(split_id(key))
    if name == "network_def::_target_" and is_network(value):
        return None
    parts = [part.strip() for part in split_id(key)]
    special = any(part.startswith((*_MARKS, "+")) or (part.startswith("_") and part.endswith("_")) for part in parts)
    return (name, value) if special else None


def is_plain(name: str, value: Any) -> bool:
    """Whether a value of the bundle's configs is one for all of MONAI, so that nothing is made of it."""
    return _code_in(name, value, lambda _: False) is None


def is_network(target: Any) -> bool:
    """Whether a ``_target_`` is one of `NETWORKS`."""
    return isinstance(target, str) and target in NETWORKS


def for_monai(value: Any, allow_code: bool = False) -> Any:
    """A value that has been checked, such that MONAI takes each path, and each text but references, as it stands.

    With ``allow_code`` texts are left to MONAI; a `Path` is a path in any case.
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
    """A text that MONAI takes as it is, or else the expression of it, in which no mark is left that MONAI knows."""
    if not any(mark in text for mark in _INSIDE):
        return text
    expression = ascii(str(text))
    for mark in _INSIDE:
        expression = expression.replace(mark, f"\\x{ord(mark):02x}")
    return f"${expression}"


class _Loader(yaml.SafeLoader):
    """Without whole numbers that no message could quote."""

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > _MOST_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str | bytes, where: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: UTF-8 where it is bytes.
        where: before the message of an error.

    Raises:
        ConfigError: it is too long, nested too deeply, or its aliases make it so.
        ValueError: it is not YAML.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: more than {MOST_CHARACTERS} characters, which no preset or value needs")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        problem = _excess(yaml.parse(text, yaml.SafeLoader))
        if problem is None:
            return yaml.load(text, _Loader)
    except Exception as error:  # its constructors raise whatever a broken scalar makes them: "!!int x", "2001-13-45"
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from error
    raise ConfigError(f"{where}: {problem}; write the values out, fewer and flatter")


def _excess(events: Iterable[Any]) -> str | None:
    """What makes a YAML text too much, found before anything is built: its aliases count for what they stand for."""
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
                return f"the alias *{event.anchor} stands for nothing, or for what it is a part of"
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
                return f"more than {_MOST_NODES} values, with what its aliases stand for"
    return None
