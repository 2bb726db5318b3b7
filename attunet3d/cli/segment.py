"""``attunet3d segment``: segment the pancreas in CTs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    refuse_unprintable,
)
from attunet3d.cli.verbs import with_options
from attunet3d.console import set_up_logging
from attunet3d.errors import AttUNet3dError, ConfigError
from attunet3d.io.output_formats import find_formats
from attunet3d.io.printable import one_line, without_uids

if TYPE_CHECKING:
    from attunet3d.io.paths import PathLike
    from attunet3d.segmenter.session import Case


@app.command()
def segment(
    context: typer.Context,
    cts: Annotated[
        list[Path], typer.Argument(metavar="CT...", help="NIfTI, NRRD or MetaImage files, and DICOM folders.")
    ],
    output: Annotated[Path, options.output("Folder for masks and records.")],
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: Precision = "auto",
    series_uid: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="The series of a DICOM folder to segment.")
    ] = None,
    segmentable_series: Annotated[
        bool,
        typer.Option("--all-series", help="Each CT series of every DICOM folder, named by its number in `inspect`."),
    ] = False,
    allow_uneven: AllowUneven = False,
    qc: QC = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also write the attention gates' weights as maps on each CT's grid.")
    ] = False,
    output_format: options.MaskFormat = "nifti",
    no_uids: NoUids = False,
    memory_limit: Annotated[float | None, options.memory("Memory limit; default: what is free.")] = None,
    allow_smaller_windows: AllowSmallerWindows = False,
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
) -> None:
    """Segment the pancreas in CTs: a mask on each CT's own grid, and a record of the run.

    Example: attunet3d segment ct.nii.gz dicom_folder/ -o masks --qc
    """
    set_up_logging(verbose)
    refuse_bad_folder(output)
    if series_uid is not None and segmentable_series:
        raise ConfigError("--series together with --all-series: give one of them")
    names = _names(cts)
    for name in names:
        refuse_unprintable(output / name)
    chosen: list[PathLike] = list(cts)
    done = failed = 0
    with products() as product, progress_bar() as (bar, tell):
        task = bar.add_task("load the network", total=None)

        def show(index: int, stage: str, done: int, total: int) -> None:
            label = f"[{index + 1}/{len(chosen)}] {names[index]}"
            bar.update(task, description=f"{label}: {stage}", completed=done, total=total)

        def say(kind: str, text: str) -> None:
            tell(f"{kind}: {one_line(without_uids(text) if no_uids else text)}")

        try:
            with interruptible():
                from attunet3d.segmenter.session import Segmenter

                find_formats(output_format)
                overrides = overrides_of(
                    set_,
                    ("checkpoint", "device", "precision"),
                    allow_uneven=allow_uneven,
                    allow_smaller_windows=allow_smaller_windows,
                )
                session = Segmenter(checkpoint, device, precision, presets or (), memory_limit, allow_code, **overrides)
                if not verbose:  # else they are in the log
                    for warning in session.warnings:
                        say("warning", with_options(warning, context.command))
                if segmentable_series:
                    bar.update(task, description="list the series")
                    chosen, names = _each_series(cts, names, say)
                cases = session.segment_all(
                    chosen,
                    output,
                    names=names,
                    series_uid=series_uid,
                    qc=qc,
                    attention=attention,
                    output_format=output_format,
                    keep_uids=not no_uids,
                    progress=show,
                )
                for case in cases:
                    if case.segmentation is None:
                        failed += 1
                        say("error", _error_of(case, context.command))
                        continue
                    done += 1
                    for warning in case.segmentation.record["warnings"]:
                        if warning not in session.warnings:
                            say("warning", f"{case.ct}: {with_options(warning, context.command)}")
                    product(case.segmentation.path)
                    for file in case.segmentation.record.get("attention", {}).values():
                        product(output / file)
        except Interrupted as interrupted:
            tell(f"interrupted, {done} of {len(chosen)} done")
            raise typer.Exit(interrupted.code) from None
    if failed:
        raise typer.Exit(1)


def _error_of(case: Case, verb: Any) -> str:
    error = case.error
    if isinstance(error, AttUNet3dError):
        # The message names the folder of the images, which may contain several series.
        of = "" if isinstance(case.ct, Path) or str(error).startswith(f"{case.ct}: ") else f"{case.ct}: "
        return f"{of}{with_options(error, verb)}"
    # An unexpected error of a case must not stop the others.
    logging.getLogger(__name__).info("traceback", exc_info=error)
    found = f"unexpected {type(error).__name__}: {error}"
    return f"{case.ct}: {found} (--verbose shows the traceback)"


def _names(cts: list[Path]) -> list[str]:
    """Name the files of each CT after the CT, prefixed with the name of its folder if two would be the same."""
    from attunet3d.io.cases import case_name, name_collisions

    names = [case_name(ct) for ct in cts]
    for same in name_collisions(names):
        for index in same:
            names[index] = f"{cts[index].absolute().parent.name}_{names[index]}"
    _refuse_same(cts, names)
    return names


def _refuse_same(cts: Sequence[PathLike], names: list[str]) -> None:
    from attunet3d.io.cases import name_collisions, quote_collision

    for same in name_collisions(names):
        files = ", ".join(str(cts[index]) for index in same)
        masks = quote_collision(f"{names[index]}_seg" for index in same)
        raise ConfigError(f"{files}: all their masks would be {masks}; segment them into different folders")


def _each_series(
    cts: list[Path], names: list[str], say: Callable[[str, str], None]
) -> tuple[list[PathLike], list[str]]:
    """Replace each DICOM folder by its series; return the CTs and the names of their files."""
    from attunet3d.io.cases import partition_series

    chosen: list[PathLike] = []
    names_of_chosen: list[str] = []
    for ct, name in zip(cts, names, strict=True):
        found: dict[str, PathLike] = {name: ct}
        left_out: list[str] = []
        if os.path.isdir(ct):  # not Path.is_dir, which raises for names that are too long
            with suppress(Exception):  # the session meets the same error, and reports it like any other
                cases, left_out = partition_series(ct)
                found = {f"{name}_series{case.number}": case for case in cases}
        for line in left_out:
            say("left out", line)
        chosen += found.values()
        names_of_chosen += found
    _refuse_same(chosen, names_of_chosen)
    return chosen, names_of_chosen
