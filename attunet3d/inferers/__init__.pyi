from .sliding_window import SlidingWindowInferer as SlidingWindowInferer
from .windows import SlidingWindow as SlidingWindow
