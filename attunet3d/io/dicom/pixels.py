"""Convert stored DICOM pixels to HU: decoding, stored bits, rescale of each image, padding."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import pydicom

from attunet3d.errors import AttUNet3dError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.dicom.guard import NATIVE, RLE, check_pixel_data, dcmread, unwrap_codestreams
from attunet3d.io.dicom.header import SliceHeader, numbers
from attunet3d.io.slabs import read_failed

AIR_HU = -1024  # what CT scanners write outside the scanned field
_HIGHEST_HU = 3071  # of the 12-bit CT scale
EXPORT_AGAIN = "export the complete series again"

# Retired JPEG processes that pydicom refuses, though its decoder for the process on the right reads them.
_DECODED_AS = {"1.2.840.10008.1.2.4.53": "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.55": "1.2.840.10008.1.2.4.51"}
_SIZES = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_DECODERS = ("pylibjpeg", "libjpeg", "openjpeg")


def hu_slabs(slices: Sequence[SliceHeader], warnings: list[str]) -> Iterator[np.ndarray]:
    """Yield (X, Y) arrays in HU, in the order of ``slices``: int32 if the rescale has integers only, otherwise float64.

    Padding with values outside the HU scale is set to air.

    Args:
        slices: the images.
        warnings: new ones are added to this list when all slices have been yielded.

    Raises:
        UnreadableInputError: a file is damaged, or a decoder is missing.
        UnsupportedImageError: the meaning of the stored values is unclear.
    """
    padded = 0
    files: dict[Path, list[SliceHeader]] = {}
    for s in slices:
        files.setdefault(s.path, []).append(s)
    decoders = {path: _decoded(images) for path, images in files.items()}
    for s in slices:
        pixels, padding = next(decoders[s.path])
        if s is files[s.path][-1]:
            del decoders[s.path]  # and the file's content with it
        slope, intercept = s.rescale or (1.0, 0.0)
        small = pixels.dtype.itemsize <= 2 and abs(slope) * 65536 + abs(intercept) < 2**31  # else int32 overflows
        if small and slope.is_integer() and intercept.is_integer():
            hu = pixels.astype(np.int32) * int(slope) + int(intercept)
        else:
            hu = pixels * slope + intercept
        # Only padding that cannot be tissue: some writers declare a padding value that they also use as HU.
        outside = padding & ((hu < AIR_HU) | (hu > _HIGHEST_HU))
        if outside.any():
            hu[outside] = AIR_HU
            padded += int(outside.sum())
        yield hu.T
    if padded:
        warnings.append(f"{padded} padding voxels were set to {AIR_HU} HU")


def _decoded(images: Sequence[SliceHeader]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield stored values and padding mask of the images of one file; both (rows, columns)."""
    path, syntax = images[0].path, ""
    for s in images:
        try:
            with catch_warnings():
                simplefilter("ignore")
                if s is images[0]:
                    ds = dcmread(path, force=True)
                    syntax = str(getattr(ds.file_meta, "TransferSyntaxUID", ""))
                    _read_sizes(ds)
                    _check_meaning(ds)
                    check_pixel_data(ds, path)
                    unwrap_codestreams(ds)
                    stored = _StoredBits(ds, in_container=syntax in (*NATIVE, RLE))
                    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(_DECODED_AS.get(syntax, syntax))
                    frames = _frames(ds, images)
                pixels = next(frames)
        except AttUNet3dError:
            raise
        except Exception as e:  # decoders raise any type
            raise _decoder_failed(s, syntax, e) from e
        if pixels.shape != (s.rows, s.columns):
            raise UnreadableInputError(
                f"{path}: pixels of shape {pixels.shape} where the header promises {(s.rows, s.columns)}; "
                f"{EXPORT_AGAIN}"
            )
        yield stored.values(pixels)


def _read_sizes(ds: pydicom.Dataset) -> None:
    """Convert sizes and bits to integers, even if stored under another VR, such as DS or LO."""
    for name in _SIZES:
        found = numbers(ds, name, 1)
        if found and found[0].is_integer():
            ds.add_new(name, "US", int(found[0]))


def _check_meaning(ds: pydicom.Dataset) -> None:
    if "PixelData" not in ds:
        raise UnreadableInputError(f"{ds.filename}: holds no pixel data; {EXPORT_AGAIN}")
    if "ModalityLUTSequence" in ds:
        raise UnsupportedImageError(
            f"{ds.filename}: values need a lookup table (ModalityLUTSequence); give the CT series with a rescale to HU"
        )


def _decoder_failed(s: SliceHeader, syntax: str, error: Exception) -> UnreadableInputError:
    with catch_warnings():
        simplefilter("ignore")  # the UID may be malformed
        name = pydicom.uid.UID(syntax).name
    if syntax and syntax not in (*NATIVE, RLE):
        if any(importlib.util.find_spec(module) is None for module in _DECODERS):
            return UnreadableInputError(f"{s.path}: no decoder for {name}; run: pip install 'attunet3d[dicom]'")
        if isinstance(error, NotImplementedError):
            return UnreadableInputError(f"{s.path}: {name} is not supported; convert the series to uncompressed DICOM")
    return read_failed(s.path, hint=EXPORT_AGAIN)  # without `error`: parsers quote values, such as names


def _frames(ds: pydicom.Dataset, images: Sequence[SliceHeader]) -> Iterator[np.ndarray]:
    """Return an iterator over the stored values of ``images``."""
    if images[0].frame is None:
        return iter([ds.pixel_array])
    numbers = [int(s.frame) for s in images if s.frame is not None]
    try:
        from pydicom.pixels import iter_pixels
    except ImportError:  # pydicom 2 only decodes all frames at once
        whole = ds.pixel_array.reshape(-1, *ds.pixel_array.shape[-2:])
        return (whole[number] for number in numbers)
    return iter_pixels(ds, indices=numbers)


class _StoredBits:
    """Extract values from decoded words: BitsStored bits up to HighBit, checked against the other bits.

    pydicom silently drops the other bits. That is right for overlays, which old files store there. But some writers use
    them for values that do not fit into BitsStored: padding, or HU that would be misread.
    """

    def __init__(self, ds: pydicom.Dataset, in_container: bool) -> None:
        self.path = ds.filename
        self.signed = ds.PixelRepresentation == 1
        self.bits, self.width = int(ds.BitsStored), int(ds.BitsAllocated)
        # A codec returns values in the lowest bits, even if their position was another before compression.
        self.lowest = int(ds.HighBit) + 1 - self.bits if in_container else 0
        if self.bits < 1 or not 0 <= self.lowest <= self.width - self.bits:
            raise UnreadableInputError(
                f"{self.path}: {self.bits} bits stored, up to bit {ds.HighBit} of {self.width}, are impossible; "
                f"{EXPORT_AGAIN}"
            )
        self.padding = self._padding(ds)
        overlays = [tag for tag in list(ds.keys()) if tag.group & 0xFF01 == 0x6000 and tag.element == 0x0102]
        self.overlay = any(ds[tag].value for tag in overlays)  # OverlayBitPosition: 0 if stored separately
        if in_container:
            ds.BitsStored, ds.HighBit = self.width, self.width - 1  # so that pydicom returns whole words

    def values(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored values and the mask of padding.

        Raises:
            UnreadableInputError: the decoded words are of an unexpected type.
            UnsupportedImageError: values need more bits than the header gives them.
        """
        if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize * 8 < self.width:
            raise UnreadableInputError(f"{self.path}: pixels decode to {pixels.dtype}; {EXPORT_AGAIN}")
        kind = "i" if self.signed else "u"
        words = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).view(f"{kind}{pixels.dtype.itemsize}")
        width = pixels.dtype.itemsize * 8
        values = (words << (width - self.lowest - self.bits)) >> (width - self.bits)  # keeps the sign
        if self.bits == width:
            return values, self._is_padding(values)
        padding = self._is_padding(words) | self._is_padding(values)
        # The bits above a negative value may be zeros or copies of its sign. If an image has both, those with zeros are
        # positive values that do not fit.
        extended = (values << self.lowest) == words
        unsigned = words.view(f"u{pixels.dtype.itemsize}")
        zeros = unsigned & ~unsigned.dtype.type(((1 << self.bits) - 1) << self.lowest) == 0
        fits = extended | zeros
        if self.signed and (extended & (values < 0) & ~padding).any():
            fits = extended
        if self.overlay:
            return values, padding
        wrong = ~(fits | padding)
        if wrong.any():
            raise UnsupportedImageError(
                f"{self.path}: {int(wrong.sum())} stored values need more than the {self.bits} bits that the header "
                f"gives them (BitsStored); {EXPORT_AGAIN}"
            )
        return np.where(fits, values, words), padding

    def _is_padding(self, values: np.ndarray) -> np.ndarray:
        if self.padding is None:
            return np.zeros(values.shape, bool)
        low, high = self.padding
        return (values >= low) & (values <= high)

    def _padding(self, ds: pydicom.Dataset) -> tuple[int, int] | None:
        """Return the lowest and highest word that marks voxels outside the scanned field."""
        value = ds.get("PixelPaddingValue")
        if not isinstance(value, int):
            return None
        limit = ds.get("PixelPaddingRangeLimit")
        ends = [value, limit if isinstance(limit, int) else value]
        # The tags should be signed if the pixels are, but writers and parsers get that wrong.
        ends = [end % 2**self.width for end in ends]
        if self.signed:
            ends = [end - 2**self.width if end >= 2 ** (self.width - 1) else end for end in ends]
        return min(ends), max(ends)
