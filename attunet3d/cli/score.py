"""``attunet3d score``: compare masks with references."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.cli.options import Verbose, products, progress_bar, refuse_bad_folder, refuse_unprintable
from attunet3d.cli.verbs import with_options
from attunet3d.console import set_up_logging
from attunet3d.errors import AttUNet3dError, ConfigError, OutputError
from attunet3d.io.json_text import json_text
from attunet3d.io.printable import one_line

if TYPE_CHECKING:
    from attunet3d.metrics.folders import FolderScores

Labels = Annotated[
    str | None,
    typer.Option(metavar="N,...", help="Foreground value or values; default: 1, and the file must contain no other."),
]


@app.command()
def score(
    context: typer.Context,
    prediction: Annotated[Path, typer.Argument(help="Predicted mask, or a folder of them.")],
    reference: Annotated[Path, typer.Argument(help="Reference mask on the same grid, or a folder of them.")],
    output: Annotated[Path | None, options.output("Table to write, one row per case.", metavar="CSV")] = None,
    tolerance_mm: Annotated[float, typer.Option(min=0.0, help="Tolerance of the surface Dice (nsd), mm.")] = 2.0,
    prediction_label: Labels = None,
    reference_label: Labels = None,
    verbose: Verbose = False,
) -> None:
    """Compute Dice, precision, recall, surface distances (mm) and volumes (mL) of masks against references.

    Prints JSON: the metrics of two files, or the summary of two folders, whose files are matched by name. With -o it
    writes a table instead and prints its path. Distances to an empty mask are infinite, and if both masks are empty
    only the volumes are defined: JSON has null for these, the table inf and nan.

    Example: attunet3d score masks references -o metrics.csv --reference-label 1,2
    """
    set_up_logging(verbose)
    folders = prediction.is_dir()
    if folders != reference.is_dir():
        raise ConfigError(f"{prediction} and {reference}: one is a folder; give two files or two folders")
    if output is not None:
        refuse_unprintable(output)
        refuse_bad_folder(output.parent)
        if output.is_dir():
            raise OutputError(f"{output}: is a folder; give a file name, such as {output / 'metrics.csv'}")
    arguments: dict[str, Any] = {
        "prediction_label": _values("--prediction-label", prediction_label),
        "reference_label": _values("--reference-label", reference_label),
        "tolerance_mm": tolerance_mm,
    }
    with products() as product, progress_bar() as (bar, say):
        task = bar.add_task("score", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        from attunet3d.io.cases import case_name
        from attunet3d.metrics.folders import FolderScores, score_folders
        from attunet3d.metrics.masks import score as score_files
        from attunet3d.metrics.table import summarize, write_metrics_csv

        if folders:
            scores = score_folders(prediction, reference, **arguments, progress=show)
            result = summarize(scores.rows)
        else:
            notes: list[str] = []
            result = score_files(prediction, reference, **arguments, warn=notes.append)
            scores = FolderScores([{"case": case_name(prediction), **result}], {}, [], notes)
        _report(scores, context.command, say)
        if output is not None and scores.rows:
            product(write_metrics_csv(output, scores.rows))
            if folders:
                for line in _table(result):
                    say(line)
        elif scores.rows:
            product(json_text(_rounded(result)))
    if scores.failures:
        raise typer.Exit(1)


def _report(scores: FolderScores, verb: Any, say: Callable[[str], None]) -> None:
    """Print the errors of cases that failed, and the warnings."""
    for case, error in scores.failures.items():
        if isinstance(error, AttUNet3dError):
            say(f"error: {one_line(with_options(error, verb))}")
        else:
            found = f"unexpected {type(error).__name__}: {one_line(error)}"
            say(f"error: {case}: {found} (--verbose shows the traceback)")
            logging.getLogger(__name__).info("traceback", exc_info=error)
    for note in scores.notes:
        say(f"warning: {one_line(note)}")
    for row in scores.rows:
        if math.isnan(row["dice"]):
            say(f"warning: {row['case']}: both masks are empty, so the Dice is undefined")
    if scores.unpredicted:
        names = ", ".join(scores.unpredicted)
        say(f"warning: references without a prediction ({len(scores.unpredicted)}): {names}")


def _values(option: str, text: str | None) -> list[int] | None:
    """Parse "1,2" to [1, 2]."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: expected a value or values of the label map, e.g. 1 or 1,2") from error


def _rounded(value: Any) -> Any:
    """Round to as many decimals as in the table; infinity and NaN, which JSON lacks, become None."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _table(summary: Mapping[str, Any]) -> list[str]:
    """Format a summary as a table."""
    from attunet3d.metrics.masks import METRICS

    columns = ("mean", "sd", "median", "min", "max")
    lines = ["".join([f"{'':13}", *(f"{column:>10}" for column in columns)])]
    for metric in METRICS:
        found = summary[metric]
        cells = (f"{'-' if found[column] is None else format(found[column], '.3f'):>10}" for column in columns)
        unusual = [f"{found[kind]} {kind}" for kind in ("infinite", "undefined") if found[kind]]
        note = f"  ({', '.join(unusual)})" if unusual else ""
        lines.append("".join([f"{metric:13}", *cells, note]))
    return [*lines, f"cases: {summary['dice']['n']}, worst by Dice: {', '.join(summary['worst'])}"]
