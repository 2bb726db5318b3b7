"""Running a network: devices, precisions, variants for inference, and export to other formats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
