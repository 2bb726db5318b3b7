"""OpenVINO as an optional way to run a network on CPUs."""

from __future__ import annotations

import importlib.util
import sys
import threading
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attunet3d.networks.folding import fold
from attunet3d.runtime.variants import TOLERANCE, Variant, VariantBuilder


def is_installed() -> bool:
    """Whether OpenVINO can be imported; it is not imported to find out."""
    return importlib.util.find_spec("openvino") is not None


def builders(device_type: str, dtype: torch.dtype) -> list[VariantBuilder]:
    """The one variant on a CPU, if OpenVINO is installed."""
    if device_type != "cpu" or not is_installed():
        return []
    return [VariantBuilder(Variant("openvino", dtype), TOLERANCE[dtype], partial(_build, dtype))]


def _build(dtype: torch.dtype, network: nn.Module, example: Tensor, single_logit: bool) -> OpenVINONetwork:
    smallest = int(getattr(network, "min_size", min(example.shape[2:])))
    corner = example[(Ellipsis,) + (slice(smallest),) * (example.ndim - 2)]  # the smaller, the sooner it is traced
    return OpenVINONetwork(fold(network, single_logit), corner, dtype)


class OpenVINONetwork:
    """A network converted in memory, compiled anew whenever the size of its input changes.

    The weights are copied: what happens to ``network`` later changes nothing here. Memory for one input size is kept
    until another size is given, or until `release_memory`.

    Args:
        network: a float32 module on the CPU, in eval mode, from one tensor to one tensor; BatchNorm is folded here if
            it is not yet. Python branches on an input's size are taken as they are for ``example``.
        example: an input (B, C, X, Y, Z) to trace the network with. Other sizes, and other B, work as well, so the
            smallest that the network takes is the fastest to trace.
        dtype: torch.float32, or torch.bfloat16 for arithmetic in bf16 on a CPU that has it.

    Raises:
        ImportError: OpenVINO is not installed (``pip install 'attunet3d[openvino]'``).
        ValueError: ``dtype`` is another, or ``network`` is in train mode.
    """

    def __init__(self, network: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        if network.training:
            raise ValueError("network must be in eval mode: call network.eval()")
        openvino = _import_openvino()
        with torch.no_grad(), warnings.catch_warnings():
            # The branch on sizes in an attention gate is the same for every input of an AttentionUNet.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            # torch says to export instead, which takes ten times as long.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
        # With shared weights, constants would still change with the torch module's parameters.
        self._model: Any = openvino.convert_model(traced, share_weights=False)
        self._core: Any = openvino.Core()
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads of several processes would share the same few cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._one_at_a_time = threading.Lock()  # what is compiled has room for one image
        self._shape: tuple[int, ...] = ()
        self._compiled: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        """Image (B, C, X, Y, Z), float32, on the CPU -> logits (B, classes, X, Y, Z), float32.

        Raises:
            ValueError: ``x`` is of another type or on another device, or B is 0.
            RuntimeError: the network cannot take an input of this size.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu" or len(x) == 0:
            raise ValueError(f"x must be float32 on the CPU with B at least 1, got {x.dtype} on {x.device}, {len(x)}")
        # One image at a time: another B is not another size, and takes no more memory.
        with self._one_at_a_time:
            return torch.cat([self._run(image) for image in x.detach().split(1)])

    def release_memory(self) -> None:
        """Give back the memory for intermediate results; the next run takes it again, and a little longer."""
        with self._one_at_a_time:
            if self._compiled is not None:
                self._compiled.release_memory()

    def _run(self, x: Tensor) -> Tensor:
        """(1, C, X, Y, Z) -> (1, classes, X, Y, Z)."""
        if tuple(x.shape) != self._shape:
            # Fixed sizes take less memory than one model for all sizes, and compiling takes a fraction of one run.
            self._shape, self._compiled = (), None  # the memory for the size before is given back first
            self._model.reshape(list(x.shape))
            self._compiled = self._core.compile_model(self._model, "CPU", self._options)
            self._shape = tuple(x.shape)
        # The input is read where it is; the output is a copy, as the next run overwrites OpenVINO's own.
        logits = self._compiled(x.contiguous().numpy(), share_inputs=True, share_outputs=False)[0]
        return torch.from_numpy(logits)


def _import_openvino() -> Any:
    """The module, without the usage statistics that it would otherwise send, from its import on."""
    # Its own stub takes the place of a package that cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
