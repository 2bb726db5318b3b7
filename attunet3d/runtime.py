"""Where and in which precision the network runs, and how its weights are read and written."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attunet3d.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from attunet3d.networks import AttentionUNet

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device to run on: "auto" is the GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is no device, or this machine lacks it.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f'device {device!r} is not known: use "auto", "cpu" or "cuda" (or "cuda:1")') from error
    if chosen.type == "cuda" and not (torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()):
        raise ConfigError(
            f'device "{device}" is not there: torch sees {torch.cuda.device_count()} CUDA devices; use "cpu"'
        )
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f'device "{device}" is not supported: use "auto", "cpu" or "cuda"')
    return chosen


def choose_precision(precision: str, device: torch.device, training: bool = False) -> torch.dtype:
    """The dtype of the network's arithmetic: "fp32", "bf16", "fp16", or "auto" for the fastest the device does well.

    fp16 is never chosen for training: its gradients underflow without loss scaling.

    Raises:
        ConfigError: an unknown name, fp16 on a CPU, or fp16 for training.
    """
    if precision == "auto":
        if device.type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
            return torch.float32 if training else torch.float16
        if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16
        return torch.float32
    if precision not in PRECISIONS:
        raise ConfigError(f'precision {precision!r} is not known: use "auto", {", ".join(PRECISIONS)}')
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError('precision "fp16" is for GPUs: on a CPU use "auto", "bf16" or "fp32"')
    if precision == "fp16" and training:
        raise ConfigError('precision "fp16" is for inference: train with "auto", "bf16" or "fp32"')
    return PRECISIONS[precision]


class MixedPrecision(nn.Module):
    """Run a network under autocast with channels-last volumes; weights stay float32 and logits come out float32.

    It shares the parameters of ``network``: weights loaded into that later take effect here.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(device=device, memory_format=torch.channels_last_3d)
        self.device_type = device.type
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, C, X, Y, Z) -> logits (B, classes, X, Y, Z), float32."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        low = self.dtype != torch.float32 and not (torch.is_grad_enabled() and self._gradients_break(x.shape[2]))
        with torch.autocast(self.device_type, self.dtype, enabled=low):
            logits: Tensor = self.network(x)
        return logits.float()

    def _gradients_break(self, depth: int) -> bool:
        """Whether some level of the network has a first axis of 2 voxels on a CPU.

        There torch 2.13 (oneDNN) returns uninitialized memory as the bf16 weight gradient of a 3x3x3 convolution.
        """
        levels = range(int(getattr(self.network, "min_size", 1)).bit_length())
        return self.device_type == "cpu" and any(depth >> level == 2 for level in levels)


def prepare(
    network: nn.Module, device: str | torch.device = "auto", precision: str = "auto", training: bool = False
) -> MixedPrecision:
    """Put a 3D network on its device, in its memory format and precision (see `choose_device`, `choose_precision`)."""
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen, training)
    logger.info("network on %s in %s", chosen, str(dtype).removeprefix("torch."))
    return MixedPrecision(network, chosen, dtype)


def read_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: a file of tensors alone, or of one under the key "model". No pickle is run.

    Raises:
        CheckpointError: the file is missing, is no checkpoint, or holds anything but tensors.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give a model.pt that training wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not its own
        raise CheckpointError(f"{path}: not a checkpoint of tensors alone, so it is not loaded") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    return content


def load_weights(network: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint of this package's own format (any float precision) into ``network``.

    Raises:
        CheckpointError: the file cannot be read, or its weights belong to another network.
    """
    weights = read_weights(checkpoint)
    problem = _misfit(network.state_dict(), weights)
    if problem:
        raise CheckpointError(
            f"{checkpoint}: does not fit this network ({problem}); give the preset it was trained with"
        )
    network.load_state_dict(weights)


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted]
    if missing or extra:
        first = f"it lacks {missing[0]}" if missing else f"it has {extra[0]} besides"
        return f"{len(missing)} keys missing, {len(extra)} unknown: {first}"
    for key, value in wanted.items():
        if given[key].shape != value.shape:
            return f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        if given[key].is_floating_point() and not bool(torch.isfinite(given[key]).all()):
            return f"{key} has values that are not finite"
    return None


def save_weights(weights: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a state dict with its floating-point tensors in ``dtype``, atomically: half precision halves the file."""
    from attunet3d.io.writer import atomic_path

    compact = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    with atomic_path(Path(path)) as temporary:
        torch.save(compact, temporary)
    return Path(path)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def load_network(
    checkpoint: str | Path | None = None, device: str | torch.device = "auto", precision: str = "auto"
) -> nn.Module:
    """The bundle's network with weights, in eval mode, ready for (B, 1, X, Y, Z) images on the model grid.

    Args:
        checkpoint: weights; the bundle's own by default.
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "fp32", "bf16" or "fp16".

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
        ConfigError: the device or precision cannot be had.
    """
    from attunet3d.workflow import bundle_network, installed_bundle

    network: AttentionUNet = bundle_network()
    load_weights(network, checkpoint or installed_bundle() / "models" / "model.pt")
    return prepare(network, device, precision).eval()
