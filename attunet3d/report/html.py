"""The report's page: one HTML file that needs nothing else, and that a browser keeps from fetching anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from attunet3d.io.printable import printable
from attunet3d.pictures.planes import HEAT_COLOURS, WINDOW_HU
from attunet3d.report.case_pictures import CasePictures, Picture, Row
from attunet3d.report.figures import HEIGHT_IN, WIDTH_IN, Chart, agreement, agreement_chart, dice_chart, signed

DEFINITIONS = """<dl class="definitions">
<dt>Dice, precision, recall</dt>
<dd>Overlap of voxels; 1 is perfect. Precision is the share of the prediction that is right, recall the share of the
reference that was found.</dd>
<dt>NSD</dt>
<dd>Normalized surface Dice: the share of both surfaces that lies within the tolerance of the other one.</dd>
<dt>ASSD</dt>
<dd>Average symmetric surface distance, the S2S of the Attention U-Net paper.</dd>
<dt>HD95</dt>
<dd>95th percentile of the surface distances, of the worse direction.</dd>
<dt>Volume difference</dt>
<dd>Prediction minus reference.</dd>
</dl>
"""
# Styles stand in the page and images in data: URIs; whatever else a name or a setting might smuggle in is refused.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Column:
    """How a metric is shown: its key, its name, its unit ("" for a ratio) and its decimals."""

    key: str
    name: str
    unit: str
    decimals: int

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def show(self, value: float) -> str:
        """A value as text."""
        if math.isnan(value):
            return "\N{EN DASH}"
        if math.isinf(value):
            return "∞"
        return signed(value, self.decimals) if self.key == "difference_ml" else f"{value:.{self.decimals}f}"

    def quantity(self, value: float) -> str:
        """A value as text, with its unit."""
        return f"{self.show(value)} {self.unit}".rstrip()


@dataclass(frozen=True)
class ShownCase:
    """One case: its number in the table, its name and metrics, and its pictures, or why there are none.

    pictures: None for a case that is in the table only; a text is the reason why its CT cannot be shown.
    """

    number: int
    name: str
    metrics: Mapping[str, float]
    pictures: CasePictures | str | None = None


@dataclass(frozen=True)
class Report:
    """All that is on the page.

    title; created: a date and time as text; columns: of the tables; summary: from `attunet3d.metrics.table.summarize`;
    cases: worst first, numbered from 1; groups: heading -> the cases shown with pictures; settings: plain JSON values.
    """

    title: str
    created: str
    columns: Sequence[Column]
    summary: Mapping[str, Mapping[str, Any]]
    cases: Sequence[ShownCase]
    groups: Mapping[str, Sequence[ShownCase]]
    settings: Mapping[str, Any]


def page(report: Report) -> str:
    """The report as HTML. All text is escaped; there is no script, and no address but data: and places in the page."""
    title = _text(report.title)
    count = "1 case" if len(report.cases) == 1 else f"{len(report.cases)} cases"
    style = files("attunet3d.report").joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}.bar i {{ background: linear-gradient(to right, {_gradient()}); }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="meta">{count} · {_text(report.created)}</p>
<p class="notice">Research software, not a medical device.</p>
</header>
<main>
<section>
<h2>Summary</h2>
{_summary(report)}
</section>
<section class="charts">
{_dice(report)}
{_volumes(report)}
</section>
{_pictures(report)}
<section>
<h2>All cases</h2>
<p class="hint">Worst first; numbers as in the charts.</p>
{_table(report)}
</section>
<section>
<h2>Configuration and versions</h2>
{_settings(report.settings, "settings")}
</section>
</main>
</body>
</html>
"""


def _summary(report: Report) -> str:
    rows, infinite = [], []
    for column in report.columns:
        found = report.summary[column.key]
        mean = "\N{EN DASH}" if found["mean"] is None else column.show(found["mean"])
        if found["sd"] is not None:
            mean += f" ± {found['sd']:.{column.decimals}f}"
        missing = math.inf if found["infinite"] else math.nan
        median, low, high = (column.show(missing if found[k] is None else found[k]) for k in ("median", "min", "max"))
        cells = "".join(f"<td>{text}</td>" for text in (mean, median, f"{low} to {high}"))
        rows.append(f'<tr><th scope="row">{_text(column.heading)}</th>{cells}</tr>')
        if found["infinite"]:
            infinite.append(f"{_text(column.name)} in {found['infinite']}")
    note = ""
    if infinite:
        note = (
            '<p class="hint">One of the two masks is empty, so that a distance has no finite value (∞): '
            f"{', '.join(infinite)} of {len(report.cases)} cases; means and deviations are of the others.</p>"
        )
    return (
        '<div class="summary">\n<table><thead><tr><th class="name" scope="col">Metric</th>'
        '<th scope="col">Mean ± sd</th><th scope="col">Median</th><th scope="col">Range</th></tr></thead>\n'
        f"<tbody>\n{_lines(rows)}\n</tbody></table>\n{DEFINITIONS}</div>\n{note}"
    )


def _dice(report: Report) -> str:
    median = report.summary["dice"]["median"]
    text = f"Dice of each case by its number in the table of all cases, and their histogram; line: median {median:.3f}."
    return _chart(dice_chart([case.metrics["dice"] for case in report.cases]), "Dice", text)


def _volumes(report: Report) -> str:
    prediction, reference = ([case.metrics[k] for case in report.cases] for k in ("prediction_ml", "reference_ml"))
    found = agreement([case.metrics["difference_ml"] for case in report.cases])
    text = f"Bland-Altman plot, prediction minus reference: mean difference {signed(found.mean, 2)} mL"
    if found.lower is None or found.upper is None:
        text += "; limits of agreement take at least two cases."
    else:
        text += f", limits of agreement (mean ± 1.96 sd) {signed(found.lower, 2)} to {signed(found.upper, 2)} mL."
    return _chart(agreement_chart(prediction, reference), "Volume agreement", text)


def _chart(chart: Chart, heading: str, text: str) -> str:
    size = f'width="{WIDTH_IN * 96:.0f}" height="{HEIGHT_IN * 96:.0f}"'
    return (
        f"<figure>\n<h2>{heading}</h2>\n<picture>"
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{chart.dark}">'
        f'<img src="{chart.light}" {size} alt="{text}"></picture>\n<figcaption>{text}</figcaption>\n</figure>'
    )


def _pictures(report: Report) -> str:
    low, high = WINDOW_HU
    legend = '<ul class="legend"><li><i></i>prediction</li><li class="dashed"><i></i>reference</li></ul>\n'
    hint = (
        "Planes along the CT's own axes, through the slices that hold most of the two masks; window "
        f"{signed(low, 0)} to {high:.0f} HU. R, L, A, P: the patient's right, left, front, back."
    )
    shown = [case.pictures for case in report.cases if isinstance(case.pictures, CasePictures)]
    if any(pictures.attention for pictures in shown):
        hint += " Attention is drawn half transparent over the same planes, with the reference's outline."
    hint = f'<p class="hint">{hint}</p>\n'
    sections = []
    for heading, cases in report.groups.items():
        drawn = _lines(_case(case, report.columns) for case in cases)
        sections.append(f"<section>\n<h2>{_text(heading)}</h2>\n{hint}{legend}{drawn}\n</section>")
        hint = ""
    return _lines(sections)


def _case(case: ShownCase, columns: Sequence[Column]) -> str:
    facts = "".join(
        f"<div><dt>{_text(column.name)}</dt><dd>{column.quantity(case.metrics[column.key])}</dd></div>"
        for column in columns
        if column.key in ("dice", "assd_mm", "prediction_ml", "reference_ml")
    )
    if isinstance(case.pictures, CasePictures):
        name = f"case {case.number}, {case.name}"
        rows = [_outlines(row, name) for row in case.pictures.outlines]
        rows += [_attention(row, name) for row in case.pictures.attention]
        shown = _lines(rows)
    else:
        shown = f'<p class="notice">No pictures: {_text(case.pictures or "")}</p>'
    return (
        f'<article class="case" id="case-{case.number}">\n'
        f"<header><h3>{case.number}. {_text(case.name)}</h3><dl>{facts}</dl></header>\n{shown}\n</article>"
    )


def _outlines(row: Row, name: str) -> str:
    heading = f"<h4>Planes {_text(row.title)}</h4>\n" if row.title else ""
    figures = "".join(
        f"{_figure(picture, f'{name}: prediction and reference')}<figcaption>{_place(picture)}</figcaption></figure>"
        for picture in row.pictures
    )
    return f'<div class="row">{heading}<div class="planes">{figures}</div></div>'


def _attention(row: Row, name: str) -> str:
    figures = "".join(f"{_figure(picture, f'{name}: attention, {row.title}')}</figure>" for picture in row.pictures)
    return (
        f'<div class="row"><h4>Attention, {_text(row.title)}<span class="bar">0<i></i>1</span></h4>\n'
        f'<div class="planes attention">{figures}</div></div>'
    )


def _figure(picture: Picture, text: str) -> str:
    """The start of a figure; its share of the row's width is its own, so that a row has one scale."""
    return (
        f'<figure style="flex-grow:{picture.width}"><img src="{picture.uri}" width="{picture.width}" '
        f'height="{picture.height}" alt="{_text(f"{text}, {_place(picture)}")}">'
    )


def _place(picture: Picture) -> str:
    return f"{picture.view}, {picture.slice}"


def _table(report: Report) -> str:
    head = "".join(f'<th scope="col">{_text(column.heading)}</th>' for column in report.columns)
    rows = []
    for case in report.cases:
        name = _text(case.name)
        if case.pictures is not None:
            name = f'<a href="#case-{case.number}">{name}</a>'
        cells = "".join(f"<td>{column.show(case.metrics[column.key])}</td>" for column in report.columns)
        rows.append(f'<tr><td>{case.number}</td><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="cases"><thead><tr><th scope="col">No.</th>'
        f'<th class="name" scope="col">Case</th>{head}</tr></thead>\n<tbody>\n{_lines(rows)}\n</tbody></table></div>'
    )


def _settings(value: Any, style: str = "") -> str:
    """A plain JSON value as nested lists of names and values."""
    if isinstance(value, Mapping) and value:
        items = _lines(f"<dt>{_text(str(name))}</dt><dd>{_settings(item)}</dd>" for name, item in value.items())
        return f'<dl class="{style}">\n{items}\n</dl>' if style else f"<dl>\n{items}\n</dl>"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return _settings({str(number): item for number, item in enumerate(value, start=1)})
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'<span class="value">{_text(text)}</span>'


def _gradient() -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colormaps[HEAT_COLOURS](step / 8)) for step in range(9))


def _text(text: str) -> str:
    """Text as HTML; what turns the direction of writing, or is no text, is shown as in `printable`."""
    return escape(printable(text))


def _lines(parts: Any) -> str:
    return "\n".join(parts)
