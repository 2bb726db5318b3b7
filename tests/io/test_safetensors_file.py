"""safetensors files: what is written is read bit for bit, and what is damaged or hostile is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from attunet3d.checkpoint import read_weights, save_weights
from attunet3d.errors import CheckpointError
from attunet3d.io.safetensors_file import MOST_HEADER_BYTES, read_metadata, safetensors_bytes

WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0, dtype=torch.float16).reshape(2, 3).T,
    "bfloat16": torch.tensor([1.5], dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}
ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def written(path: Path, header: Any, data: bytes = bytes(8), length: int | None = None) -> Path:
    """A file of a header, which may be a value or bytes, and of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tied = {**WEIGHTS, "tied": WEIGHTS["a"]}
    path.write_bytes(safetensors_bytes(tied, {"recipe": "ä\n"}))
    found = read_weights(path)
    assert found.keys() == tied.keys()
    for key, value in tied.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    metadata = read_metadata(path)
    assert (metadata.keys(), metadata["recipe"]) == ({"recipe", "sha256"}, "ä\n")
    with safe_open(path, "pt") as other:  # as other programs read it
        assert (other.metadata(), set(other.keys())) == (metadata, set(tied))


def test_files_of_other_programs_have_no_checksum(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert read_weights(tmp_path / "w.safetensors")["a"].tolist() == [1, 1, 1]
    assert read_weights(written(tmp_path / "plain", ONE))["a"].tolist() == [0, 0]


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_weights({"a": torch.ones(3)}, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes()[8:9] == b"{"
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.pt")
    (tmp_path / "torch").rename(tmp_path / "w.safetensors")
    assert len(read_weights(tmp_path / "w.pt")["a"]) == 3
    assert len(read_weights(tmp_path / "w.safetensors")["a"]) == 2


def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    content = safetensors_bytes(WEIGHTS, {"recipe": "{}"})
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = read_weights(path)
        except CheckpointError:
            continue
        assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items()), place


def test_every_length_that_is_too_short_is_found(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    content = safetensors_bytes({"a": torch.ones(3)}, {})
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"w\.safetensors: "):
            read_weights(path)


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "header longer than the file": lambda path: written(path, ONE, length=10_000),
    "header of all addresses": lambda path: written(path, ONE, length=2**64 - 1),
    "header too long": lambda path: written(path, json.dumps(ONE).encode() + b" " * MOST_HEADER_BYTES),
    "header shorter than its JSON": lambda path: written(path, ONE, length=9),
    "tensor twice": lambda path: written(path, b'{"a": %b, "a": %b}' % ((json.dumps(ONE["a"]).encode(),) * 2)),
    "metadata twice": lambda path: written(
        path, b'{"__metadata__": {}, "__metadata__": {}, %b' % json.dumps(ONE).encode()[1:]
    ),
    "recipe twice": lambda path: written(
        path, b'{"__metadata__": {"recipe": "1", "recipe": "2"}, %b' % json.dumps(ONE).encode()[1:]
    ),
    "dtype twice": lambda path: written(path, json.dumps(ONE).replace('"dtype"', '"dtype": "F64", "dtype"').encode()),
    "nested metadata": lambda path: written(path, {"__metadata__": {"recipe": {"format": 1}}, **ONE}),
    "metadata of numbers": lambda path: written(path, {"__metadata__": {"recipe": 1}, **ONE}),
    "metadata as a list": lambda path: written(path, {"__metadata__": ["recipe"], **ONE}),
    "no metadata": lambda path: written(path, {"__metadata__": None, **ONE}),
    "wrong checksum": lambda path: written(path, {"__metadata__": {"sha256": "0" * 64}, **ONE}),
    "unknown dtype": lambda path: written(path, {"a": {**ONE["a"], "dtype": "F99"}}),
    "dtype of another size": lambda path: written(path, {"a": {**ONE["a"], "dtype": "F64"}}),
    "dtype as a number": lambda path: written(path, {"a": {**ONE["a"], "dtype": 7}}),
    "offsets beyond": lambda path: written(path, {"a": {**ONE["a"], "shape": [4], "data_offsets": [0, 16]}}),
    "offsets the wrong way round": lambda path: written(path, {"a": {**ONE["a"], "data_offsets": [8, 0]}}),
    "negative offsets": lambda path: written(path, {"a": {**ONE["a"], "data_offsets": [-8, 0]}}),
    "a hole": lambda path: written(path, {"a": {**ONE["a"], "data_offsets": [8, 16]}}, bytes(16)),
    "data without a tensor": lambda path: written(path, ONE, bytes(16)),
    "two in one place": lambda path: written(path, {**ONE, "b": ONE["a"]}),
    "huge shape": lambda path: written(path, {"a": {**ONE["a"], "shape": [2**40, 2**40]}}),
    "huge empty shape": lambda path: written(
        path, {"a": {**ONE["a"], "shape": [0, 2**70], "data_offsets": [0, 0]}}, b""
    ),
    "shape of texts": lambda path: written(path, {"a": {**ONE["a"], "shape": ["2"]}}),
    "shape of fractions": lambda path: written(path, {"a": {**ONE["a"], "shape": [2.5]}}),
    "no offsets": lambda path: written(path, {"a": {"dtype": "F32", "shape": [2]}}),
    "a tensor as a text": lambda path: written(path, {"a": "F32"}),
    "nothing": lambda path: written(path, {}, b""),
    "deep": lambda path: written(path, b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "nested": lambda path: written(path, b'{"a":' * 90 + b"1" + b"}" * 90),
    "no UTF-8": lambda path: written(path, b'{"\xff": 1}'),
    "UTF-16": lambda path: written(path, b"{\0" + "}".encode("utf-16-le")),
    "no JSON": lambda path: written(path, b"{a: 1}"),
    "not a number": lambda path: written(path, b'{"a": NaN}'),
    "a number without end": lambda path: written(path, b'{"a": %b}' % (b"9" * 5000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    path = HOSTILE[name](tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors: (damaged \(.+\); copy it again|contains no state)"
    ) as refused:
        read_weights(path)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()
