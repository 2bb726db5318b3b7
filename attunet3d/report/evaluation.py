"""Write the report of an evaluation: metrics of every case, their summary, and an HTML page."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from attunet3d.errors import CancelledError, ConfigError, own_error
from attunet3d.io.writer import make_folder, replace_as_one, temporary_path
from attunet3d.metrics.table import summarize, write_metrics_csv
from attunet3d.report.case_pictures import AttentionMaps, CasePictures, case_pictures
from attunet3d.report.html import Column, Report, ShownCase, page

logger = logging.getLogger(__name__)

WORST, BEST = 5, 3


@dataclass(frozen=True)
class CaseResult:
    """A case of an evaluation.

    Attributes:
        case: name in the report.
        image: path of the CT, a file or a DICOM folder.
        prediction: path of the mask, not 0 inside.
        reference: path of the label map.
        metrics: of ``attunet3d.metrics.compare_masks``; distances may be infinite.
    """

    case: str
    image: str
    prediction: str
    reference: str
    metrics: dict[str, float]


def write_report(
    output_dir: str | Path,
    results: Sequence[CaseResult],
    *,
    settings: Mapping[str, Any],
    pancreas_labels: Sequence[int] = (1,),
    tolerance_mm: float = 2.0,
    attention: AttentionMaps | None = None,
    title: str = "Pancreas segmentation: evaluation",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write metrics.csv (a row per case), summary.json and report.html, all three atomically.

    The page is self-contained. It shows pictures of the 5 worst and the 3 best cases by Dice, and only their CTs are
    read, one at a time. A case that cannot be shown is listed with the reason.

    Args:
        output_dir: created if it does not exist.
        results: at least one case.
        settings: of the evaluation, plain JSON values; shown, and written to summary.json.
        pancreas_labels: values of the references that count as pancreas.
        tolerance_mm: of the normalized surface Dice (nsd), as the metrics were computed.
        attention: called with the path of the CT of each case shown; returns {title of a level: map (X, Y, Z) on the
            grid of the CT}, floats in [0, 1] or uint8 with 255 for 1.
        title: of the page.
        progress: called with (cases drawn, all cases to draw).

    Returns:
        The path of report.html.

    Raises:
        ConfigError: there are no results.
        OutputError: a file cannot be written.
    """
    if not results:
        raise ConfigError("there are no results to report; give at least one case")
    folder = make_folder(output_dir)
    rows = [{"case": result.case, **result.metrics} for result in results]
    summary = summarize(rows)
    ordered = sorted(results, key=lambda result: (result.metrics["dice"], result.case))
    cases = [ShownCase(number, result.case, result.metrics) for number, result in enumerate(ordered, start=1)]
    groups = _groups(len(cases))
    to_draw = [number for numbers in groups.values() for number in numbers]
    for done, number in enumerate(to_draw, start=1):
        pictures = _draw(ordered[number - 1], pancreas_labels, attention)
        cases[number - 1] = replace(cases[number - 1], pictures=pictures)
        if progress is not None:
            progress(done, len(to_draw))

    created = datetime.now(timezone.utc)
    html = page(
        Report(
            title=title,
            created=f"{created:%Y-%m-%d %H:%M} UTC",
            columns=_columns(tolerance_mm, rows[0]),
            summary=summary,
            cases=cases,
            groups={heading: [cases[number - 1] for number in numbers] for heading, numbers in groups.items()},
            settings=settings,
        )
    )
    metadata = {"created": created.isoformat(timespec="seconds"), "cases": len(cases), "tolerance_mm": tolerance_mm}
    text = json.dumps({**metadata, **summary, "settings": settings}, indent=2, allow_nan=False)
    # All are complete before the first is renamed to its final name.
    with ExitStack() as files:
        places = [folder / name for name in ("metrics.csv", "summary.json", "report.html")]
        new = [files.enter_context(temporary_path(place)) for place in places]
        write_metrics_csv(new[0], rows)
        new[1].write_text(text + "\n", encoding="utf-8", newline="\n")
        new[2].write_text(html, encoding="utf-8", newline="\n")
        replace_as_one(list(zip(new, places, strict=True)))
    return folder / "report.html"


def _columns(tolerance_mm: float, row: Mapping[str, Any]) -> list[Column]:
    """Return columns of all metrics and, if there are several classes, of their most important ones."""
    columns = [
        Column("dice", "Dice", "", 3),
        Column("precision", "Precision", "", 3),
        Column("recall", "Recall", "", 3),
        Column("nsd", f"NSD at {tolerance_mm:g} mm", "", 3),
        Column("assd_mm", "ASSD", "mm", 2),
        Column("hd95_mm", "HD95", "mm", 2),
        Column("prediction_ml", "Predicted volume", "mL", 1),
        Column("reference_ml", "Reference volume", "mL", 1),
        Column("difference_ml", "Volume difference", "mL", 1),
    ]
    classes = [key.removesuffix("_dice") for key in row if key.startswith("class") and key.endswith("_dice")]
    for name in classes:
        shown = f"Class {name.removeprefix('class')}"
        columns += [
            Column(f"{name}_dice", f"{shown}: Dice", "", 3),
            Column(f"{name}_hd95_mm", f"{shown}: HD95", "mm", 2),
            Column(f"{name}_reference_ml", f"{shown}: reference volume", "mL", 1),
        ]
    return columns


def _groups(cases: int) -> dict[str, list[int]]:
    """Return heading -> numbers of the cases to show, counted from the worst."""
    if cases <= WORST + BEST:
        return {"Cases, worst first": list(range(1, cases + 1))}
    return {
        f"The {WORST} worst cases": list(range(1, WORST + 1)),
        f"The {BEST} best cases": list(range(cases, cases - BEST, -1)),
    }


def _draw(result: CaseResult, pancreas_labels: Sequence[int], attention: AttentionMaps | None) -> CasePictures | str:
    """Draw the pictures of a case, or return the reason why it failed, which must not prevent the report."""
    try:
        return case_pictures(result.image, result.prediction, result.reference, pancreas_labels, attention)
    except CancelledError:
        raise
    except Exception as error:
        own = own_error(error)
        if own is None:
            logger.warning("%s cannot be shown", result.case, exc_info=error)
        # Folders may be named after patients: only file names are shown.
        reason = str(own or f"unexpected {type(error).__name__}: {error}")
        for path in (result.image, result.prediction, result.reference):
            reason = reason.replace(str(Path(path)), Path(path).name)
        return reason
