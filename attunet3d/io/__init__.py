"""Read CTs and labels and write masks, as int16 HU or uint8 arrays (X, Y, Z) with affines to RAS+ mm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
