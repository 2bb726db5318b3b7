"""The verb that most users want: CTs in, masks out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    refuse_unprintable,
)
from attunet3d.console import set_up_logging
from attunet3d.errors import AttUNet3dError, ConfigError
from attunet3d.io.printable import one_line, without_uids

if TYPE_CHECKING:
    from attunet3d.io.paths import PathLike
    from attunet3d.segmenter.session import Case


@app.command()
def segment(
    cts: Annotated[
        list[Path], typer.Argument(metavar="CT...", help="NIfTI, NRRD or MetaImage files, and DICOM folders.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and records; made if missing.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; the bundle's own by default.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    series: Annotated[str | None, typer.Option(metavar="UID", help="Which series of a DICOM folder.")] = None,
    all_series: Annotated[
        bool,
        typer.Option("--all-series", help="Each CT series of every DICOM folder, named by its number in `inspect`."),
    ] = False,
    allow_uneven: AllowUneven = False,
    qc: Annotated[bool, typer.Option("--qc", help="Also write a picture of each mask over its CT.")] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also write the attention gates' weights as maps on each CT's grid.")
    ] = False,
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="Of the masks: nifti; for CTs in DICOM folders also dicom-seg, dicom-seg-labelmap."
        ),
    ] = "nifti",
    no_uids: Annotated[
        bool,
        typer.Option("--no-uids", help="No DICOM UID in records and messages. A DICOM SEG holds UIDs all the same."),
    ] = False,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", min=0.0, help="Most to use; by default what there is.")
    ] = None,
    allow_smaller_windows: AllowSmallerWindows = False,
    preset: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
) -> None:
    """Segment the pancreas in CTs: a mask on each CT's own grid, and a record of the run.

    Example: attunet3d segment ct.nii.gz dicom_folder/ -o masks --qc
    """
    set_up_logging(verbose)
    refuse_bad_folder(output)
    if series is not None and all_series:
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
            text = without_uids(text) if no_uids else text
            tell(f"{kind}: {one_line(text)}")

        try:
            with interruptible():
                from attunet3d.segmenter.outputs import check_format
                from attunet3d.segmenter.session import Segmenter

                check_format(format_)
                overrides = overrides_of(
                    set_,
                    ("checkpoint", "device", "precision"),
                    allow_uneven=allow_uneven,
                    allow_smaller_windows=allow_smaller_windows,
                )
                session = Segmenter(checkpoint, device, precision, preset or (), memory, allow_code, **overrides)
                if not verbose:  # which has them in the log
                    for warning in session.warnings:
                        say("warning", warning)
                if all_series:
                    bar.update(task, description="list the series")
                    chosen, names = _each_series(cts, names, say)
                cases = session.segment_all(
                    chosen,
                    output,
                    names=names,
                    series_uid=series,
                    qc=qc,
                    attention=attention,
                    output_format=format_,
                    keep_uids=not no_uids,
                    progress=show,
                )
                for case in cases:
                    if case.segmentation is None:
                        failed += 1
                        say("error", _what_went_wrong(case))
                        continue
                    done += 1
                    for warning in case.segmentation.record["warnings"]:
                        if warning not in session.warnings:
                            say("warning", f"{case.ct}: {warning}")
                    product(case.segmentation.path)
                    for file in case.segmentation.record.get("attention", {}).values():
                        product(output / file)
        except Interrupted as interrupted:
            tell(f"interrupted, {done} of {len(chosen)} done")
            raise typer.Exit(interrupted.code) from None
    if failed:
        raise typer.Exit(1)


def _what_went_wrong(case: Case) -> str:
    error = case.error
    if isinstance(error, AttUNet3dError):
        # The message names the folder of the images, which may hold several series.
        of = "" if isinstance(case.ct, Path) or str(error).startswith(f"{case.ct}: ") else f"{case.ct}: "
        return f"{of}{error}"
    # A case that breaks in an unforeseen way must not take the others with it.
    logging.getLogger(__name__).info("traceback", exc_info=error)
    found = f"unexpected {type(error).__name__}: {error}"
    return f"{case.ct}: {found} (--verbose shows the traceback)"


def _names(cts: list[Path]) -> list[str]:
    """What each CT's files are called: as the CT, with its folder's name before it where that is not enough."""
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
    """The CTs with each folder's series in its place, and what their files are called."""
    from attunet3d.io.cases import partition_series

    chosen: list[PathLike] = []
    names_of_chosen: list[str] = []
    for ct, name in zip(cts, names, strict=True):
        found: dict[str, PathLike] = {name: ct}
        left_out: list[str] = []
        if os.path.isdir(ct):  # not Path.is_dir, which raises for names that are too long
            with suppress(Exception):  # the session will meet the same error, and count and tell it as any other
                cases, left_out = partition_series(ct)
                found = {f"{name}_series{case.number}": case for case in cases}
        for line in left_out:
            say("left out", line)
        chosen += found.values()
        names_of_chosen += found
    _refuse_same(chosen, names_of_chosen)
    return chosen, names_of_chosen
