"""Ways to damage plain values (what JSON, YAML and tables hold) and texts, each drawn from a random generator."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, MutableMapping
from itertools import pairwise
from typing import Any

import yaml
from fuzz_mutations import Rng, any_of, damaged_bytes

# What forged inputs try to write, in the working directory: it must never be there.
MARKER = "written-by-a-forged-input"
COMMAND = f"touch {MARKER}"
UID = "1.2.840.113619.2.55.3.604688"
_DEEP = "\ue000"  # stands in a text for brackets so deep that no serializer would write them: _DEEP, kind, depth, _DEEP
_DEPTHS = [3, 30, 200, 480, 900, 950, 980, 990, 1100, 5000, 100_000]

TEXTS = [
    *("", " ", "nan", "null", "true", "1e5", "0x1f", "1_000", "1" * 5000, "x" * 5000, "ä", "\u202egpj.exe", "e\u0301"),
    *("../../evil", "../evil.nii.gz", "/etc/passwd", "/dev/zero", "C:\\evil", "a\\..\\b", "~root", "./", "..", "."),
    *("\x1b[31mred\x07", "two\nlines", "\r", "\0", "a\0b", "\u2028", "\x85", "\ufeff", "\ud800", "\x7f", "\u200b"),
    *("$1+1", f"$__import__('os').system('{COMMAND}')", f"$open('{MARKER}', 'w')", "$", "$x", "${HOME}", "$import os"),
    *("@channels", "@nowhere", "@", "@network_def", "@threshold#0", "@scales::0", "%configs", "%train.yaml::fold", "%"),
    *("+channels", "_target_", "_disabled_", "__proto__", "%s%n", "{0.__class__}", "'", '"', "`", "#", "::", "a::b"),
    *(UID, f"ct {UID}", "CON", "-rf", "--help", "<b>", "id;path", "=1+1", "|", "&", "*", "!!python/name:os.system"),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 255, 256, 2**31, -(2**31), 2**63, 2**64, 10**30, 10**400, True, False, None),
    *(0.0, -0.0, 0.5, 1.5, 1e-9, 1e9, 1e300, -1e300, 5e-324, float("nan"), float("inf"), float("-inf")),
]
CALLS: list[dict[str, Any]] = [
    {"_target_": "os.system", "command": COMMAND},
    {"_target_": "builtins.open", "file": MARKER, "mode": "w"},
    {"_target_": "subprocess.Popen", "args": ["touch", MARKER]},
    {"_target_": "pathlib.Path.touch", "self": MARKER},
    {"_target_": "builtins.exec", "_args_": [f"open('{MARKER}', 'w')"]},
    {"_target_": "attunet3d.networks.AttentionUNet", "_mode_": "debug", "channels": [4, 4]},
    {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 3},
    {"_target_": "attunet3d.networks.AttentionUNet", "_requires_": f"$__import__('os').system('{COMMAND}')"},
    {"_target_": "", "_disabled_": "x"},
    {"_target_": ["os", "system"]},
]


def nasty(rng: Rng) -> Any:
    """Any value that nobody expects."""
    how = int(rng.integers(8))
    if how < 3:
        return any_of(rng, TEXTS)
    if how < 5:
        return any_of(rng, NUMBERS)
    if how == 5:
        return copy.deepcopy(any_of(rng, CALLS))
    if how == 6:
        return copy.deepcopy(any_of(rng, [[], {}, [None], [[]], {"": None}, [1, "a", None], [0] * 20_000, [[1], [2]]]))
    return f"{_DEEP}{any_of(rng, ['l', 'm'])}{any_of(rng, _DEPTHS)}{_DEEP}"


def damaged_value(rng: Rng, value: Any) -> Any:
    """A copy of a value of dicts and lists with one place changed: another type, name, order, size or depth."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return nasty(rng)
    parent, key = any_of(rng, places)
    how = int(rng.integers(11))
    here = parent[key]
    if how < 4:
        parent[key] = nasty(rng)
    elif how == 4:
        del parent[key]
    elif how == 5:
        other, place = any_of(rng, places)
        parent[key] = copy.deepcopy(other[place])
    elif how == 6:
        parent[key] = any_of(rng, [[here], {"value": here}, [here] * 3, str(here), [here, nasty(rng)]])
    elif how == 7:
        parent[key] = _other_type(rng, here)
    elif how == 8 and isinstance(parent, dict):
        parent[_new_name(rng, key)] = parent.pop(key)
    elif how == 9 and isinstance(parent, dict):
        parent[_new_name(rng, key)] = nasty(rng)
    elif isinstance(parent, list):
        parent.insert(int(rng.integers(len(parent) + 1)), any_of(rng, [copy.deepcopy(here), nasty(rng)]))
    else:
        parent[key] = nasty(rng)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each key of each dict, and each index of each list, that are inside a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _other_type(rng: Rng, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return any_of(rng, [0, "yes", "", [value]])
    if isinstance(value, int) and abs(value) > 2**60:  # more than a float can hold, it may be
        return str(value)
    if isinstance(value, int | float):
        return any_of(rng, [str(value), -value, value + 0.5, value * 10**6, bool(value), [value], f"{value},{value}"])
    if isinstance(value, str):
        return any_of(rng, [list(value), 7, value.upper(), value + "\n", " " + value, value * 100, None, value[::-1]])
    if isinstance(value, list):
        return any_of(rng, [dict(enumerate(value)), value[:1], value * 50, value[::-1], len(value), str(value)])
    return any_of(rng, [list(value), list(value.items()), str(value), next(iter(value), None)])


def _new_name(rng: Rng, name: Any) -> Any:
    text = str(name)
    wrong = [text.upper(), text + "s", text[:-1], text[::-1], f" {text}", f"+{text}", f"{text}::0", f"{text}#0"]
    return any_of(rng, [*wrong, *TEXTS])


def json_text(rng: Rng, value: Any) -> str:
    """A value as JSON, deep brackets written out; now and then with a key twice."""
    text = json.dumps(value, indent=any_of(rng, [None, 2]), ensure_ascii=any_of(rng, [True, False]))
    if rng.random() < 0.05 and (pairs := list(re.finditer(r'"[^"\\]*": ?(?:-?\d+|"[^"\\]*")', text))):
        pair = any_of(rng, pairs)
        text = f"{text[: pair.start()]}{pair[0]}, {text[pair.start() :]}"
    return _deep(text, '"')


def yaml_text(rng: Rng, value: Any) -> str:
    """A value as YAML, deep brackets written out; now and then with what only YAML has: aliases, tags, documents."""
    try:
        text = _deep(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), "")
    except (yaml.YAMLError, RecursionError):
        text = json_text(rng, value)
    if rng.random() > 0.15:
        return text
    keys = [line.partition(":")[0] for line in text.split("\n") if re.match(r"\w+:", line)] or ["channels"]
    key = any_of(rng, keys)
    names = "abcdefghijklmnopqrstuvw"
    bomb = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(names))
    extra = any_of(
        rng,
        [
            f"{key}: &loop [*loop]\n",
            f"{key}: &loop {{a: *loop}}\n",
            bomb + f"{key}: *w\n",
            f"{key}: !!python/object/apply:os.system ['{COMMAND}']\n",
            f"{key}: !!python/object/new:os.system ['{COMMAND}']\n",
            f"{key}: !!binary aGVsbG8=\n",
            f"{key}: !!timestamp 2001-01-01\n",
            f"{key}: 2001-01-01\n",
            f"{key}: !!set {{a, b}}\n",
            f"{key}: !!omap [a: 1]\n",
            f"{key}: !!float x\n",
            f"{key}: !!int ''\n",
            f"{key}: 190:20:30\n",
            f"{key}: 0b11\n",
            f"<<: {{{key}: 1}}\n",
            "? [a, b]\n: c\n",
            "? {a: b}\n: c\n",
            "1: 2\n",
            "null: 2\n",
            "---\na: b\n",
            "%YAML 3.0\n---\n",
            f"{key}: |\n\tx\n",
            f"{key}: *nowhere\n",
        ],
    )
    return any_of(rng, [text + extra, extra + text, extra])


def _deep(text: str, quote: str) -> str:
    escaped = json.dumps(_DEEP)[1:-1]
    pattern = (
        rf"""["']?(?:{_DEEP}|{re.escape(escaped)}|\\uE000)([lm])(\d+)(?:{_DEEP}|{re.escape(escaped)}|\\uE000)["']?"""
    )

    def brackets(found: re.Match[str]) -> str:
        opening, closing = ("[", "]") if found[1] == "l" else ('{"a":', "}")
        return opening * int(found[2]) + (quote * 2 or "0") + closing * int(found[2])

    return re.sub(pattern, brackets, text)


def deep_value(value: Any, most: int = 400) -> Any:
    """A value whose deep places are real lists, for what is no text: not so deep that nothing could write them."""
    if isinstance(value, str) and value.startswith(_DEEP):
        found: Any = 1
        for _ in range(min(int(value[2:-1]), most)):
            found = [found] if value[1] == "l" else {"a": found}
        return found
    if isinstance(value, MutableMapping):
        return type(value)((key, deep_value(item, most)) for key, item in value.items())
    return [deep_value(item, most) for item in value] if isinstance(value, list) else value


def damaged_lines(rng: Rng, text: str, separator: str) -> str:
    """A table or a list with one line, field or separator changed."""
    lines = text.split("\n")
    at, how = int(rng.integers(len(lines))), int(rng.integers(9))
    fields = lines[at].split(separator)
    place = int(rng.integers(len(fields)))
    word = str(deep_value(nasty(rng), 5))
    if how < 3:
        fields[place] = word
    elif how == 3:
        fields.insert(place, any_of(rng, [word, "", fields[place]]))
    elif how == 4:
        del fields[place]
    elif how == 5:
        fields[place] = any_of(rng, ['"', '""', "'", '"a" b', '"' + word, word + '"']) + fields[place]
    lines[at] = separator.join(fields)
    if how == 6:
        lines.insert(int(rng.integers(len(lines) + 1)), any_of(rng, [lines[at], word, "sep=;", "", "\f", ",,,,"]))
    elif how == 7:
        del lines[at]
    elif how == 8:
        lines[at] = lines[at].replace(
            separator, any_of(rng, [";", ",", "\t", "|", " ", separator * 2, "\x1f", "\u2028"])
        )
    return "\n".join(lines)


def encoded(rng: Rng, text: str) -> bytes:
    """Bytes of a text: mostly UTF-8, else as other programs write it, or damaged."""
    if rng.random() < 0.8:
        return text.encode("utf-8", "surrogatepass")
    name = any_of(rng, ["utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-16-le", "cp1252", "utf-7"])
    data = text.replace("\n", any_of(rng, ["\n", "\r\n", "\r"])).encode(name, "replace")
    return data if rng.random() < 0.6 else damaged_bytes(rng, bytearray(data))


def damaged_text(rng: Rng, damages: list[Callable[[], str]]) -> bytes:
    """A text that one of these gives, in most cases as it is, in the others with its bytes damaged."""
    data = encoded(rng, any_of(rng, damages)())
    return damaged_bytes(rng, bytearray(data)) if rng.random() < 0.25 else data
