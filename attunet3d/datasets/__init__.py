"""Where cases come from: data sets on disk as datalists, and synthetic CTs."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {"load_cases": "datalist"}

__all__ = ["load_cases"]

if TYPE_CHECKING:
    from attunet3d.datasets.datalist import load_cases

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
