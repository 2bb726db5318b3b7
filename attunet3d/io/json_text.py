"""Parse untrusted JSON, and format JSON that is safe to print on terminals."""

from __future__ import annotations

import json
from typing import Any

_MOST_LEVELS = 100  # deeper nesting can exceed Python's recursion limit


def parse_json(content: str | bytes) -> Any:
    """Parse a JSON text; bytes may be UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: invalid JSON, nested more than 100 deep, with a number of thousands of digits, or a duplicate key.
    """
    try:
        value = json.loads(content, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MOST_LEVELS} deep") from None
    level = [value]
    for _ in range(_MOST_LEVELS + 1):
        level = [item for one in level for item in _items(one)]
    if level:
        raise ValueError(f"it is nested more than {_MOST_LEVELS} deep")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'it has the key "{key}" twice in one object; only one of them would be used')
        found[key] = value
    return found


def _items(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def json_text(value: Any, **how: Any) -> str:
    """Format a value as JSON in printable ASCII.

    Args:
        value: of types that JSON has.
        how: arguments of ``json.dumps``.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, allow_nan=False, **how).replace("\x7f", "\\u007f")  # json.dumps escapes all others
