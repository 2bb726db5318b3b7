"""JSON Schema of a case's record, made from its types."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from attunet3d.segmenter.record import CaseRecord

_TYPES: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}


def record_schema() -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of ``<name>_seg.json``, with a description of each key."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Record of a segmentation by attunet3d",
        **_schema_of(CaseRecord),
    }


def _schema_of(hint: Any) -> dict[str, Any]:
    if is_typeddict(hint):
        return {
            "description": (hint.__doc__ or "").partition("\n")[0],
            "type": "object",
            "properties": {key: _schema_of(of) for key, of in get_type_hints(hint, include_extras=True).items()},
            "required": sorted(hint.__required_keys__),
            "additionalProperties": False,
        }
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, description, *keywords = arguments
        schema = {"description": description, **_schema_of(base)}
        for more in keywords:
            schema |= more
        return schema
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is dict:
        values = arguments[1]
        return {"type": "object", "additionalProperties": True if values is Any else _schema_of(values)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(one) for one in arguments]}
    return {"type": _TYPES[hint]}
