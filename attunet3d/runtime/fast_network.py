"""The network for inference: the fastest variant of it that passes a self-test against float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attunet3d.errors import ConfigError, MemoryLimitError
from attunet3d.networks.folding import fold
from attunet3d.runtime.device import choose_device, choose_precision, dtype_name
from attunet3d.runtime.openvino import OpenVINONetwork, is_installed
from attunet3d.runtime.process_memory import is_out_of_memory
from attunet3d.runtime.scales import check_scales, logits_over_scales

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "openvino")
Form = Callable[[Tensor], Tensor]
# The self-test's limit: root mean square of the error as a share of that of the logits. One rounding is 2^-9 of a value
# in bf16, 2^-12 in fp16 and TF32, and some forty follow each other; what is broken is wrong by the size of the logits.
_TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


class MixedPrecision(nn.Module):
    """Run a network under autocast with channels-last volumes; weights stay float32 and logits come out float32.

    It shares the parameters of ``network``: weights loaded into that later take effect here. So does its state dict,
    under the same names: a checkpoint fits both.
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

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of ``network``."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load into ``network``."""
        return self.network.load_state_dict(state_dict, strict, assign)

    def _gradients_break(self, depth: int) -> bool:
        """Whether some level of the network has a first axis of 2 voxels on a CPU.

        There torch 2.13 (oneDNN) returns uninitialized memory as the bf16 weight gradient of a 3x3x3 convolution.
        """
        levels = range(int(getattr(self.network, "min_size", 1)).bit_length())
        return self.device_type == "cpu" and any(depth >> level == 2 for level in levels)


class FastNetwork(MixedPrecision):
    """A network for inference: folded, in the device's memory format and precision, and checked against fp32.

    The fast form is made at the first image in eval mode, and again when the weights of ``network`` have changed since:
    weights loaded into that later take effect here. In train mode, as for dropout at inference, it is `MixedPrecision`.

    Args:
        network: (B, C, *spatial) -> logits (B, classes, *spatial), float32 weights.
        device: where it runs.
        dtype: of the arithmetic.
        backend: "torch", "openvino" (CPUs, ``attunet3d[openvino]``), or "auto": OpenVINO on CPUs where it is installed.
        single_logit: of two classes give only the difference of the logits, foreground minus background.
        scales: sizes of the image that it is run at, see `logits_over_scales`.
        threshold: probability from which on a voxel is foreground, with ``single_logit``.

    Raises:
        ConfigError: an unknown backend, or scales or a threshold that cannot be.
        MemoryLimitError: at the first image, there is not even memory for the test.

    Attributes:
        form: what runs, after the first image: "torch bfloat16", ...; "..., joined" on a CPU where skip and upsampled
            features are concatenated, see `fold`.
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
        if backend not in BACKENDS:
            raise ConfigError(f"backend {backend!r} is not known: use {', '.join(BACKENDS)}")
        self.backend = backend
        self.single_logit = single_logit
        self.scales = tuple(scales)
        self.threshold = threshold
        self.smallest = int(getattr(network, "min_size", 1))
        self.form = ""
        self._fast: Form | None = None
        self._weights_seen: list[int] = []
        self._release: Callable[[], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, C, *spatial) -> logits (B, classes, *spatial), float32; (B, 1, *spatial) with ``single_logit``."""
        if self.training:
            return _to_single_logit(super().forward(x)) if self.single_logit else super().forward(x)
        seen = [t._version for t in (*self.network.parameters(), *self.network.buffers())]
        if self._fast is None or seen != self._weights_seen:
            self.form, self._fast = self._fastest(x)
            self._weights_seen = seen
        return logits_over_scales(self._fast, x, self.scales, self.threshold, self.smallest)

    def keep_fast_form_only(self) -> None:
        """Drop the float32 weights once the fast form has been made: it stays as it is from now on."""
        if self._fast is not None and not self.form.endswith("plain"):
            self.network = nn.Identity()
            self._weights_seen = []

    def release_memory(self) -> None:
        """Give back what a backend keeps for the next image of the same size."""
        if self._release is not None:
            self._release()

    def _fastest(self, x: Tensor) -> tuple[str, Form]:
        """The first form that passes the self-test, on a small fixed image with the channels and device of ``x``."""
        size = max(2 * int(getattr(self.network, "min_size", 16)), 32)
        generator = torch.Generator().manual_seed(0)
        example = torch.rand((1, x.shape[1], *([size] * (x.ndim - 2))), generator=generator).to(x.device)
        plain = self._plain()
        with torch.inference_mode():
            exact = plain(example)
            for name, dtype, build in self._forms():
                try:
                    form = build(example)
                    error = _relative_error(form(example), exact)
                except Exception as problem:  # a backend may fail in ways of its own; the plain form remains
                    if is_out_of_memory(problem):  # the form, and with it the mask, must not depend on that
                        raise MemoryLimitError(
                            f"out of memory on {x.device} while the network is made ready: close other programs, or "
                            "use a machine with more"
                        ) from problem
                    logger.warning("%s does not run (%s): the next form is tried", name, problem)
                    continue
                if error <= _TOLERANCE[dtype]:
                    logger.info("network runs as %s (error %.1e beside plain fp32)", name, error)
                    return name, form
                logger.warning("%s fails its self-test (error %.1e): the next form is tried", name, error)
        return "torch float32, plain", plain

    def _forms(self) -> Iterator[tuple[str, torch.dtype, Callable[[Tensor], Form]]]:
        """Name, dtype, and builder from an example image, best first."""
        on_cpu = self.device_type == "cpu"
        if self.backend != "torch" and on_cpu:
            if is_installed():
                yield f"openvino {dtype_name(self.dtype)}", self.dtype, self._openvino_form
            elif self.backend == "openvino":
                logger.warning("OpenVINO is not installed (pip install 'attunet3d[openvino]'): torch is used")
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            name = f"torch {dtype_name(dtype)}"
            if on_cpu:
                yield name, dtype, partial(self._torch_form, dtype, True)
            yield name + ", joined" * on_cpu, dtype, partial(self._torch_form, dtype, False)

    def _openvino_form(self, example: Tensor) -> Form:
        smallest = int(getattr(self.network, "min_size", min(example.shape[2:])))
        corner = example[(Ellipsis,) + (slice(smallest),) * (example.ndim - 2)]  # the smaller, the sooner it is traced
        form = OpenVINONetwork(fold(self.network, self.single_logit), corner, self.dtype)
        self._release = form.release_memory
        return self._finish(form)

    def _torch_form(self, dtype: torch.dtype, split: bool, example: Tensor) -> Form:
        folded = fold(self.network, self.single_logit, split)
        network = folded.to(dtype=dtype, memory_format=torch.channels_last_3d)
        return self._finish(lambda x: network(x.to(dtype).contiguous(memory_format=torch.channels_last_3d)))

    def _plain(self) -> Form:
        def run(x: Tensor) -> Tensor:
            with torch.autocast(self.device_type, enabled=False):
                return self.network(x)  # type: ignore[no-any-return]

        return self._finish(run)

    def _finish(self, form: Form) -> Form:
        def run(x: Tensor) -> Tensor:
            logits = form(x)
            return (_to_single_logit(logits) if self.single_logit else logits).float()

        return run


def _to_single_logit(logits: Tensor) -> Tensor:
    return logits[:, 1:2] - logits[:, 0:1] if logits.shape[1] == 2 else logits


def _relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference as a share of that of ``exact``; infinite where something is not finite."""
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
    """Put a 3D network on its device, in its memory format and precision (see `choose_device`, `choose_precision`).

    For inference it is a `FastNetwork`, which the other arguments are for.

    Raises:
        ConfigError: the device, the precision or the backend does not exist, or cannot be had here.
    """
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen, training)
    logger.info("network on %s in %s", chosen, dtype_name(dtype))
    if training:
        return MixedPrecision(network, chosen, dtype)
    return FastNetwork(network, chosen, dtype, backend, single_logit, scales, threshold)
