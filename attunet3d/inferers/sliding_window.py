"""Sliding-window inference on MONAI's `Inferer` interface."""

from monai.inferers import Inferer

from attunet3d.inferers.windows import SlidingWindow


class SlidingWindowInferer(SlidingWindow, Inferer):
    """`SlidingWindow`, where MONAI's engines and bundles want an `Inferer`.

    With the same windows and none skipped the result is that of MONAI's ``SlidingWindowInferer(mode="gaussian")``; of
    two classes it is the difference, foreground minus background, in one channel (``difference=False`` keeps both).
    """
