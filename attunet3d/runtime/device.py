"""Where the network runs, and in which precision."""

from __future__ import annotations

import logging

import torch

from attunet3d.errors import ConfigError

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device to run on: "auto" is the GPU if there is one ("cuda", or Apple's: "mps"), else the CPU.

    Raises:
        ConfigError: the name is no device, or this machine lacks it.
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
            f'device "{device}" is not there: torch sees {torch.cuda.device_count()} CUDA devices; use "cpu"'
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f'device "{device}" is not there: torch sees no GPU of Apple; use "cpu"')
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f'device "{device}" is not supported: use "auto", "cpu", "cuda" or "mps"')
    return chosen


def choose_precision(precision: str, device: torch.device, training: bool = False) -> torch.dtype:
    """The dtype of the network's arithmetic: "fp32", "bf16", "fp16", or "auto" for the fastest the device does well.

    fp16 is never chosen for training: its gradients underflow without loss scaling. On Apple's GPUs it is fp32 unless
    something else is asked for.

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


def wait_for(device: torch.device) -> None:
    """Wait for the work that a GPU was given; a CPU has done its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def volume_format(device_type: str) -> torch.memory_format:
    """Return the memory format for volumes: channels last, but for Apple GPUs, whose convolutions misread it."""
    return torch.contiguous_format if device_type == "mps" else torch.channels_last_3d


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
