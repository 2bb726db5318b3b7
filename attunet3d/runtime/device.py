"""Choose the device and the precision of the network."""

from __future__ import annotations

import logging

import torch

from attunet3d.errors import ConfigError

logger = logging.getLogger(__name__)

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to run on: "auto" is a GPU ("cuda", or "mps" of Apple) if available, otherwise the CPU.

    Raises:
        ConfigError: the device is unknown, or not available on this machine.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f'device {device!r} is not known: use "auto", "cpu", "cuda" (or "cuda:1") or "mps"'
        ) from error
    if chosen.type == "cuda" and not (torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()):
        raise ConfigError(
            f'device "{device}" is not available: torch finds {torch.cuda.device_count()} CUDA devices; use "cpu"'
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f'device "{device}" is not available: torch finds no Apple GPU; use "cpu"')
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f'device "{device}" is not supported: use "auto", "cpu", "cuda" or "mps"')
    return chosen


def choose_precision(precision: str, device: torch.device, training: bool = False) -> torch.dtype:
    """Return the dtype for a precision: "fp32", "bf16", "fp16", or "auto" for the fastest one that suits the device.

    fp16 is never chosen for training: its gradients underflow without loss scaling. On Apple GPUs "auto" is fp32.

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
    if precision not in _PRECISIONS:
        raise ConfigError(f'precision {precision!r} is not known: use "auto", {", ".join(_PRECISIONS)}')
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError('precision "fp16" is for GPUs: on a CPU use "auto", "bf16" or "fp32"')
    if precision == "fp16" and training:
        raise ConfigError('precision "fp16" is for inference: train with "auto", "bf16" or "fp32"')
    return _PRECISIONS[precision]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def volume_format(device_type: str) -> torch.memory_format:
    """Return the memory format for volumes: channels last, except on Apple GPUs, where convolutions misread it."""
    return torch.contiguous_format if device_type == "mps" else torch.channels_last_3d


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")
