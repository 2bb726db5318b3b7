"""Running the network over a whole volume."""

from attunet3d.inferers.sliding_window import SlidingWindowInferer

__all__ = ["SlidingWindowInferer"]
