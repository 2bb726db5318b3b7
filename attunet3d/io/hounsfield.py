"""Check whether voxels are in Hounsfield units, by the distribution of their values and not by their extremes.

Extremes are no evidence: in a valid CT, padding is below air, metal above bone, and spline interpolation overshoots
both; and an 8-bit image with an offset and padding spans the whole HU scale. But the HU of tissues do not depend on
scanner, patient or window: air at -1000, fat at -100, soft tissue at 0 to 100, hardly any voxels between lung and fat,
and fewer and fewer of bone above. Impossible distributions are refused; suspicious ones only cause a warning, since a
valid CT must not be refused.
"""

import math
from pathlib import Path

import numpy as np

from attunet3d.errors import UnsupportedImageError

_FAT_OR_AIR_HU = -50  # fat is at -130 to -60 HU; only gas and lung are lower
_SOFT_TISSUE_HU = 0
BODY_HU = (-150, 200)  # fat, water, muscle and organs in any contrast phase but the first arterial seconds
_GAP_HU = (-600, -200)  # between lung and fat: partial volume only
_BELOW_AIR_HU = -1250  # air is at -1000 by definition; 80 HU of noise take 0.1 % of it so low, splines little more
_PADDING_HU = -1100  # a constant below is padding outside the reconstructed field

_A_FEW = 0.0005  # fraction of voxels: fewer may be metal, ringing or burned-in text, and are no evidence
_LEAST_BODY = 0.005  # fraction of voxels: a newborn in a field of view of 500 mm fills 1 %
_CONSTANT_SHARE, _CONSTANT_RATIO = 0.01, 20  # fraction of voxels, and ratio to its neighbours; noise stays below both
_NEIGHBOURS = 30  # HU

_LIMIT = 36000  # values are clipped to it; offsets of 32768 are still recognized
_SAMPLES = 2**16  # per slice, for the histogram; of 512 x 512 pixels every second row and column is counted
_OFFSETS = (1024, 2048, 8192, 32768)  # of stored pixels, once and twice, and of signed values stored as unsigned
_NARROW = 10  # HU: by its noise alone a CT has a wider range
_RINGING_HU = 150  # a spline overshoots a window of 400 HU by less
_SCALE_HU = (-900, 3000)  # limits beyond are those of the scale itself, such as -1024, -1000 and 3071


class ValueCounts:
    """Histogram of the voxel values, rounded to integers, filled slice by slice."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * _LIMIT + 1, np.int64)
        self.fractional = 0

    def add(self, slab: np.ndarray) -> None:
        """Count the finite values of a slice (X, Y), or of a regular sample of a large one."""
        step = max(1, math.isqrt(slab.size // _SAMPLES))
        sample = slab[::step, ::step].astype(np.float64)
        whole = np.rint(sample)
        if slab.dtype.kind == "f":
            self.fractional += int(np.count_nonzero(np.abs(sample - whole) > 0.01))
        index = np.clip(whole, -_LIMIT, _LIMIT).astype(np.intp) + _LIMIT
        self.counts += np.bincount(index.ravel(), minlength=self.counts.size)


class _Distribution:
    """Fractions of voxels by value. "Natural" voxels exclude constants: padding, masked air, ends of a window."""

    def __init__(self, values: ValueCounts) -> None:
        self.counts = values.counts
        self.total = int(self.counts.sum())
        self.fractional = values.fractional / self.total
        self.constants = self._constants()
        self.natural = self.counts.copy()
        self.natural[[v + _LIMIT for v in self.constants]] = 0
        self.padding = sum(int(self.counts[v + _LIMIT]) for v in self.constants if v < _PADDING_HU)
        # Synthetic images consist of constants only, which then count as natural.
        self.drawn = self.natural.sum() < 0.05 * self.total
        if self.drawn:
            self.natural = self.counts.copy()
            self.natural[[v + _LIMIT for v in self.constants if v < _PADDING_HU]] = 0
        self._cumulative = np.concatenate([[0], np.cumsum(self.natural)])
        self.size = max(1, int(self._cumulative[-1]))

    def _constants(self) -> list[int]:
        often = np.flatnonzero(self.counts >= _CONSTANT_SHARE * self.total)
        found = []
        for index in often:
            near = self.counts[max(0, index - _NEIGHBOURS) : index + _NEIGHBOURS + 1].sum()
            near -= self.counts[max(0, index - 2) : index + 3].sum()  # interpolation and rounding spread it
            if self.counts[index] * (2 * _NEIGHBOURS - 4) >= _CONSTANT_RATIO * near:
                found.append(int(index) - _LIMIT)
        return found

    def share(self, low: float, high: float) -> float:
        """Return the fraction of the natural voxels with values from ``low`` to ``high``."""
        first, end = (int(np.clip(v + _LIMIT, 0, 2 * _LIMIT + 1)) for v in (math.ceil(low), math.floor(high) + 1))
        return float(self._cumulative[end] - self._cumulative[first]) / self.size if end > first else 0.0

    def constant_share(self, low: float, high: float) -> float:
        """Return the fraction of all voxels that are constants from ``low`` to ``high``."""
        return sum(int(self.counts[v + _LIMIT]) for v in self.constants if low <= v <= high) / self.total

    def span(self, outside: float) -> tuple[int, int]:
        """Return the quantiles at ``outside`` and 1 - ``outside``, without a constant at the lower end."""
        counts = self.counts.copy()
        lowest = int(np.flatnonzero(counts)[0])
        if lowest - _LIMIT in self.constants and counts[lowest] < self.total:
            counts[lowest] = 0
        cumulative = np.cumsum(counts)
        at = np.searchsorted(cumulative, (outside * cumulative[-1] + 1, (1 - outside) * cumulative[-1]))
        return int(at[0]) - _LIMIT, int(at[1]) - _LIMIT

    def mode(self, low: int, high: int) -> int:
        """Return the smoothed mode, without the lowest value, to which all below may be clipped."""
        counts = self.natural[low + _LIMIT : high + _LIMIT + 1].astype(np.float64)
        filled = np.flatnonzero(counts)
        if filled.size > 1:
            counts[filled[0]] = 0
        return low + int(np.convolve(counts, np.ones(9), "same").argmax())


def check_hu(path: Path, values: ValueCounts, low: float, high: float) -> list[str]:
    """Return warnings about the HU of a CT with values from ``low`` to ``high``.

    Raises:
        UnsupportedImageError: the values are not HU.
    """
    found = _Distribution(values)
    doubts: list[str] = []
    reason = _why_not_hu(found, doubts)
    if reason:
        raise UnsupportedImageError(f"{path}: values {low:g} to {high:g} are not a CT in HU: {reason}")
    return doubts + _clipped(found)


def looks_like(values: ValueCounts) -> str:
    """Describe values that are not HU: what they seem to be, and the remedy."""
    return _looks_like(_Distribution(values))


def _why_not_hu(found: _Distribution, doubts: list[str]) -> str:
    """Return why the values cannot be HU, or "" if they can; suspicions are added to ``doubts``."""
    natural_low = found.share(-_LIMIT, _FAT_OR_AIR_HU)
    body = found.share(*BODY_HU)
    below_air = found.share(-_LIMIT, _BELOW_AIR_HU)
    few = 1 / found.total if found.drawn else _A_FEW  # a synthetic image may have one voxel of a tissue
    if natural_low < few and not found.constant_share(_PADDING_HU, _FAT_OR_AIR_HU):
        return f"no value is as low as fat or air ({_FAT_OR_AIR_HU} or less); {_looks_like(found)}"
    if found.share(_SOFT_TISSUE_HU, _LIMIT) < few and not found.constant_share(_SOFT_TISSUE_HU, _LIMIT):
        return f"no value is as high as soft tissue ({_SOFT_TISSUE_HU} or more); {_looks_like(found)}"
    if found.fractional > 0.05 and found.span(0.005)[1] - found.span(0.005)[0] <= _NARROW:
        return _looks_like(found)
    if below_air >= 0.05:
        what = f"{below_air:.0%} lie below {_BELOW_AIR_HU}, below air (-1000)"
        if below_air > body or below_air > max(body / 2, 4 * found.share(-1100, -850)):
            return f"{what}; {_looks_like(found)}"
        doubts.append(f"{what}: this may be padding, or a wrong scale")
    if found.drawn:
        return ""
    # If HU were rescaled twice, fat is below air, and only cortical bone is in the range of soft tissue.
    body = max(body, found.constant_share(*BODY_HU))
    if body < _LEAST_BODY or (body < 0.02 and found.share(-_LIMIT, _PADDING_HU) >= 0.1):
        return f"only {body:.1%} are fat or soft tissue ({BODY_HU[0]} to {BODY_HU[1]}); {_looks_like(found)}"
    offset = _offset(found)
    if offset is not None and offset > 0 and natural_low <= found.share(offset - 150, offset + 200) / 4:
        return _looks_like(found)
    if _is_inverted(found):
        return _looks_like(found)
    air, certain = _air_of_scaled(found)
    if air is not None and certain:
        return _looks_like(found)
    if air is not None:
        doubts.append(f"air seems to be at {air} instead of -1000; check that the CT is in HU")
    if natural_low < _A_FEW:
        lowest, highest = found.span(0)
        picture = lowest == 0 and lowest in found.constants and highest <= 255
        if picture or found.share(300, _LIMIT) > 0.3:  # no part of the body has so much bone
            return f"apart from a constant, no value is as low as fat or air; {_looks_like(found)}"
        doubts.append("apart from padding, no value is as low as fat or air; check that the CT is in HU")
    return ""


def _looks_like(found: _Distribution) -> str:
    low, high = found.span(0.005)
    if high - low <= _NARROW:
        if found.fractional > 0.05 or low < 0:
            return "this looks like a normalised image (or mask): give the CT in HU, without normalisation"
        return "this looks like a mask or a normalised image: give the CT itself"
    if _is_inverted(found):
        return "this looks like an inverted CT, with air brighter than bone: give it in HU"
    air, _ = _air_of_scaled(found)
    if air is not None:
        return f"this looks like HU / {-1000 / air:.3g}, with air at {air}: multiply by {-1000 / air:.3g}"
    offset = _offset(found)
    if offset is not None and abs(offset) in _OFFSETS:
        sign, hint = ("+", "without the rescale: subtract") if offset > 0 else ("-", "as rescaled twice: add")
        amount = f"{abs(offset)}{' (or 1000)' if abs(offset) == 1024 else ''}"
        return f"this looks like HU {sign} {amount}, {hint} {amount}"
    if offset is not None:
        return f"this looks like another scale, with soft tissue at about {offset}: give the CT in HU"
    if low >= 0 and high <= 255:
        return "this looks like a label map or an 8-bit picture: give the CT itself"
    return "give the CT in HU, after its rescale (often: subtract 1024); MR and PET are not supported"


def _offset(found: _Distribution) -> int | None:
    """Return the offset of the body's values from HU, if it is 600 or more.

    The body is the highest group of values with a gap below it; there is no gap between soft tissue and bone.
    """

    def body(at: int) -> float:
        return found.share(at + BODY_HU[0], at + BODY_HU[1])

    low, high = found.span(0.001)
    for at in range(high + 200, low - 200, -25):
        if abs(at) < 600 or body(at) < 0.02:
            continue
        if found.share(at + _GAP_HU[0], at + _GAP_HU[1]) <= body(at) / 3 and found.share(at + 200, _LIMIT) <= body(at):
            best = max(range(at, at - 300, -25), key=body)
            air = best - 1150, best - 850
            if found.share(*air) >= 0.02:
                best = found.mode(*air) + 1000
            known = min(_OFFSETS, key=lambda offset: abs(abs(best) - offset))
            return int(math.copysign(known, best)) if abs(abs(best) - known) <= 100 else round(best, -1)
    return None


def _is_inverted(found: _Distribution) -> bool:
    """Return whether air is at the top: a noisy peak with the body 1000 below it, or the upper end of a window."""
    top = found.span(0)[1]
    if top < _LIMIT and found.constant_share(top - 2, _LIMIT) > max(0.25, found.constant_share(-_LIMIT, 0)):
        return True
    air = found.mode(300, 4000)
    share = found.share(air - 100, air + 100)
    if share < 0.2 or found.share(air - 750, air - 450) > share / 3 or found.share(-1100, -850) > share / 10:
        return False
    bone_below, bone_above = found.share(-_LIMIT, air - 1300), found.share(air + 300, _LIMIT)
    return found.share(air - 1150, air - 800) >= 0.05 and bone_below > bone_above


def _air_of_scaled(found: _Distribution) -> tuple[int | None, bool]:
    """Find air in an image of HU divided by 1.6 to 16, in which the values of the body crowd around 0.

    Returns:
        The value of air, None if it is not found, and whether it is certain: its voxels are neither constant, like the
        lower end of a window, nor as widely spread as lung.
    """

    def count(low: float, high: float) -> int:
        return int(found.counts[round(low) + _LIMIT : round(high) + _LIMIT + 1].sum())

    air = found.mode(-620, -60)
    peak, around = count(1.15 * air, 0.85 * air), count(1.5 * air, 0.5 * air)
    below = count(-_LIMIT, 1.3 * air) - found.total * found.constant_share(-_LIMIT, 1.3 * air)
    crowd = count(0.16 * air, -0.16 * air) / max(1, count(air / 2, _LIMIT))
    if peak < 0.1 * (found.total - found.padding) or below > 0.005 * found.total or crowd < 0.75:
        return None, False
    noisy = found.counts[round(1.15 * air) + _LIMIT : round(0.85 * air) + _LIMIT + 1].max() <= 0.7 * peak
    certain = noisy and (air > -300 or peak >= 4 * (around - peak))
    return (air, certain) if certain or air > -300 else (None, False)


def _clipped(found: _Distribution) -> list[str]:
    """Return a warning if HU are clipped within the range of tissue: to a window, or below the densest bone."""
    low, high = _end(found, 1), _end(found, -1)
    if high is not None and high > _SCALE_HU[1]:
        high = None
    if high is None and low is not None and low < _SCALE_HU[0]:
        low = None
    lowest = int(np.argmax(found.counts > 0)) - _LIMIT
    if high is not None and low is None and lowest in (-1024, -1000):
        low = lowest
    if low is not None and high is not None:
        return [f"HU are clipped to [{low}, {high}]"]
    if low is not None:
        return [f"HU are clipped to at least {low}"]
    return [f"HU are clipped to at most {high}"] if high is not None else []


def _end(found: _Distribution, direction: int) -> int | None:
    """Return the value to which all below (direction 1) or above (-1) are clipped; None if they are not clipped."""
    counts = found.counts.copy()
    counts[[v + _LIMIT for v in found.constants if v < _PADDING_HU]] = 0
    counts = counts[::direction]
    total = np.cumsum(counts)
    first = int(np.argmax(counts > 0))
    candidates = [first] + sorted(direction * v + _LIMIT for v in found.constants if direction * v + _LIMIT != first)
    for at in candidates:
        beyond, far = int(total[at - 3]), int(total[at - _RINGING_HU])  # overshoot of a resampled window
        within = counts[at + 3 : at + 53]
        if far > _A_FEW * found.total or np.count_nonzero(within) < 15:
            continue  # in a synthetic image each value is an end
        if counts[at] >= max(10, 10 * within.mean()) and counts[at] > 2 * beyond:
            return direction * (at - _LIMIT)
    return None
