"""Reading CT and labels, writing masks: int16 HU or uint8 arrays (X, Y, Z) with RAS+ mm affines, or a typed error."""

from attunet3d.io.cases import MaskLayout, case_name, find_cases
from attunet3d.io.reader import CTReader, LabelReader, Volume, read_ct, read_label, read_volume
from attunet3d.io.writer import AtomicNibabelWriter, atomic_path, write_mask, write_text_atomic

__all__ = [
    "AtomicNibabelWriter",
    "CTReader",
    "LabelReader",
    "MaskLayout",
    "Volume",
    "atomic_path",
    "case_name",
    "find_cases",
    "read_ct",
    "read_label",
    "read_volume",
    "write_mask",
    "write_text_atomic",
]
