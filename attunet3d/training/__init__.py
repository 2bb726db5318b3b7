"""The training recipe: cases on the model grid, random patches, loss, schedule, checkpoints. Wired by train.yaml."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
