"""Untrusted JSON gives a value, or a ValueError that says why not."""

from __future__ import annotations

from typing import Any

import pytest

from attunet3d.io.json_text import parse_json

BAD = {
    "nested lists": ("[" * 100_000 + "]" * 100_000, "nested more than 100 deep"),
    "nested objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than 100 deep"),
    "nested, and not ended": ("[" * 100_000, "nested more than 100 deep"),
    "nested less than Python minds": ("[" * 101 + "1" + "]" * 101, "nested more than 100 deep"),
    "a key twice": ('{"a": 1, "a": 2}', 'the key "a" twice'),
    "a number of thousands of digits": ("1" * 5000, "digits"),
    "a break in a text": ('"a\nb"', "control character"),
    "nothing": ("", "Expecting value"),
    "no text": (b"\xff\x00\xfe", "decode"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_json(name: str) -> None:
    content, why = BAD[name]
    with pytest.raises(ValueError, match=why):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("[" * 100 + "]" * 100, None),
        ('{"a": [1, {"b": "\\u0000"}]}', {"a": [1, {"b": "\0"}]}),
        ("1e999", float("inf")),
        ('{"a": 1}'.encode("utf-16"), {"a": 1}),
    ],
)
def test_usable_json(content: Any, value: Any) -> None:
    found = parse_json(content)
    assert value is None or found == value
