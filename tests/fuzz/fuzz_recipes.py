"""Damaged and forged recipes inside weights, in torch's archives and in safetensors files."""

from __future__ import annotations

import dataclasses
import json
import warnings
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from fuzz_mutations import Rng, any_of, damaged_bytes
from fuzz_target import Fault
from fuzz_values import damaged_text, damaged_value, json_text, nasty
from fuzz_weights import saved
from safetensors.torch import save
from torch import nn

_MORE_GB = 0.6  # for a session and a CT, beyond what the process holds
_NAMES = [
    *("archive/recipe.json", "archive/RECIPE.JSON", "archive/recipe.json/", "archive/./recipe.json", "recipe.json"),
    *("archive\\recipe.json", "other/recipe.json", "../recipe.json", "/recipe.json", "archive/recipe.json\0.txt"),
    *("archive/extra/recipe.json", "archive/data.pkl", "archive/data/0", "archive/version", "archive/\u202e", ""),
]
# Most of these are values that a recipe may have, and the next one that it may not.
_EXTREMES: dict[str, list[Any]] = {
    "spacing": [[1e-3] * 3, [1e3] * 3, [1e-3, 1e3, 1e3], [1e3, 6.0, 1e-3], [6, 6, 6], [9e-4] * 3],
    "antialias": [True],
    "hu_window": [[-1e6, 1e6], [0.0, 5e-324], [-5e-324, 0.0], [1e6 - 1e-9, 1e6], [-1e6, -1e6 + 1], [0, 1], [1e6, 2e6]],
    "roi_size": [[1, 1, 1], [-1, -1, -1], [2**40] * 3, [-1, 1, 2**40], [16, 16, 16], [2**40 + 1] * 3, [0, 0, 0]],
    "max_window_voxels": [1, 2**40, None, 4096, 0],
    "overlap": [0, 1, 0.999, 0.999999999, 1.0, 5e-324, 1.001],
    "skip_below": [None, -1e6, 1e6, 0],
    "body_threshold": [None, -1e6, 1e6, 0],
    "scales": [[0.5], [2], [0.5] * 19, [0.5, 2.0], [1.0, 1.0], [1.0000001], [0.5] * 20, []],
    "threshold": [0, 1, 5e-324, 1 - 1e-16, -5e-324],
    "keep_components": [0, 1, 5e-324, 0.999],
}


class Recipes:
    """Weights with a recipe: they are inspected, and a CT is segmented with them."""

    kinds = (
        "recipes archive",
        "recipes metadata",
        "recipes extremes",
        "recipes networks",
        "recipes members",
        "recipes header",
        "recipes bytes",
    )

    def __init__(self, network: nn.Module, recipe: Mapping[str, Any], ct: Path) -> None:
        self._state = {key: value.detach().clone() for key, value in network.state_dict().items()}
        self._recipe = {"format": 1, **recipe}
        self._ct = ct

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        whole = json.dumps(self._recipe)
        if kind in ("recipes networks", "recipes extremes"):
            other = _other_network if kind == "recipes networks" else _with_extremes
            text = json.dumps(other(rng, self._recipe)).encode()
            data = self._archive(text) if rng.random() < 0.5 else self._safetensors(text)
        elif kind == "recipes members":
            data = _with_odd_members(rng, saved(self._state), whole.encode())
        elif kind == "recipes header":
            data = _with_odd_header(rng, self._safetensors(whole.encode()))
        elif kind == "recipes bytes":
            data = damaged_bytes(rng, bytearray(self._safetensors(whole.encode())))
        else:
            text = _odd_text(rng, self._recipe)
            data = self._archive(text) if kind == "recipes archive" else self._safetensors(text)
        (folder / str(any_of(rng, ["model.pt", "model.safetensors", "model"]))).write_bytes(data)

    def _archive(self, text: bytes) -> bytes:
        return _appended(saved(self._state), [("archive/recipe.json", text)])

    def _safetensors(self, text: bytes) -> bytes:
        content: bytes = save(self._state, metadata={"recipe": text.decode("utf-8", "replace")})
        return content

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.errors import AttUNet3dError
        from attunet3d.io.json_text import json_text
        from attunet3d.runtime import inspect_weights

        (path,) = folder.iterdir()
        refused: AttUNet3dError | None = None
        loadable = False
        try:
            report = inspect_weights(path)
            loadable = report.loadable
            json_text(dataclasses.asdict(report))
        except AttUNet3dError as error:
            refused = error
        said = self._segment(path, folder / "output")
        if refused is not None:
            raise Fault(f"segments with what cannot be inspected: {refused}")
        if not loadable:
            raise Fault(f"segments with what cannot be loaded: {report.verdict}")
        return said

    def _segment(self, path: Path, output: Path) -> str:
        from fuzz_images import segmented

        from attunet3d import Segmenter
        from attunet3d.runtime.process_memory import resident_bytes

        limit = (resident_bytes() or 0) / 1e9 + _MORE_GB
        session = Segmenter(path, device="cpu", precision="fp32", backend="torch", memory_limit=limit)
        return segmented(session, self._ct, output)


def _odd_text(rng: Rng, recipe: Mapping[str, Any]) -> bytes:
    """A recipe with one or two values changed, and now and then its bytes; or another text."""
    if rng.random() < 0.1:
        return json.dumps(any_of(rng, [[], None, "", 1, [recipe], {"recipe": recipe}])).encode()
    content: Any = dict(recipe)
    for _ in range(int(any_of(rng, [1, 1, 2]))):
        content = damaged_value(rng, content)
    return damaged_text(rng, [lambda: json_text(rng, content)])


def _with_extremes(rng: Rng, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of values that it may have, as far out as they go."""
    found = dict(recipe)
    for key in rng.choice(list(_EXTREMES), int(rng.integers(1, 4)), replace=False):
        found[str(key)] = any_of(rng, _EXTREMES[str(key)])
    return found


def _other_network(rng: Rng, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of another network: in the ids, in the network, or in both."""
    widths = any_of(
        rng,
        [[4, 4, 8, 8], [8] * 5, [2048] * 10, [2048] * 5, [16, 32, 64, 128, 256], [1] * 10, [4, 4, 8, 8, 8, 8], [4, 4]],
    )
    arguments: dict[str, Any] = any_of(
        rng,
        [
            {"channels": widths},
            {"out_channels": any_of(rng, [3, 2048, 1])},
            {"gate": any_of(rng, ["additive", None])},
            {"gates_per_skip": any_of(rng, [2, 10, 11])},
            {"gate_first_skip": True},
            {"deep_supervision": False},
            {"upsample": "conv"},
            {"dropout": any_of(rng, [0.5, 1.0])},
            {"input_mean": any_of(rng, [1e6, -1e6, 0.3]), "input_std": any_of(rng, [1e-6, 1e6, 0.0])},
            {"auxiliary_channels": 3},
            {"spatial_dims": 2},
            {"in_channels": 2},
        ],
    )
    named = {"channels": "channels", "out_channels": "num_classes"}
    ids = {named[key]: value for key, value in arguments.items() if key in named}
    if ids and rng.random() < 0.4:
        return {**recipe, **ids}
    return {**recipe, **(ids if rng.random() < 0.6 else {}), "network_def": recipe["network_def"] | arguments}


def _with_odd_members(rng: Rng, archive: bytes, text: bytes) -> bytes:
    """An archive with the recipe under another name, more than once, compressed, or with flags that mean something."""
    how = int(rng.integers(6))
    name = str(any_of(rng, _NAMES))
    if how == 0:
        return _appended(archive, [(name, text)])
    if how == 1:
        return _appended(archive, [("archive/recipe.json", text), (name, any_of(rng, [text, b"{}", b""]))])
    if how == 2:
        large = any_of(rng, [text, b" " * 10**7, b'{"a": ' * 10**5])
        return _appended(archive, [("archive/recipe.json", large)], int(any_of(rng, [8, 12, 14])))
    data = bytearray(_appended(archive, [("archive/recipe.json", text)]))
    if how == 5:  # somewhere in the directory at the end
        directory = len(data) - 2000
        return bytes(data[:directory]) + damaged_bytes(rng, data[directory:])
    header = data.index(b"archive/recipe.json") - 30
    entry = data.rindex(b"archive/recipe.json") - 46
    field = int(any_of(rng, [2, 4, 6, 10, 14, 18, 22, 26]))  # version, flags, method, date, CRC, sizes, length of name
    wrong = rng.bytes(2)
    if how == 3:
        data[header + 2 + field : header + 4 + field] = wrong
    data[entry + 4 + field : entry + 6 + field] = wrong
    return bytes(data)


def _appended(archive: bytes, members: list[tuple[str, bytes]], packed: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as records, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there already
        for name, content in members:
            records.writestr(zipfile.ZipInfo(name), content, packed)
    return buffer.getvalue()


def _with_odd_header(rng: Rng, content: bytes) -> bytes:
    """A safetensors file with another header, or another length of it."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = int(rng.integers(6))
    if how == 0:
        wrong = any_of(rng, [0, 1, length - 1, length + 1, len(content), 10**8, 2**31, 2**63, 2**64 - 1])
        return wrong.to_bytes(8, "little") + content[8:]
    if how == 1:
        header["__metadata__"] = any_of(
            rng, [nasty(rng), {"recipe": nasty(rng)}, {"recipe": {"format": 1}}, {"recipe": None}, [], {}]
        )
    elif how == 2:
        name = str(any_of(rng, [key for key in header if key != "__metadata__"]))
        field = any_of(rng, ["dtype", "shape", "data_offsets"])
        odd = any_of(
            rng, ["F64", "F16", "F8_E4M3", "F4", "C64", "BOOL", "I64", [], [0], [2**63], [0, 0], [0, 2**62], -1]
        )
        header[name][field] = odd
    elif how == 3:
        header = dict(reversed(header.items())) if rng.random() < 0.3 else damaged_value(rng, header)
    else:
        header = damaged_value(rng, header)
    text = json_text(rng, header).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        text = damaged_bytes(rng, bytearray(text))
    return len(text).to_bytes(8, "little") + text + data
