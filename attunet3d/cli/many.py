"""``attunet3d segment-many``: segment thousands of CTs on a cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.cli.interrupts import Interrupted, interruptible
from attunet3d.cli.options import (
    QC,
    AllowCode,
    AllowSmallerWindows,
    AllowUneven,
    Checkpoint,
    Device,
    NoUids,
    Overrides,
    Precision,
    Presets,
    Verbose,
    overrides_of,
    products,
    progress_bar,
    refuse_bad_folder,
)
from attunet3d.cli.verbs import with_options
from attunet3d.console import set_up_logging
from attunet3d.io.printable import one_line, without_uids
from attunet3d.many import CASE_MINUTES

if TYPE_CHECKING:
    from attunet3d.many.run import Status

_SECONDS_BETWEEN_LINES = 30  # if stderr is not a terminal


@app.command("segment-many")
def segment_many(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST|FOLDER",
            help="CSV or JSON lines (.jsonl) with path and optionally id and series_uid; or a folder to search.",
        ),
    ],
    output: Annotated[Path, options.output("Folder for masks, records and results.csv.")],
    address: Annotated[
        str, typer.Option(metavar="auto|local|ADDRESS", help="Ray cluster: auto, local, ray://host:port or host:port.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers; default: as many as fit into the cluster.")
    ] = None,
    cpus_per_worker: Annotated[
        float | None,
        typer.Option("--num-cpus-per-worker", min=0.1, help="Default: 2, or with GPUs the cores per GPU."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option("--num-gpus-per-worker", min=0.0, help="Default: 1 if there are GPUs; 0.5 to share one by two."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        options.memory("Memory limit of each worker; default: its share of the node's free memory."),
    ] = None,
    case_minutes: Annotated[
        float,
        typer.Option(
            "--case-timeout",
            metavar="MINUTES",
            min=0.01,
            help="Set a case aside, and kill its worker, if it takes longer.",
        ),
    ] = CASE_MINUTES,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also retry cases that failed or were set aside.")
    ] = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: Precision = "auto",
    allow_uneven: AllowUneven = False,
    qc: QC = False,
    output_format: options.MaskFormat = "nifti",
    no_uids: NoUids = False,
    allow_smaller_windows: AllowSmallerWindows = False,
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
) -> None:
    """Segment thousands of CTs with Ray, on this machine or a cluster; repeat the command to resume after a stop.

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
        task = bar.add_task("find CTs, start workers", total=None)

        def tell(kind: str, line: str) -> None:
            line = one_line(with_options(line, context.command))
            say(f"{kind}: {without_uids(line) if no_uids else line}")

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
                    cpus_per_worker=cpus_per_worker,
                    gpus_per_worker=gpus_per_worker,
                    memory_gb=memory_gb,
                    output_format=output_format,
                    qc=qc,
                    keep_uids=not no_uids,
                    retry_failed=retry_failed,
                    case_minutes=case_minutes,
                    left_out=left_out,
                    watch=show,
                    warn=lambda line: tell("warning", line),
                    checkpoint=checkpoint,
                    device=device,
                    precision=precision,
                    presets=presets or (),
                    allow_code=allow_code,
                    **overrides,
                )
        except Interrupted as interrupted:
            so_far = f", {seen.by_status['done']} of {seen.total} done" if seen else ""
            say(f"interrupted{so_far}; repeat the command to resume")
            raise typer.Exit(interrupted.code) from None
        for line in left_out:
            tell("left out", line)
        for line in _lines(summary):
            say(line)
        product(output / "results.csv")
        product(output / "summary.json")
    if set(summary["by_status"]) - {"done"}:
        raise typer.Exit(1)


def _lines(summary: dict[str, Any]) -> list[str]:
    """Format the summary."""
    run, counts = summary["this_run"], summary["by_status"]
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"{summary['cases']} cases: {statuses}"]
    if run["cases"]:
        deaths = f"; {run['worker_deaths']} workers died" if run["worker_deaths"] else ""
        lines.append(f"this run: {run['cases']} in {run['seconds']} s, {run['cases_per_minute']} a minute{deaths}")
    if run["slowest"]:
        lines.append("slowest: " + ", ".join(f"{one['id']} {one['seconds']:.1f} s" for one in run["slowest"][:5]))
    return lines
