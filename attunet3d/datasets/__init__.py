"""Make datalists of data sets on disk, load their cases, and make synthetic CTs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
