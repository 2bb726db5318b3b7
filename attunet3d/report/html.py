"""Render the report: one self-contained HTML file, whose policy forbids browsers to fetch anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from attunet3d.io.printable import printable
from attunet3d.pictures.planes import HEAT_COLOURS, WINDOW_HU
from attunet3d.report.case_pictures import CasePictures
from attunet3d.report.figures import HEIGHT_IN, WIDTH_IN, agreement, agreement_chart, dice_chart, signed


@dataclass(frozen=True)
class Column:
    """A column of a table: key and name of a metric, unit ("" for a ratio) and decimals."""

    key: str
    name: str
    unit: str
    decimals: int

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def show(self, value: float) -> str:
        """Format a value."""
        if math.isnan(value):
            return "\N{EN DASH}"
        if math.isinf(value):
            return "∞"
        return signed(value, self.decimals) if self.key == "difference_ml" else f"{value:.{self.decimals}f}"

    def quantity(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{self.show(value)} {self.unit}".rstrip()


@dataclass(frozen=True)
class ShownCase:
    """One case of the report.

    Attributes:
        number: in the table of all cases.
        name: of the case.
        metrics: by their keys.
        pictures: None for a case that is only in the table; a string is the reason why its CT cannot be shown.
    """

    number: int
    name: str
    metrics: Mapping[str, float]
    pictures: CasePictures | str | None = None


@dataclass(frozen=True)
class Report:
    """Content of the page.

    Attributes:
        title: of the page.
        created: date and time, formatted.
        columns: of the tables.
        summary: from ``attunet3d.metrics.table.summarize``.
        cases: worst first, numbered from 1.
        groups: heading -> the cases shown with pictures.
        settings: plain JSON values.
    """

    title: str
    created: str
    columns: Sequence[Column]
    summary: Mapping[str, Mapping[str, Any]]
    cases: Sequence[ShownCase]
    groups: Mapping[str, Sequence[ShownCase]]
    settings: Mapping[str, Any]


def page(report: Report) -> str:
    """Render the report as HTML.

    All text is escaped. There are no scripts, and only data: URIs and links within the page.
    """
    cases = [case for group in report.groups.values() for case in group]
    low, high = WINDOW_HU
    return _template().render(
        report=report,
        summary=[_summary_row(column, report.summary[column.key]) for column in report.columns],
        charts=[_dice(report), _volumes(report)],
        chart_width=f"{WIDTH_IN * 96:.0f}",
        chart_height=f"{HEIGHT_IN * 96:.0f}",
        window=f"{signed(low, 0)} to {high:.0f}",
        has_attention=any(isinstance(case.pictures, CasePictures) and case.pictures.attention for case in cases),
        gradient=_gradient(),
    )


def _template() -> Template:
    folder = files("attunet3d.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_printable, keep_trailing_newline=True
    )
    environment.filters["json"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["style"] = folder.joinpath("report.css").read_text(encoding="utf-8")
    return environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))


def _printable(value: Any) -> Any:
    """Escape control characters and direction marks, as ``printable`` does; what is HTML already stays."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _summary_row(column: Column, found: Mapping[str, Any]) -> dict[str, Any]:
    mean = "\N{EN DASH}" if found["mean"] is None else column.show(found["mean"])
    if found["sd"] is not None:
        mean += f" ± {found['sd']:.{column.decimals}f}"
    missing = math.inf if found["infinite"] else math.nan
    median, low, high = (column.show(missing if found[key] is None else found[key]) for key in ("median", "min", "max"))
    return {
        "column": column, "mean": mean, "median": median, "low": low, "high": high, "infinite": found["infinite"]
    }  # fmt: skip


def _dice(report: Report) -> dict[str, Any]:
    median = report.summary["dice"]["median"]
    text = f"Dice of each case by its number in the table of all cases, and their histogram; line: median {median:.3f}."
    return {"chart": dice_chart([case.metrics["dice"] for case in report.cases]), "heading": "Dice", "text": text}


def _volumes(report: Report) -> dict[str, Any]:
    prediction, reference = ([case.metrics[k] for case in report.cases] for k in ("prediction_ml", "reference_ml"))
    found = agreement([case.metrics["difference_ml"] for case in report.cases])
    text = f"Bland-Altman plot, prediction minus reference: mean difference {signed(found.mean, 2)} mL"
    if found.lower is None or found.upper is None:
        text += "; limits of agreement take at least two cases."
    else:
        text += f", limits of agreement (mean ± 1.96 sd) {signed(found.lower, 2)} to {signed(found.upper, 2)} mL."
    return {"chart": agreement_chart(prediction, reference), "heading": "Volume agreement", "text": text}


def _gradient() -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colormaps[HEAT_COLOURS](step / 8)) for step in range(9))
