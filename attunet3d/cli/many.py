"""The verb for an archive: thousands of CTs on a cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from attunet3d.cli.app import app
from attunet3d.cli.interrupts import Interrupted, interruptible
from attunet3d.cli.options import (
    AllowCode,
    AllowSmallerWindows,
    AllowUneven,
    Device,
    Overrides,
    Precision,
    Presets,
    Verbose,
    overrides_of,
    products,
    progress_bar,
    refuse_bad_folder,
)
from attunet3d.console import set_up_logging
from attunet3d.io.printable import one_line, without_uids
from attunet3d.many import CASE_MINUTES

if TYPE_CHECKING:
    from attunet3d.many.run import Status

_SECONDS_BETWEEN_LINES = 30  # where stderr is no terminal


@app.command("segment-many")
def segment_many(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST|FOLDER",
            help="CSV or JSON lines (.jsonl): path and, if wanted, id and series_uid; or a folder that is searched.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks, records and results.csv.")],
    address: Annotated[
        str, typer.Option(metavar="auto|local|ADDRESS", help="Ray cluster: auto, local, ray://host:port or host:port.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many; by default as many as there is room for.")
    ] = None,
    num_cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.1, help="Cores; by default 2, or with GPUs the share of one GPU.")
    ] = None,
    num_gpus_per_worker: Annotated[
        float | None, typer.Option(min=0.0, help="By default 1 where there are GPUs; 0.5 for two workers on one.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB", min=0.1, help="Most for each worker; by default its share of what its node has left."
        ),
    ] = None,
    case_minutes: Annotated[
        float,
        typer.Option(
            "--case-timeout",
            metavar="MINUTES",
            min=0.01,
            help="A case that takes longer is set aside, and its worker killed.",
        ),
    ] = CASE_MINUTES,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also run what failed or was set aside before.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; the bundle's own by default.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    allow_uneven: AllowUneven = False,
    qc: Annotated[bool, typer.Option("--qc", help="Also write a picture of each mask over its CT.")] = False,
    format_: Annotated[str, typer.Option("--format", help="Of the masks, as for segment.")] = "nifti",
    no_uids: Annotated[bool, typer.Option("--no-uids", help="No DICOM UID in records and results.csv.")] = False,
    allow_smaller_windows: AllowSmallerWindows = False,
    preset: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
) -> None:
    """Segment thousands of CTs with Ray, on this machine or a cluster; the same command goes on after a stop.

    Example: attunet3d segment-many cohort.csv -o masks
    """
    set_up_logging(verbose)
    refuse_bad_folder(output)
    from attunet3d import many

    overrides = overrides_of(
        set_,
        ("checkpoint", "device", "precision"),
        allow_uneven=allow_uneven,
        allow_smaller_windows=allow_smaller_windows,
    )
    left_out: list[str] = []
    with products() as product, progress_bar() as (bar, say):
        task = bar.add_task("find the CTs, start the workers", total=None)
        last_line, seen = time.monotonic(), cast("Status | None", None)

        def show(status: Status) -> None:
            nonlocal last_line, seen
            seen = status
            bar.update(task, description=str(status), completed=status.before + status.ended, total=status.total)
            if not bar.console.is_terminal and time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                say(str(status))

        try:
            with interruptible():
                summary = many.segment_many(
                    source,
                    output,
                    address=address,
                    workers=workers,
                    cpus_per_worker=num_cpus_per_worker,
                    gpus_per_worker=num_gpus_per_worker,
                    memory_gb=memory,
                    output_format=format_,
                    qc=qc,
                    keep_uids=not no_uids,
                    retry_failed=retry_failed,
                    case_minutes=case_minutes,
                    left_out=left_out,
                    watch=show,
                    warn=lambda line: say(f"warning: {without_uids(one_line(line)) if no_uids else one_line(line)}"),
                    checkpoint=checkpoint,
                    device=device,
                    precision=precision,
                    presets=preset or (),
                    allow_code=allow_code,
                    **overrides,
                )
        except Interrupted as interrupted:
            so_far = f", {seen.by_status['done']} of {seen.total} done" if seen else ""
            say(f"interrupted{so_far}; the same command goes on")
            raise typer.Exit(interrupted.code) from None
        for line in left_out:
            say(f"left out: {without_uids(one_line(line)) if no_uids else one_line(line)}")
        for line in _lines(summary):
            say(line)
        product(output / "results.csv")
        product(output / "summary.json")
    if set(summary["by_status"]) - {"done"}:
        raise typer.Exit(1)


def _lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a reader."""
    run, counts = summary["this_run"], summary["by_status"]
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"{summary['cases']} cases: {statuses}"]
    if run["cases"]:
        deaths = f"; {run['worker_deaths']} workers died" if run["worker_deaths"] else ""
        lines.append(f"this run: {run['cases']} in {run['seconds']} s, {run['cases_per_minute']} a minute{deaths}")
    if run["slowest"]:
        lines.append("slowest: " + ", ".join(f"{one['id']} {one['seconds']:.1f} s" for one in run["slowest"][:5]))
    return lines
