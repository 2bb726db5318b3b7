"""Segment CTs: ``Segmenter`` loads the network once and turns each CT into a mask, a record and their files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
