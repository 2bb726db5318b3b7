"""How the network runs: its device, its precision, the fastest variant of it, and other programs' formats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
