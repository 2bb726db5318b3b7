"""Charts of the report: distribution of Dice and agreement of volumes, as SVG for light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MINUS = "\N{MINUS SIGN}"
WIDTH_IN, HEIGHT_IN = 5.2, 3.6
LIMITS_SD = 1.96  # 95% of a normal distribution is within this many standard deviations of its mean
DISTINCT_ML = 0.01  # smaller deviations are rounding: no limits are drawn, and the axis is not scaled to them
NUMBERED_POINTS = 10  # with more cases only outliers are numbered


@dataclass(frozen=True)
class Chart:
    """A chart for a light and for a dark page: data: URIs of SVG with a transparent background."""

    light: str
    dark: str


@dataclass(frozen=True)
class _Theme:
    ink: str
    muted: str
    points: str
    lines: str


_LIGHT = _Theme(ink="#1c2733", muted="#aab4bf", points="#1667a8", lines="#b04a00")
_DARK = _Theme(ink="#dbe3ea", muted="#51606e", points="#6db6f2", lines="#ffb070")


@dataclass(frozen=True)
class Agreement:
    """Agreement of two measurements of the same volumes, in mL (Bland and Altman, Lancet 1986;327:307-310).

    With a single case all but the mean are None.

    Attributes:
        mean, sd: of the differences (n - 1 in the denominator).
        lower, upper: limits of agreement, mean ± 1.96 sd, between which 95% of differences are expected.
    """

    mean: float
    sd: float | None
    lower: float | None
    upper: float | None


def agreement(differences: Sequence[float]) -> Agreement:
    """Compute mean difference and limits of agreement (Bland and Altman) of at least one difference, in mL."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return Agreement(mean, None, None, None)
    sd = float(np.std(differences, ddof=1))
    return Agreement(mean, sd, mean - LIMITS_SD * sd, mean + LIMITS_SD * sd)


def dice_chart(dice: Sequence[float]) -> Chart:
    """Draw the Dice of each case, in the given order and numbered from 1, and a histogram."""

    def draw(figure: Figure, theme: _Theme) -> None:
        cases, bars = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [4, 1]})
        for axes in (cases, bars):
            _plain(axes, theme)
        numbers = np.arange(1, len(dice) + 1)
        cases.axhline(float(np.median(dice)), color=theme.lines, linewidth=1.2)
        cases.scatter(numbers, dice, s=_point_size(len(dice)), color=theme.points, zorder=3, clip_on=False)
        cases.set(xlabel="Case number", ylabel="Dice", ylim=(0, 1), yticks=np.linspace(0, 1, 6))
        cases.set_xlim(0.5 - 0.03 * len(dice), len(dice) + 0.5 + 0.03 * len(dice))
        cases.set_xticks(_case_ticks(len(dice)))
        bars.hist(dice, bins=np.linspace(0, 1, 21), orientation="horizontal", color=theme.points)
        bars.axhline(float(np.median(dice)), color=theme.lines, linewidth=1.2)
        bars.set_xlabel("Cases")
        bars.xaxis.get_major_locator().set_params(integer=True, nbins=2)
        bars.tick_params(axis="y", length=0)

    return _chart(draw)


def agreement_chart(prediction_ml: Sequence[float], reference_ml: Sequence[float]) -> Chart:
    """Draw a Bland-Altman plot: difference (prediction - reference) over the mean of the two volumes, in mL."""
    predicted, referenced = np.asarray(prediction_ml, float), np.asarray(reference_ml, float)
    middles, differences = (predicted + referenced) / 2, predicted - referenced
    found = agreement(differences.tolist())
    lines = [("mean", found.mean)]
    if found.lower is not None and found.upper is not None and found.upper - found.lower > DISTINCT_ML:
        lines += [(f"+{LIMITS_SD} sd", found.upper), (f"{MINUS}{LIMITS_SD} sd", found.lower)]

    def draw(figure: Figure, theme: _Theme) -> None:
        axes = figure.subplots()
        _plain(axes, theme)
        axes.axhline(0, color=theme.muted, linewidth=0.8)
        for name, value in lines:
            axes.axhline(value, color=theme.lines, linewidth=1.2, linestyle="solid" if name == "mean" else (0, (5, 3)))
            axes.annotate(
                f"{name}\n{signed(value)}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                color=theme.lines,
                fontsize=9,
                va="center",
            )
        axes.scatter(middles, differences, s=_point_size(len(middles)), color=theme.points, zorder=3)
        for number, (x, y) in enumerate(zip(middles, differences, strict=True), start=1):
            values = [value for _, value in lines]
            stands_out = len(lines) > 1 and not min(values) <= y <= max(values)
            if len(middles) <= NUMBERED_POINTS or stands_out:
                offset = {"xytext": (4, 4), "textcoords": "offset points"}
                axes.annotate(str(number), (x, y), color=theme.ink, fontsize=8, **offset)
        axes.set(xlabel="Mean of prediction and reference (mL)", ylabel=f"Prediction {MINUS} reference (mL)")
        axes.margins(0.1, 0.15)
        low, high = axes.get_ylim()
        if high - low < DISTINCT_ML:
            axes.set_ylim(found.mean - 1, found.mean + 1)

    return _chart(draw)


def signed(value: float, decimals: int = 1) -> str:
    """Format a difference with its sign, a typographic minus; zero has none."""
    text = f"{value:+.{decimals}f}".replace("-", MINUS)
    return text[1:] if float(text[1:]) == 0 else text


def _point_size(cases: int) -> float:
    return 28 if cases <= 60 else 12


def _case_ticks(cases: int) -> list[int]:
    """Choose ticks of case numbers: all of a few, the first and round ones of many."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, cases) if cases <= 12 * step)
    return [1, *range(step, cases + 1, step)] if step > 1 else list(range(1, cases + 1))


def _plain(axes: Axes, theme: _Theme) -> None:
    """Style axes plainly, in the colours of the theme."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.muted)
    axes.tick_params(color=theme.muted, labelcolor=theme.ink)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.grid(axis="y", color=theme.muted, alpha=0.4, linewidth=0.6)
    axes.set_axisbelow(True)


def _chart(draw: Callable[[Figure, _Theme], None]) -> Chart:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    uris = []
    for theme in (_LIGHT, _DARK):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), facecolor="none", layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        uris.append(data_uri("image/svg+xml", buffer.getvalue()))
    return Chart(*uris)


def data_uri(media_type: str, data: bytes) -> str:
    """Encode bytes as a data: URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
