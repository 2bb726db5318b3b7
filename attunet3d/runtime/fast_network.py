"""Run a network in its fastest variant that passes a self-test against float32."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attunet3d.errors import ConfigError, MemoryLimitError
from attunet3d.runtime import openvino, torch_variants
from attunet3d.runtime.device import choose_device, choose_precision, dtype_name, volume_format
from attunet3d.runtime.process_memory import is_out_of_memory
from attunet3d.runtime.scales import check_scales, logits_over_scales
from attunet3d.runtime.variants import Run, Variant, VariantBuilder

logger = logging.getLogger(__name__)

# The function of each backend that lists its variants, fastest backend first. "auto" tries all; torch is the fallback.
_BACKENDS: dict[str, Callable[[str, torch.dtype], list[VariantBuilder]]] = {
    "openvino": openvino.builders,
    "torch": torch_variants.builders,
}
_PLAIN = Variant("torch", torch.float32, note="plain")


class MixedPrecision(nn.Module):
    """Run a network under autocast in channels-last format, with float32 weights and float32 logits.

    It shares the parameters of ``network``, so that weights loaded into that later take effect. State dicts have the
    same keys: a checkpoint fits both.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.device_type = device.type
        self.memory_format = volume_format(device.type)
        self.network = network.to(device=device, memory_format=self.memory_format)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes, X, Y, Z), float32, of an image (B, C, X, Y, Z)."""
        x = x.contiguous(memory_format=self.memory_format)
        low = self.dtype != torch.float32 and not (torch.is_grad_enabled() and self._gradients_break(x.shape[2]))
        with torch.autocast(self.device_type, self.dtype, enabled=low):
            logits: Tensor = self.network(x)
        return logits.float()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of ``network``."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict into ``network``."""
        return self.network.load_state_dict(state_dict, strict, assign)

    def _gradients_break(self, depth: int) -> bool:
        """Return whether the first axis has 2 voxels at some level of the network, on a CPU.

        Then torch 2.13 (oneDNN) returns uninitialized memory as the bf16 weight gradient of a 3x3x3 convolution.
        """
        levels = range(int(getattr(self.network, "min_size", 1)).bit_length())
        return self.device_type == "cpu" and any(depth >> level == 2 for level in levels)


class FastNetwork(MixedPrecision):
    """A network for inference: folded, in the memory format and precision of the device, and tested against fp32.

    The variant is built at the first image in eval mode, and again when the weights of ``network`` have changed. In
    train mode, as for dropout at inference, it is ``MixedPrecision``.

    Args:
        network: (B, C, *spatial) -> logits (B, classes, *spatial), float32 weights.
        device: device to run on.
        dtype: dtype of the arithmetic.
        backend: "torch", "openvino" (CPUs, ``attunet3d[openvino]``), or "auto": OpenVINO on CPUs if it is installed.
        single_logit: for two classes, return only the difference of the logits, foreground minus background.
        scales: test-time scales, see ``logits_over_scales``.
        threshold: probability above which a voxel is foreground, with ``single_logit``.

    Raises:
        ConfigError: the backend is unknown, or the scales or the threshold are invalid; at the first image, torch
            computes the network wrongly on an Apple GPU.
        MemoryLimitError: at the first image, there is not enough memory for the self-test.

    Attributes:
        variant: the variant in use, from the first image in eval mode on.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        backend: str = "auto",
        single_logit: bool = False,
        scales: Sequence[float] = (1.0,),
        threshold: float = 0.5,
    ) -> None:
        super().__init__(network, device, dtype)
        check_scales(scales, threshold)
        if backend not in ("auto", *_BACKENDS):
            raise ConfigError(f"backend {backend!r} is not known: use {', '.join(('auto', *reversed(_BACKENDS)))}")
        self.backend = backend
        self.single_logit = single_logit
        self.scales = tuple(scales)
        self.threshold = threshold
        self.smallest = int(getattr(network, "min_size", 1))
        self.variant = _PLAIN
        self._fast: Run | None = None
        self._weights_seen: list[int] = []
        self._release: Callable[[], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of an image (B, C, *spatial), float32: (B, classes, *spatial), or one channel."""
        if self.training:
            return _to_single_logit(super().forward(x)) if self.single_logit else super().forward(x)
        seen = [t._version for t in (*self.network.parameters(), *self.network.buffers())]
        if self._fast is None or seen != self._weights_seen:
            self.variant, self._fast = self._fastest(x)
            self._weights_seen = seen
        return logits_over_scales(self._fast, x, self.scales, self.threshold, self.smallest)

    def keep_variant_only(self) -> None:
        """Drop the float32 weights once a variant has been built; it no longer changes then."""
        if self.variant != _PLAIN:
            self.network = nn.Identity()
            self._weights_seen = []

    def release_memory(self) -> None:
        """Release what a backend keeps for the next image of the same size."""
        if self._release is not None:
            self._release()

    def _fastest(self, x: Tensor) -> tuple[Variant, Run]:
        """Build the first variant that passes the self-test, on a small fixed image with the channels of ``x``."""
        size = max(2 * int(getattr(self.network, "min_size", 16)), 32)
        generator = torch.Generator().manual_seed(0)
        example = torch.rand((1, x.shape[1], *([size] * (x.ndim - 2))), generator=generator).to(x.device)
        plain = self._finish(self._plain)
        self._release = None
        with torch.inference_mode():
            exact = self._on_cpu(example) if self.device_type == "mps" else plain(example)
            for builder in self._builders():
                try:
                    built = builder.build(self.network, example, self.single_logit)
                    run = self._finish(built)
                    error = _relative_error(run(example), exact)
                except Exception as problem:  # of any type; the plain network is the fallback
                    if is_out_of_memory(problem):  # variant and mask must not depend on free memory
                        raise MemoryLimitError(
                            f"out of memory on {x.device} while the network is prepared: close other programs, or "
                            "use a machine with more"
                        ) from problem
                    logger.warning("%s does not run (%s): trying the next variant", builder.variant, problem)
                    continue
                if error <= builder.tolerance:
                    logger.info("network runs as %s (error %.1e against plain fp32)", builder.variant, error)
                    self._release = getattr(built, "release_memory", None)
                    return builder.variant, run
                logger.warning("%s fails its self-test (error %.1e): trying the next variant", builder.variant, error)
        if self.device_type == "mps":
            raise ConfigError('device "mps": this torch computes the network wrongly there; use device "cpu"')
        return _PLAIN, plain

    def _builders(self) -> list[VariantBuilder]:
        """List the variants to try, best first."""
        backends = list(_BACKENDS) if self.backend == "auto" else [self.backend, "torch"]
        if self.backend == "openvino" and self.device_type == "cpu" and not openvino.is_installed():
            logger.warning("OpenVINO is not installed (pip install 'attunet3d[openvino]'): using torch")
        return [
            builder for name in dict.fromkeys(backends) for builder in _BACKENDS[name](self.device_type, self.dtype)
        ]

    def _on_cpu(self, example: Tensor) -> Tensor:
        """Run the plain network on the CPU: on Apple GPUs some operators of torch have been wrong or missing."""
        logits: Tensor = copy.deepcopy(self.network).cpu()(example.cpu())
        return (_to_single_logit(logits) if self.single_logit else logits).to(example.device)

    def _plain(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, enabled=False):
            return self.network(x)  # type: ignore[no-any-return]

    def _finish(self, run: Run) -> Run:
        def finished(x: Tensor) -> Tensor:
            logits = run(x)
            return (_to_single_logit(logits) if self.single_logit else logits).float()

        return finished


def _to_single_logit(logits: Tensor) -> Tensor:
    return logits[:, 1:2] - logits[:, 0:1] if logits.shape[1] == 2 else logits


def _relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the error, relative to that of ``exact``; infinite if a value is not finite."""
    scale = exact.square().mean().sqrt().clamp(min=1e-12)
    error = float(((found - exact).square().mean().sqrt() / scale).cpu())
    return error if error == error else float("inf")


def prepare(
    network: nn.Module,
    device: str | torch.device = "auto",
    precision: str = "auto",
    training: bool = False,
    backend: str = "auto",
    single_logit: bool = False,
    scales: Sequence[float] = (1.0,),
    threshold: float = 0.5,
) -> MixedPrecision:
    """Move a 3D network to its device, memory format and precision.

    Args:
        network: (B, C, *spatial) -> logits (B, classes, *spatial), float32 weights.
        device, precision: see ``choose_device`` and ``choose_precision``.
        training: return a ``MixedPrecision`` for training; otherwise a ``FastNetwork``.
        backend, single_logit, scales, threshold: see ``FastNetwork``.

    Raises:
        ConfigError: the device, the precision or the backend does not exist or is not available.
    """
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen, training)
    logger.info("network on %s in %s", chosen, dtype_name(dtype))
    if training:
        return MixedPrecision(network, chosen, dtype)
    return FastNetwork(network, chosen, dtype, backend, single_logit, scales, threshold)
