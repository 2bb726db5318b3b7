"""Read and write safetensors files, with limits on their size and with a checksum, which the format itself lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.io.json_text import json_text, parse_json

if TYPE_CHECKING:
    from torch import Tensor

# A file begins with the length of its header, 8 bytes, and the header, a JSON object.
_LENGTH = 8
START_BYTES = _LENGTH + 1
MOST_HEADER_BYTES = 2**22  # the bundle's weights with their recipe have 20,712
_METADATA, _CHECKSUM = "__metadata__", "sha256"


def is_safetensors(start: bytes) -> bool:
    """Return whether the first ``START_BYTES`` of a file are those of safetensors."""
    return start[_LENGTH:START_BYTES] == b"{"


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file, without its tensors.

    Raises:
        OSError: the file cannot be read.
        ValueError: the header is truncated, too long, or not that of a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(file.read(_LENGTH), size)
        return _metadata(_parsed(file.read(length)))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file into memory, and verify its checksum if it has one.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or not a safetensors file.
    """
    content = path.read_bytes()
    if _metadata(_header(content)).get(_CHECKSUM, digest := _digest(content)) != digest:
        raise ValueError("its checksum does not match")
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
    except Exception as error:  # the library and torch raise many types for a header that does not fit the file
        raise ValueError(str(error) or type(error).__name__) from error
    return tensors


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file for these tensors.

    Args:
        tensors: dense tensors, which may share memory; their values are kept bit for bit.
        metadata: texts; the checksum of the whole content is added as "sha256".
    """
    import torch
    from safetensors.torch import save

    dense = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    content = save(dense, metadata=dict(metadata))
    # The header anew: the library writes metadata in an order of chance, and the same weights are to be the same file.
    header = {**_header(content), _METADATA: {**metadata, _CHECKSUM: _digest(content)}}
    text = json_text(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # tensors are aligned
    values = memoryview(content)[_LENGTH + _header_length(content, len(content)) :]
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, values))


def _digest(content: bytes) -> str:
    """Hash the header, with sorted keys and without the checksum itself, and the tensors."""
    header = _header(content)
    metadata = {key: value for key, value in _metadata(header).items() if key != _CHECKSUM}
    digest = hashlib.sha256(json_text({**header, _METADATA: metadata}, sort_keys=True).encode())
    digest.update(memoryview(content)[_LENGTH + _header_length(content, len(content)) :])
    return digest.hexdigest()


def _header(content: bytes) -> dict[str, Any]:
    return _parsed(content[_LENGTH : _LENGTH + _header_length(content, len(content))])


def _header_length(start: bytes, size: int) -> int:
    length = int.from_bytes(start[:_LENGTH], "little")
    if length > size - _LENGTH:
        raise ValueError(f"truncated: {size} bytes, of which the header alone would need {length}")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, more than {MOST_HEADER_BYTES}")
    return length


def _parsed(header: bytes) -> dict[str, Any]:
    content = parse_json(header.decode("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("its header is not a JSON object")
    return content


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not texts")
    return metadata
