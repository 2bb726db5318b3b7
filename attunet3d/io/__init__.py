"""Reading CT and labels, writing masks: int16 HU or uint8 arrays (X, Y, Z) with RAS+ mm affines, or a typed error."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
