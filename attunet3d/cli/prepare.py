"""``attunet3d prepare``: write a datalist for a data set on disk."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.cli.options import Seed, Verbose, products, progress_bar, refuse_bad_folder, refuse_unprintable
from attunet3d.cli.verbs import Program, with_options
from attunet3d.console import set_up_logging
from attunet3d.io.printable import one_line, say

if TYPE_CHECKING:
    from attunet3d.datasets.prepare import RawData

prepare = Program(
    no_args_is_help=True,
    help="Check a data set, case by case, and write a datalist with folds.\n\n"
    "Example: attunet3d prepare msd-pancreas Task07_Pancreas -o task07.json",
)
app.add_typer(prepare, name="prepare")

Raw = Annotated[Path, typer.Argument(help="Folder of the data set; nothing in it is changed.")]
Output = Annotated[Path, options.output("Datalist to write.", metavar="JSON")]
Folds = Annotated[int, typer.Option(help="Number of cross-validation folds.")]
Test = Annotated[int, typer.Option(metavar="CASES", min=0, help='Number of held-out cases, under "test".')]


class Tumour(str, Enum):
    PANCREAS = "pancreas"
    CLASS = "class"


@prepare.command("nih-pancreas-ct")
def nih_pancreas_ct(
    context: typer.Context,
    raw: Raw,
    output: Output,
    labels: Annotated[Path | None, typer.Option(help="Folder of the label files, if not in RAW.")] = None,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = 0,
    verbose: Verbose = False,
) -> None:
    """NIH Pancreas-CT: DICOM folders PANCREAS_0001, ..., and label0001.nii.gz, ...

    Labels are aligned with their CTs and saved in a folder next to the datalist.

    Example: attunet3d prepare nih-pancreas-ct Pancreas-CT -o nih.json
    """
    from attunet3d.datasets.nih_pancreas_ct import find_cases

    _start(output, verbose)
    _prepare(context, find_cases(raw, output, labels), output, folds, seed, test)


@prepare.command("msd-pancreas")
def msd_pancreas(
    context: typer.Context,
    raw: Raw,
    output: Output,
    tumour: Annotated[Tumour, typer.Option(help="Tumours are pancreas, or a class of their own.")] = Tumour.PANCREAS,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = 0,
    verbose: Verbose = False,
) -> None:
    """Task07_Pancreas of the Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr.

    Example: attunet3d prepare msd-pancreas Task07_Pancreas -o task07.json
    """
    from attunet3d.datasets.msd_pancreas import find_cases

    _start(output, verbose)
    _prepare(context, find_cases(raw, tumour_class=tumour is Tumour.CLASS), output, folds, seed, test)


@prepare.command("btcv")
def btcv(
    context: typer.Context,
    raw: Raw,
    output: Output,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = 0,
    verbose: Verbose = False,
) -> None:
    """BTCV, Beyond the Cranial Vault: img/img0001.nii.gz, ..., and label/label0001.nii.gz, ..., in RawData/Training.

    Labels are saved with TotalSegmentator's numbers in a folder next to the datalist.

    Example: attunet3d prepare btcv Abdomen/RawData -o btcv.json
    """
    from attunet3d.datasets.btcv import find_cases

    _start(output, verbose)
    _prepare(context, find_cases(raw), output, folds, seed, test)


@prepare.command("amos")
def amos(
    context: typer.Context,
    raw: Raw,
    output: Output,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = 0,
    verbose: Verbose = False,
) -> None:
    """AMOS22, its CTs: dataset.json, imagesTr, labelsTr, imagesVa, labelsVa.

    Labels are saved with TotalSegmentator's numbers in a folder next to the datalist.

    Example: attunet3d prepare amos amos22 -o amos.json
    """
    from attunet3d.datasets.amos import find_cases

    _start(output, verbose)
    _prepare(context, find_cases(raw), output, folds, seed, test)


@prepare.command("join")
def join(
    context: typer.Context,
    datalists: Annotated[list[Path], typer.Argument(metavar="JSON...", help="Datalists, without --test cases.")],
    output: Output,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = 0,
    verbose: Verbose = False,
) -> None:
    """Several datalists as one, with new folds, and TotalSegmentator's numbers in all labels.

    Each CT is in once. Prints on stderr the --dataset-dir to train with.

    Example: attunet3d prepare join btcv.json amos.json -o all.json
    """
    from attunet3d.datasets.joined import find_cases

    _start(output, verbose)
    data = find_cases(datalists, output, warn=lambda text: say(f"warning: {one_line(text)}"))
    _prepare(context, data, output, folds, seed, test, joined=True)


@prepare.command("pairs")
def pairs(
    context: typer.Context,
    raw: Raw,
    output: Output,
    images: Annotated[
        str | None, typer.Option(metavar="DIR|GLOB", help="CTs, relative to RAW; default: try common layouts.")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="DIR|GLOB", help="Labels, relative to RAW.")] = None,
    pancreas_labels: Annotated[
        list[int] | None,
        typer.Option(
            "--pancreas-label",
            min=1,
            max=255,
            help="Label value of the pancreas; repeatable. Default: 1, alone.",
        ),
    ] = None,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = 0,
    verbose: Verbose = False,
) -> None:
    """Any folder of CTs and label files with matching names.

    Example: attunet3d prepare pairs DATA -o data.json --images '*/ct.nii.gz' --labels '*/organs.nii.gz'
    """
    from attunet3d.datasets.image_label_pairs import find_cases

    _start(output, verbose)
    _prepare(context, find_cases(raw, images, labels, pancreas_labels or ()), output, folds, seed, test)


def _start(output: Path, verbose: bool) -> None:
    set_up_logging(verbose)
    refuse_unprintable(output)
    refuse_bad_folder(output.parent)


def _prepare(
    context: typer.Context, data: RawData, output: Path, folds: int, seed: int, test: int, joined: bool = False
) -> None:
    from attunet3d.datasets.prepare import prepare as run

    with products() as product, progress_bar() as (bar, tell):
        task = bar.add_task("start", total=None)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, description=f"[{done + 1}/{total}] {name}", completed=done, total=total)

        def say(kind: str, text: str) -> None:
            tell(f"{kind}: {one_line(with_options(text, context.command))}")

        done = run(data, output, folds=folds, seed=seed, test=test, report=say, progress=show)
        product(done.path)
        smallest, more = divmod(done.accepted - done.test, folds)
        counts = [f"{done.accepted} cases accepted", f"{done.refused} refused"]
        if done.left_out:
            counts.append(f"{done.left_out} left out")
        counts.append(f"{folds} folds of {smallest}{f' to {smallest + 1}' if more else ''}")
        if done.test:
            counts.append(f"{done.test} for test")
        tell(", ".join(counts))
        if joined:
            tell(f"paths are relative to {one_line(str(data.root))}: give it as --dataset-dir")
    if done.refused:
        raise typer.Exit(1)
