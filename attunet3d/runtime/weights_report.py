"""Describe a file of weights or an exported network, and whether it can be used here."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attunet3d.checkpoint import archive_damage, file_sha256, fit_weights, read_weights
from attunet3d.config.changes import inference_values
from attunet3d.config.recipe import MEMBER, METADATA, make_recipe, parse_recipe, read_recipe, stored_recipe
from attunet3d.errors import AttUNet3dError, CheckpointError
from attunet3d.io.paths import existing
from attunet3d.io.weights_format import WeightsFormat, weights_format
from attunet3d.networks.attention_unet import AttentionUNet
from attunet3d.networks.from_weights import UNSEEN, arguments_of
from attunet3d.runtime.loading import build_network

_EXPORTED = "exported for other programs; here use the weights that it was exported from"
_HINT = "copy it again, or export it again"
_MOST_TIMES = 20  # limit of the compression ratio of TorchScript's code


@dataclass(frozen=True)
class WeightsReport:
    """Description of a file of weights, or of an exported network.

    Attributes:
        format: "torch", "safetensors", "torchscript" or "onnx".
        size: size of the file in bytes.
        sha256: hash of the file, hexadecimal, as in records.
        network: arguments of the ``AttentionUNet`` in the file; None if it is another network, or unknown.
        parameters: number of trained values; None if unknown.
        dtypes: dtypes of the trained values, such as ("float16",); empty for an exported network.
        recipe: recipe of the weights, if any.
        assumed: values that are used instead of a recipe; None with a recipe, or for an exported network.
        loadable: whether the file can be used as a checkpoint.
        verdict: why it can be used, or why not.
        warnings: warnings about its use.
    """

    format: WeightsFormat
    size: int
    sha256: str
    network: dict[str, Any] | None
    parameters: int | None
    dtypes: tuple[str, ...]
    recipe: dict[str, Any] | None
    assumed: dict[str, Any] | None
    loadable: bool
    verdict: str
    warnings: tuple[str, ...]


def inspect_weights(path: str | Path) -> WeightsReport:
    """Describe a file of weights, or an exported network, without running code in it.

    Raises:
        InputNotFoundError: the file does not exist.
        CheckpointError: the file or its recipe is damaged, or it has no weights.
    """
    path = existing(path)
    found = weights_format(path)
    if found is None:
        raise CheckpointError(f"{path}: no weights and no exported network; give a model.pt that training wrote")
    return _of_export(path, found) if found in ("onnx", "torchscript") else _of_weights(path, found)


def _of_weights(path: Path, found: WeightsFormat) -> WeightsReport:
    weights = read_weights(path)
    recipe = read_recipe(path)
    warnings: list[str] = []
    values = inference_values((), {"checkpoint": path}, False, warnings.append)
    network = arguments_of(weights)
    definition = (recipe or {}).get("network_def")
    if network is not None and definition is not None:
        network |= {name: definition[name] for name in UNSEEN}
    trained = {key: value for key, value in weights.items() if _is_trained(key, value)}
    problem = _problem(path, values, weights)
    return WeightsReport(
        format=found,
        size=path.stat().st_size,
        sha256=file_sha256(path),
        network=network,
        parameters=sum(value.numel() for value in trained.values()),
        dtypes=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in trained.values()})),
        recipe=recipe,
        assumed=make_recipe(values) if recipe is None else None,
        loadable=problem is None,
        verdict=problem or f"can be used as a checkpoint{'' if recipe else ', with the assumed values'}",
        warnings=tuple(warnings),
    )


def _is_trained(key: str, value: Tensor) -> bool:
    return value.is_floating_point() and not key.endswith(("running_mean", "running_var"))


def _problem(path: Path, values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str | None:
    try:
        fit_weights(build_network(values["network_def"]), weights, path)
    except AttUNet3dError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _of_export(path: Path, found: WeightsFormat) -> WeightsReport:
    warnings = []
    if found == "onnx" and importlib.util.find_spec("onnx") is None:
        text = None
        warnings.append("onnx is not installed, so that its metadata are not read: pip install 'attunet3d[onnx]'")
    else:
        text = _onnx_recipe(path) if found == "onnx" else _torchscript_recipe(path)
        if text is None:
            warnings.append("no recipe: another program wrote it, or it is of another network")
    recipe = None if text is None else parse_recipe(text, path)
    definition = dict((recipe or {}).get("network_def", {}))
    definition.pop("_target_", None)
    return WeightsReport(
        format=found,
        size=path.stat().st_size,
        sha256=file_sha256(path),
        network=definition or None,
        parameters=_parameters(definition) if definition else None,
        dtypes=(),
        recipe=recipe,
        assumed=None,
        loadable=False,
        verdict=_EXPORTED,
        warnings=tuple(warnings),
    )


def _parameters(definition: Mapping[str, Any]) -> int:
    with torch.device("meta"):  # takes no memory, for any definition
        return sum(value.numel() for value in AttentionUNet(**definition).parameters())


def _torchscript_recipe(path: Path) -> bytes | None:
    damage = archive_damage(path, _MOST_TIMES) if zipfile.is_zipfile(path) else "truncated, or no archive"
    if damage:
        raise CheckpointError(f"{path}: damaged ({damage}); {_HINT}")
    return stored_recipe(path, f"extra/{MEMBER}")


def _onnx_recipe(path: Path) -> bytes | None:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        texts = [prop.value for prop in model.metadata_props if prop.key == METADATA]
        if not model.graph.node or len(texts) > 1:
            raise ValueError(f"{len(model.graph.node)} operators, {len(texts)} recipes")
    except Exception as error:  # protobuf raises types of its own
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split()):.200}); {_HINT}") from error
    return texts[0].encode() if texts else None
