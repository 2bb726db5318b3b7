"""Sliding-window inference: `windows.SlidingWindow`, and the same as a MONAI `Inferer`."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

__all__ = ["SlidingWindow", "SlidingWindowInferer"]

if TYPE_CHECKING:
    from attunet3d.inferers.sliding_window import SlidingWindowInferer
    from attunet3d.inferers.windows import SlidingWindow

__getattr__, __dir__ = lazy_names(__name__, {"SlidingWindow": "windows", "SlidingWindowInferer": "sliding_window"})
