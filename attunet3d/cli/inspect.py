"""`attunet3d inspect`: describe the series of a folder before anything is segmented."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attunet3d.cli.app import app
from attunet3d.cli.options import Verbose, products
from attunet3d.console import set_up_logging
from attunet3d.io.json_text import json_text
from attunet3d.io.printable import printable

if TYPE_CHECKING:
    from attunet3d.io.inspect import Finding

_COLUMNS = ("", "kind", "files", "size", "spacing mm", "orientation", "tilt")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="DICOM folder, searched recursively, or NIfTI, NRRD or MetaImage file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    verbose: Verbose = False,
) -> None:
    """List the series in a folder: their kind and geometry, and whether they can be segmented.

    Reads headers only. The UIDs are those that `segment --series` takes. Sizes are columns x rows x slices, spacing is
    in the same order. No patient names or IDs are shown.

    Example: attunet3d inspect dicom_folder
    """
    set_up_logging(verbose)
    with products() as product:
        from attunet3d.io.inspect import inspect_path

        findings = inspect_path(path)
        if as_json:
            listed = [dataclasses.asdict(finding) for finding in findings]
            product(json_text({"path": str(path), "series": listed}, indent=1))
        else:
            product(_table(findings))


def _table(findings: Sequence[Finding]) -> str:
    """Format a table of the geometry, with UID, verdict and warnings, too long for columns, below each row."""
    rows = [_COLUMNS, *map(_cells, findings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    indent = " " * (widths[0] + 2)
    table = [lines[0]]
    for line, finding in zip(lines[1:], findings, strict=True):
        below = [finding.uid, finding.verdict, *(f"warning: {text}" for text in finding.warnings)]
        table += [line, *(indent + text for text in below if text)]
    return "\n".join(map(printable, table))


def _cells(finding: Finding) -> tuple[str, ...]:
    steps = ["-" if step is None else format(step, ".4g") for step in finding.spacing_mm]
    tilt = finding.gantry_tilt_deg
    return (
        str(finding.number),
        finding.kind,
        str(finding.files),
        " x ".join(map(str, finding.size)) if finding.size else "-",
        " x ".join(steps) if any(finding.spacing_mm) else "-",
        f"{finding.plane} {finding.axes}" if finding.plane else "-",
        "-" if tilt is None else f"{tilt:.1f}°",
    )
