"""Segment the pancreas in CT with a 3D Attention U-Net. Research software, not a medical device.

Public names are imported on first use: MONAI takes seconds to import, and segmenting a CT does not need it.
"""

import lazy_loader

from attunet3d.runtime.huge_pages import ask_for_huge_pages
from attunet3d.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
ask_for_huge_pages()
