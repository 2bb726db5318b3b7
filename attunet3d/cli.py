"""The command line: products on stdout, one path per line; log and progress on stderr.

Exit codes: 0 done, 1 some cases failed, 2 the command cannot be carried out as given.
Heavy imports happen inside the verbs, so that ``attunet3d --help`` is immediate.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from attunet3d import __version__
from attunet3d.errors import AttUNet3dError, ConfigError, OutputError

app = typer.Typer(
    name="attunet3d",
    help="Pancreas segmentation in CT with a 3D Attention U-Net. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Presets = Annotated[
    list[str] | None, typer.Option("--preset", "-c", metavar="PRESET", help="Preset name or YAML file; repeatable.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="ID=VALUE", help="Override one id of the bundle's config; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log and the libraries' warnings.")]
DatasetDir = Annotated[Path, typer.Option(help="Folder that the datalist's paths are relative to.")]
Datalist = Annotated[Path, typer.Option(help='MONAI datalist JSON with "training" and "validation".')]


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        print(__version__)
        raise typer.Exit


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
    qc: Annotated[bool, typer.Option("--qc", help="Also write a picture of each mask over its CT.")] = False,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", min=0.0, help="Most to use; by default what there is.")
    ] = None,
    preset: Presets = None,
    set_: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Segment the pancreas in CTs: a mask on each CT's own grid, and a record of the run.

    Example: attunet3d segment ct.nii.gz dicom_folder/ -o masks --qc
    """
    _set_up_logging(verbose)
    _refuse_bad_folder(output)
    names = _names(cts)
    failed = 0
    with _products() as product, _progress() as (bar, console):
        task = bar.add_task("load the network", total=None)
        from attunet3d.segmenter import Segmenter

        overrides = _overrides(set_, ("checkpoint", "device", "precision"))
        session = Segmenter(checkpoint, device, precision, preset or (), memory, **overrides)

        def show(index: int, stage: str, done: int, total: int) -> None:
            label = f"[{index + 1}/{len(cts)}] {cts[index].name or cts[index]}"
            bar.update(task, description=f"{label}: {stage}", completed=done, total=total)

        def say(kind: str, text: str) -> None:
            console.print(f"{kind}: {text}", markup=False, highlight=False, soft_wrap=True)

        for case in session.segment_all(cts, output, names=names, series_uid=series, qc=qc, progress=show):
            if case.segmentation is not None:
                for warning in case.segmentation.record["warnings"]:
                    say("warning", f"{case.ct}: {warning}")
                product(case.segmentation.path)
                continue
            failed += 1
            if isinstance(case.error, AttUNet3dError):
                say("error", _one_line(case.error))
            elif case.error is not None:
                # A case that breaks in an unforeseen way must not take the others with it.
                found = f"unexpected {type(case.error).__name__}: {_one_line(case.error)}"
                say("error", f"{case.ct}: {found} (--verbose shows the traceback)")
                logging.getLogger(__name__).info("traceback", exc_info=case.error)
    if failed:
        raise typer.Exit(1)


@app.command()
def train(
    dataset_dir: DatasetDir,
    datalist: Datalist,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for weights and TensorBoard logs.")],
    preset: Presets = None,
    set_: Overrides = None,
) -> None:
    """Train the network on a datalist; prints the path of the best weights.

    Example: attunet3d train --dataset-dir phantoms --datalist phantoms/datalist.json -o runs/phantom -c phantom
    """
    _set_up_logging(verbose=True)
    _refuse_bad_folder(output)
    from attunet3d import workflow

    overrides = _overrides(set_, ("dataset_dir", "datalist", "ckpt_dir"))
    with _products() as product:
        product(workflow.train(dataset_dir, datalist, output, preset or (), **overrides))


@app.command()
def evaluate(
    dataset_dir: DatasetDir,
    datalist: Datalist,
    checkpoint: Annotated[Path, typer.Option(help="Weights to evaluate.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and tables.")],
    preset: Presets = None,
    set_: Overrides = None,
) -> None:
    """Dice of weights on the datalist's validation cases, each on its CT's own grid.

    Example: attunet3d evaluate --dataset-dir D --datalist D/datalist.json --checkpoint runs/phantom/model.pt -o eval
    """
    _set_up_logging(verbose=True)
    _refuse_bad_folder(output)
    from attunet3d import workflow

    overrides = _overrides(set_, ("dataset_dir", "datalist", "checkpoint", "output_dir"))
    with _products() as product:
        values = workflow.evaluate(dataset_dir, datalist, checkpoint, output, preset or (), **overrides)
        product(json.dumps(values))


@app.command()
def score(
    prediction: Annotated[Path, typer.Argument(help="Mask to judge.")],
    reference: Annotated[Path, typer.Argument(help="Mask to judge it by, on the same voxels of the patient.")],
    prediction_label: Annotated[int | None, typer.Option(help="Value that counts; by default all but 0.")] = None,
    reference_label: Annotated[int | None, typer.Option(help="Value that counts; by default all but 0.")] = None,
) -> None:
    """Dice, precision, recall and volumes of a mask against a reference, as JSON.

    Example: attunet3d score masks/case_seg.nii.gz organs.nii.gz --reference-label 7
    """
    from attunet3d.metrics import score as compute

    values = compute(prediction, reference, prediction_label=prediction_label, reference_label=reference_label)
    # NaN is no JSON: an undefined quotient is null.
    print(json.dumps({name: None if value != value else round(value, 4) for name, value in values.items()}))


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder for images, labels and datalist.json.")],
    cases: Annotated[int, typer.Option("--cases", "-n", min=1, help="How many phantoms.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same phantoms.")] = 0,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(metavar="X Y Z", help="mm; varies by default.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of cases kept for validation.")
    ] = 0.2,
) -> None:
    """Write synthetic abdominal CTs with exact pancreas masks, and a datalist for training.

    Example: attunet3d phantom phantoms --cases 30 --seed 1 --spacing 2.5 2.5 3
    """
    _refuse_bad_folder(output)
    from attunet3d.datasets.phantom import write_phantoms

    with _progress() as (bar, _):
        task = bar.add_task("phantoms", total=cases)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        path = write_phantoms(
            output, cases, seed=seed, spacing=spacing, validation_fraction=validation_fraction, progress=show
        )
    print(path)


@app.command()
def benchmark(
    ct: Annotated[Path, typer.Argument(metavar="CT", help="NIfTI, NRRD or MetaImage file, or DICOM folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for benchmark.json and the masks; made if missing.")
    ] = Path("benchmark"),
    repeat: Annotated[int, typer.Option(min=1, help="Warm cases of each contender.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="For each contender; by default all cores.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of attunet3d, attunet3d-fp32, monai-same-network and monai-attentionunet; all by default.",
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; the bundle's own by default.")] = None,
    device: Device = "auto",
    preset: Presets = None,
    set_: Overrides = None,
) -> None:
    """Time and memory on this machine, beside MONAI's stock pipeline on the same CT.

    Example: attunet3d benchmark ct.nii.gz -o benchmark --repeat 3
    """
    _set_up_logging(verbose=False)
    _refuse_bad_folder(output)
    from attunet3d.benchmark import CONTENDERS, RESULT, run_benchmark, table

    overrides = _overrides(set_, ("checkpoint", "device", "precision"))
    names = list(CONTENDERS) if only is None else [name.strip() for name in only.split(",")]
    with _products() as product, _progress() as (bar, console):
        task = bar.add_task("start", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        result = run_benchmark(
            ct,
            output,
            only=names,
            repeat=repeat,
            threads=threads,
            device=device,
            checkpoint=checkpoint,
            presets=preset or (),
            progress=show,
            **overrides,
        )
        console.print(table(result), markup=False, highlight=False, soft_wrap=True)
        product(output / RESULT)


def main() -> None:
    """Entry point: an error of ours becomes one line on stderr and exit code 2."""
    try:
        app()
    except AttUNet3dError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of stdout went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextmanager
def _products() -> Iterator[Callable[[object], None]]:
    """Keep stdout for products: what libraries print there (MONAI's loggers do) goes to stderr meanwhile."""
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):

        def product(value: object) -> None:
            try:
                print(value, file=stdout, flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"stdout: cannot be written ({error.strerror})") from error

        yield product


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.ERROR,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if verbose:
        # Of a decoder that is not used here.
        warnings.filterwarnings("ignore", message="NvImgCodec")
    else:
        warnings.simplefilter("ignore")


@contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """A progress bar on stderr that vanishes when done, and the console to write beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Where stderr is no terminal (a log file), a bar would only leave noise.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar, console


def _overrides(pairs: list[str] | None, taken: tuple[str, ...]) -> dict[str, Any]:
    """``["overlap=0.5"]`` -> ``{"overlap": 0.5}``; values are YAML. ``taken``: ids that have an option of their own."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r}: expected ID=VALUE, e.g. --set overlap=0.5")
        if key in taken:
            raise ConfigError(f"--set {pair!r}: {key} has an option of its own, see --help")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair!r}: the value is not YAML") from error
    return values


def _names(cts: list[Path]) -> list[str]:
    """What each CT's files are called: as the CT, with its folder's name before it where that is not enough."""
    from attunet3d.io import case_name

    names = [case_name(ct) for ct in cts]
    often = Counter(names)
    names = [
        f"{ct.absolute().parent.name}_{name}" if often[name] > 1 else name for ct, name in zip(cts, names, strict=True)
    ]
    for name, count in Counter(names).items():
        if count > 1:
            same = ", ".join(str(ct) for ct, other in zip(cts, names, strict=True) if other == name)
            raise ConfigError(f'{same}: all their masks would be "{name}_seg"; segment them into different folders')
    return names


def _refuse_bad_folder(path: Path) -> None:
    """Before hours of work: the output folder must be one that can be written to. It is only made when needed."""
    folder = path.absolute()
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder; choose another output folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {folder}; choose another output folder")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
