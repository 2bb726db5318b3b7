"""Network weights in files of torch or safetensors: tensors only, no pickle is run."""

from __future__ import annotations

import hashlib
import io
import pickletools
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from attunet3d.config.recipe import METADATA, add_recipe, read_recipe, recipe_text
from attunet3d.errors import CheckpointError
from attunet3d.io.safetensors_file import START_BYTES, is_safetensors, read_safetensors, safetensors_bytes
from attunet3d.io.weights_format import ARCHIVE_ERRORS
from attunet3d.io.writer import atomic_path

_ZIP = b"PK\x03\x04"  # start of a file of torch; before 1.6 it was five pickles, followed by the numbers
_PICKLES = 5
_MOST_ITEMS = 1000  # of a tuple, nested ones included
_HINT = "copy it again, or take other weights of the run"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a checkpoint; no pickle is run.

    Args:
        checkpoint: a safetensors file, or one of torch with only tensors at the top level or under the key "model";
            recognized by its content, not its name.

    Raises:
        CheckpointError: the file is missing or damaged, or contains anything but tensors.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give a model.pt that training wrote")
    content = _safetensors(path) if _is_safetensors(path) else read_tensors(path, _HINT)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: contains no state dict of tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not is_plain_tensor(value):
            raise CheckpointError(
                f"{path}: contains no state dict of tensors: {key!r:.80} is {_described(value)}; give a model.pt of a "
                "training run"
            )
    return content


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_safetensors(file.read(START_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_HINT}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_safetensors(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split()):.200}); {_HINT}") from error


def is_plain_tensor(value: Any) -> bool:
    """Return whether a value is a dense tensor: not sparse, quantized, nested, expanded or meta."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()  # not expanded
    )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "quantized" if value.is_quantized else "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
    return f"a tensor that is {'expanded' if kind == 'strided' else kind}"


def read_tensors(path: Path, hint: str) -> Any:
    """Read what ``torch.save`` wrote: tensors and plain values. No pickle is run, and checksums are compared.

    Args:
        path: the file.
        hint: for messages: what to do if it is damaged.

    Raises:
        CheckpointError: the file is truncated or damaged, or contains anything else.
    """
    damage = archive_damage(path)
    if damage:
        raise CheckpointError(f"{path}: damaged ({damage}); {hint}")
    try:
        _check_tuples(path)
        with path.open("rb") as file, warnings.catch_warnings():
            # Torch warns of old formats, and of foreign ones, which it then refuses.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)  # a path's suffix would count too
    except Exception as error:  # torch raises many types for files that it did not write
        raise CheckpointError(f"{path}: not a checkpoint of tensors only, so it is not loaded; {hint}") from error


def archive_damage(path: Path, most_times: int = 1) -> str | None:
    """Verify the checksums of an archive that torch wrote, which torch itself does not do.

    Args:
        path: the file; one that is not an archive is left to torch.
        most_times: largest unpacked size that is read, as a multiple of the size of the file.

    Returns:
        What is wrong with the file, or None.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _ZIP:
                return None
        with zipfile.ZipFile(path) as archive:
            if sum(i.file_size for i in archive.infolist()) > most_times * path.stat().st_size:
                return "compressed, which torch's files are not"
            # Torch silently reads nothing from an entry that is marked as a folder.
            broken = archive.testzip() or next((i.filename for i in archive.infolist() if i.external_attr & 0x10), None)
    except ARCHIVE_ERRORS as error:
        return f"truncated, or {' '.join(str(error).split()) or type(error).__name__}"
    return f"{broken} does not match its checksum" if broken else None


def _check_tuples(path: Path) -> None:
    """Raise ValueError for deeply shared nested tuples: hashing one would take forever."""
    with path.open("rb") as file:
        if file.read(4) != _ZIP:
            file.seek(0)
            for _ in range(_PICKLES):
                _check_tuples_in(file)
            return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.lower().endswith(".pkl"):
                _check_tuples_in(io.BytesIO(archive.read(entry)))


def _check_tuples_in(file: IO[bytes]) -> None:
    """Check the tuples of a pickle like ``_check_tuples``, without running it."""
    stack: list[int] = []  # for each object the number of its items, nested ones included
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(file):
        name, taken = operation.name, operation.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        else:
            below = taken.index(pickletools.markobject) if pickletools.markobject in taken else len(taken)
            first = (len(stack) if below == len(taken) else marks.pop()) - below
            size = 1 + sum(stack[first:]) if name.startswith("TUPLE") else memo[argument] if name.endswith("GET") else 1
            if size > _MOST_ITEMS:
                raise ValueError(f"a tuple of more than {_MOST_ITEMS} items")
            stack[first:] = [size] * len(operation.stack_after)


def load_weights(network: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint, of any float precision, into ``network``.

    Raises:
        CheckpointError: the file cannot be read, or its weights belong to another network.
    """
    fit_weights(network, read_weights(checkpoint), checkpoint)


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict into a network.

    The head of auxiliary classes, which only training uses, may be missing in either.

    Args:
        network: gets the weights.
        weights: the state dict.
        source: the file it comes from, for messages.

    Raises:
        CheckpointError: the weights belong to another network.
    """
    own = network.state_dict()
    both = without_auxiliary(own).keys() | (own.keys() & weights.keys())
    given = {key: value for key, value in weights.items() if key in both or not _auxiliary(key)}
    problem = _misfit({key: value for key, value in own.items() if key in both}, given)
    if problem:
        raise CheckpointError(f"{source}: does not fit this network ({problem}); give the preset it was trained with")
    network.load_state_dict({**own, **given})


def without_auxiliary(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the head of auxiliary classes, which inference does not need."""
    return {key: value for key, value in weights.items() if not _auxiliary(key)}


def mean_weights(checkpoints: Sequence[str | Path]) -> dict[str, Tensor]:
    """Return the mean weights of several runs, each of which started from the previous one.

    They transfer better than those of the last run.
    Source: stochastic weight averaging, Izmailov et al., arXiv:1803.05407.

    Raises:
        CheckpointError: a file cannot be read, or its weights do not match those of the first.
    """
    states = [read_weights(path) for path in checkpoints]
    for path, state in zip(checkpoints, states, strict=True):
        problem = _misfit(states[0], state)
        if problem:
            raise CheckpointError(f"{path}: does not fit {checkpoints[0]} ({problem}); give checkpoints of one network")
    means = {key: torch.stack([state[key].float() for state in states]).mean(0) for key in states[0]}
    return {key: mean.to(states[0][key].dtype) for key, mean in means.items()}


def _auxiliary(key: str) -> bool:
    return key.startswith("auxiliary.")


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted]
    if missing or extra:
        first = f"it lacks {missing[0]}" if missing else f"it also has {extra[0]}"
        return f"{len(missing)} keys missing, {len(extra)} unknown: {first}"
    for key, value in wanted.items():
        if given[key].shape != value.shape:
            return f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        if given[key].is_complex() or (value.is_floating_point() and given[key].dtype not in _FLOATS):
            return f"{key} is of {_name(given[key].dtype)}, not of {_name(value.dtype)}"
        if not bool(torch.isfinite(given[key].to(value.dtype)).all()):
            return f"{key} has values that are not finite"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def common_recipe(checkpoints: Sequence[str | Path]) -> dict[str, Any] | None:
    """Return the recipe that all checkpoints share, for their mean weights; None if they differ or one has none.

    Raises:
        CheckpointError: a recipe cannot be read.
    """
    first, *others = [read_recipe(path) for path in checkpoints]
    return first if all(other == first for other in others) else None


def save_weights(
    weights: Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype = torch.float16,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Write a state dict atomically, with floating-point tensors in ``dtype``: half precision halves the file.

    Args:
        weights: the state dict.
        path: of the file; the suffix .safetensors chooses that format, any other one torch's.
        dtype: of the floating-point tensors.
        recipe: of these weights, as from ``read_recipe`` or ``common_recipe``.

    Raises:
        OutputError: the file cannot be written.
    """
    compact = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    as_safetensors = Path(path).suffix.lower() == ".safetensors"
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes((saved_as_safetensors if as_safetensors else saved)(compact, recipe))
    return Path(path)


def saved(content: Any, recipe: Mapping[str, Any] | None = None) -> memoryview:
    """Return the bytes that ``torch.save`` writes, with a recipe added."""
    buffer = io.BytesIO()  # not the file itself: torch's error for a full disk is unclear
    torch.save(content, buffer)
    if recipe is not None:
        add_recipe(buffer, recipe)
    return buffer.getbuffer()


def saved_as_safetensors(weights: Mapping[str, Tensor], recipe: Mapping[str, Any] | None = None) -> bytes:
    """Return a state dict as the content of a safetensors file, with the recipe in its metadata."""
    return safetensors_bytes(weights, {} if recipe is None else {METADATA: recipe_text(recipe)})


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
