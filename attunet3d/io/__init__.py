"""Reading CT and labels, writing masks: int16 HU or uint8 arrays (X, Y, Z) with RAS+ mm affines, or a typed error."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {
    "AtomicNibabelWriter": "monai_io",
    "CTReader": "monai_io",
    "LabelReader": "monai_io",
    "MaskLayout": "monai_io",
    "SeriesCase": "cases",
    "Volume": "reader",
    "atomic_path": "writer",
    "case_name": "cases",
    "find_cases": "cases",
    "hold_folder": "locking",
    "read_ct": "reader",
    "read_label": "reader",
    "read_volume": "reader",
    "segmentable_series": "cases",
    "write_mask": "writer",
    "write_text_atomic": "writer",
}

__all__ = [
    "AtomicNibabelWriter",
    "CTReader",
    "LabelReader",
    "MaskLayout",
    "SeriesCase",
    "Volume",
    "atomic_path",
    "case_name",
    "find_cases",
    "hold_folder",
    "read_ct",
    "read_label",
    "read_volume",
    "segmentable_series",
    "write_mask",
    "write_text_atomic",
]

if TYPE_CHECKING:
    from attunet3d.io.cases import SeriesCase, case_name, find_cases, segmentable_series
    from attunet3d.io.locking import hold_folder
    from attunet3d.io.monai_io import AtomicNibabelWriter, CTReader, LabelReader, MaskLayout
    from attunet3d.io.reader import Volume, read_ct, read_label, read_volume
    from attunet3d.io.writer import atomic_path, write_mask, write_text_atomic

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
