"""``attunet3d inspect``: describe images or weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attunet3d.cli.app import app
from attunet3d.cli.options import Verbose, products
from attunet3d.console import set_up_logging
from attunet3d.io.json_text import json_text
from attunet3d.io.printable import printable

if TYPE_CHECKING:
    from attunet3d.io.inspect import Finding
    from attunet3d.runtime.weights_report import WeightsReport

_COLUMNS = ("", "kind", "files", "size", "spacing mm", "orientation", "tilt")


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="DICOM folder, however nested, or NIfTI, NRRD or MetaImage file; or weights.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
    verbose: Verbose = False,
) -> None:
    """List the series in a folder, with their geometry, and whether each can be segmented; or describe weights.

    For images, only headers are read; `segment --series` takes a UID of the list. Sizes are columns x rows x slices,
    spacing is in the same order. No name or ID of a patient is shown.

    For weights (model.pt, safetensors) and exported networks (ONNX, TorchScript): the network, the recipe, the SHA-256,
    and whether the file can be used as a checkpoint.

    Example: attunet3d inspect dicom_folder
    """
    set_up_logging(verbose)
    with products() as product:
        from attunet3d.io.weights_format import weights_format

        if weights_format(path):
            from attunet3d.runtime.weights_report import inspect_weights

            report = inspect_weights(path)
            as_dict = {"path": str(path), "weights": dataclasses.asdict(report)}
            product(json_text(as_dict, indent=1) if as_json else _description(report))
            return
        from attunet3d.io.inspect import inspect_path

        findings = inspect_path(path)
        if as_json:
            listed = [dataclasses.asdict(finding) for finding in findings]
            product(json_text({"path": str(path), "series": listed}, indent=1))
        else:
            product(_table(findings))


def _description(report: WeightsReport) -> str:
    """Format one line for each property of weights and for each value of their recipe."""
    dtypes = f", {' and '.join(report.dtypes)}" if report.dtypes else ""
    rows = [
        ("weights", f"{report.format}, {report.size:,} bytes"),
        ("sha256", report.sha256),
        ("network", "unknown" if report.network is None else f"AttentionUNet, {_listed(report.network)}"),
        ("parameters", "unknown" if report.parameters is None else f"{report.parameters:,}{dtypes}"),
        *_values("recipe", report.recipe),
        *_values("assumed", report.assumed),
        ("loadable", f"{'yes' if report.loadable else 'no'}: {report.verdict}"),
        *(("warning", text) for text in report.warnings),
    ]
    return "\n".join(printable(f"{name:<12}{text}") for name, text in rows)


def _values(name: str, values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if values is None:
        return [(name, "none")] if name == "recipe" else []
    lines = [f"{key}: {_listed(value) if isinstance(value, Mapping) else value}" for key, value in values.items()]
    return [(name if number == 0 else "", line) for number, line in enumerate(lines)]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _table(findings: Sequence[Finding]) -> str:
    """Format a table of the geometry; UID, verdict and warnings are too long for columns and go below each row."""
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
