"""Sliding-window inference as a MONAI ``Inferer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.inferers import Inferer
from torch import Tensor, nn

from attunet3d.inferers.windows import SlidingWindow
from attunet3d.runtime.fast_network import MixedPrecision, prepare


class SlidingWindowInferer(SlidingWindow, Inferer):
    """``SlidingWindow`` as an ``Inferer``, for MONAI's engines and bundles.

    With the same windows and none skipped the result is that of MONAI's ``SlidingWindowInferer(mode="gaussian")``; for
    two classes it is the difference, foreground minus background, in one channel (``single_logit=False`` keeps both).

    Programs that use parts of a bundle, like MONAI Label, pass its ``network_def`` unprepared. With ``precision`` such
    a network is first prepared (see ``prepare``), so that masks are the same voxel for voxel; the prepared network is
    kept for the next call with the same one.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16"; None runs each network unchanged.
        backend, scales, threshold: as in ``prepare``, for networks that have not been prepared.
        roi_size, args, settings: as in ``SlidingWindow``.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        *args: Any,
        precision: str | None = None,
        backend: str = "auto",
        scales: Sequence[float] = (1.0,),
        threshold: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(roi_size, *args, **settings)
        self.precision = precision
        self.backend = backend
        self.scales = scales
        self.threshold = threshold
        self._prepared: tuple[nn.Module, MixedPrecision] | None = None

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return logits (B, classes, X, Y, Z), float32, of an image (B, C, X, Y, Z); one channel for two classes."""
        if self.precision is not None and isinstance(network, nn.Module) and not isinstance(network, MixedPrecision):
            network = self._prepare(network, inputs, self.precision)
        return super().__call__(inputs, network, *args, **kwargs)

    def _prepare(self, network: nn.Module, inputs: Tensor, precision: str) -> MixedPrecision:
        kept = self._prepared  # read once: another thread may replace it
        if kept is None or kept[0] is not network:
            fast = prepare(
                network,
                inputs.device,
                precision,
                backend=self.backend,
                single_logit=self.single_logit,
                scales=self.scales,
                threshold=self.threshold,
            )
            self._prepared = kept = network, fast
        return kept[1].train(network.training)
