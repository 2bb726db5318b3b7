"""The bundle's configs, presets and overrides as plain values, and the recipe that is saved with weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
