"""Summarize metrics over many cases, and write them as a table."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attunet3d.metrics.masks import METRICS


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize the distribution of each metric over the cases of a study.

    Args:
        rows: a mapping for each case, with "case" and the metrics of ``compare_masks``.

    Returns:
        For each metric a dict: ``n`` (cases), ``mean`` and ``sd`` (of the sample: n - 1) of the finite values,
        ``median``, ``min`` and ``max`` of the defined values, the numbers of ``infinite`` and ``undefined`` ones (two
        empty masks). Statistics that are undefined (the sd of one case) or not finite are None, so that the summary is
        valid JSON. ``worst``: the names of the 5 cases with the lowest Dice, in ascending order, ties by name.
    """
    names = [name for name in rows[0] if name != "case"] if rows else list(METRICS)
    summary: dict[str, Any] = {name: _distribution([row[name] for row in rows]) for name in names}
    defined = [row for row in rows if not math.isnan(row["dice"])]
    summary["worst"] = [row["case"] for row in sorted(defined, key=lambda row: (row["dice"], row["case"]))[:5]]
    return summary


def write_metrics_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table of cases as CSV in UTF-8, atomically; the folder is created if it does not exist.

    Numbers have 6 decimals, enough for one voxel (0.0001 mL or more) and to recompute the summary; an infinite distance
    is ``inf``, an undefined value ``nan``. An apostrophe precedes text that a spreadsheet would take for a formula.

    Args:
        path: the file to write.
        rows: a mapping for each case, all with the same keys, which are the columns; "case" comes first. Without rows
            the columns are those of ``compare_masks``.

    Raises:
        OutputError: the file cannot be written.
    """
    from attunet3d.io.writer import make_folder, write_text_atomic

    columns = sorted(rows[0], key=lambda column: column != "case") if rows else ["case", *METRICS]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _cell(row[column]) for column in row} for row in rows)
    make_folder(Path(path).parent)
    return write_text_atomic(path, table.getvalue())


def _distribution(values: Sequence[float]) -> dict[str, float | None]:
    defined = [value for value in values if not math.isnan(value)]
    finite = [value for value in defined if math.isfinite(value)]
    ends = (statistics.median(defined), min(defined), max(defined)) if defined else (math.inf,) * 3
    median, lowest, highest = (end if math.isfinite(end) else None for end in ends)
    return {
        "n": len(values),
        "mean": statistics.fmean(finite) if finite else None,
        "sd": statistics.stdev(finite) if len(finite) > 1 else None,
        "median": median,
        "min": lowest,
        "max": highest,
        "infinite": len(defined) - len(finite),
        "undefined": len(values) - len(defined),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
