"""OpenVINO, an optional backend for CPUs."""

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
    """Return whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def builders(device_type: str, dtype: torch.dtype) -> list[VariantBuilder]:
    """List the only variant: for a CPU, if OpenVINO is installed."""
    if device_type != "cpu" or not is_installed():
        return []
    return [VariantBuilder(Variant("openvino", dtype), TOLERANCE[dtype], partial(_build, dtype))]


def _build(dtype: torch.dtype, network: nn.Module, example: Tensor, single_logit: bool) -> OpenVINONetwork:
    smallest = int(getattr(network, "min_size", min(example.shape[2:])))
    corner = example[
        (Ellipsis,) + (slice(smallest),) * (example.ndim - 2)
    ]  # tracing takes the least time for the smallest input
    return OpenVINONetwork(fold(network, single_logit), corner, dtype)


class OpenVINONetwork:
    """A network that is converted to OpenVINO in memory, and compiled again when the size of its input changes.

    The weights are copied: later changes of ``network`` have no effect. Memory for one input size is kept until the
    size changes, or until ``release_memory``.

    Args:
        network: a float32 module on the CPU, in eval mode, from one tensor to one tensor; BatchNorm is folded.
            Python branches that depend on the size of the input are fixed by ``example``.
        example: an input (B, C, X, Y, Z) to trace the network with; other sizes and B work too.
        dtype: torch.float32, or torch.bfloat16 for bf16 arithmetic if the CPU supports it.

    Raises:
        ImportError: OpenVINO is not installed (``pip install 'attunet3d[openvino]'``).
        ValueError: ``dtype`` is another one, or ``network`` is in train mode.
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
            # torch recommends torch.export, which takes ten times as long.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
        # Shared weights would still change with the parameters of the torch module.
        self._model: Any = openvino.convert_model(traced, share_weights=False)
        self._core: Any = openvino.Core()
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads of several processes would compete for the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._one_at_a_time = threading.Lock()  # the compiled model has memory for one image
        self._shape: tuple[int, ...] = ()
        self._compiled: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes, X, Y, Z), float32, of an image (B, C, X, Y, Z), float32 on the CPU.

        Raises:
            ValueError: ``x`` is not float32, not on the CPU, or B is 0.
            RuntimeError: the network does not accept this size.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu" or len(x) == 0:
            raise ValueError(f"x must be float32 on the CPU with B at least 1, got {x.dtype} on {x.device}, {len(x)}")
        # Image by image: another B then needs no compilation and no more memory.
        with self._one_at_a_time:
            return torch.cat([self._run(image) for image in x.detach().split(1)])

    def release_memory(self) -> None:
        """Release the memory of intermediate results; the next run allocates it again, which takes a little longer."""
        with self._one_at_a_time:
            if self._compiled is not None:
                self._compiled.release_memory()

    def _run(self, x: Tensor) -> Tensor:
        """Run one image: (1, C, X, Y, Z) -> (1, classes, X, Y, Z)."""
        if tuple(x.shape) != self._shape:
            # Static shapes take less memory than dynamic ones, and compiling takes a fraction of one run.
            self._shape, self._compiled = (), None  # releases the memory of the previous size first
            self._model.reshape(list(x.shape))
            self._compiled = self._core.compile_model(self._model, "CPU", self._options)
            self._shape = tuple(x.shape)
        # The input is not copied; the output is, since the next run overwrites OpenVINO's buffer.
        logits = self._compiled(x.contiguous().numpy(), share_inputs=True, share_outputs=False)[0]
        return torch.from_numpy(logits)


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send usage statistics from the import on."""
    # If the telemetry package cannot be imported, OpenVINO uses a stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
