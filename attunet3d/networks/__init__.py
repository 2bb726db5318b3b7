"""The network: attention gates, the Attention U-Net, folding for inference, and published weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
