"""``attunet3d phantom``, ``export``, ``benchmark`` and ``benchmark-training``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.cli.options import (
    AllowCode,
    Checkpoint,
    Device,
    Overrides,
    Precision,
    Presets,
    Seed,
    overrides_of,
    products,
    progress_bar,
    refuse_bad_folder,
    refuse_unprintable,
)
from attunet3d.cli.verbs import with_options
from attunet3d.console import set_up_logging
from attunet3d.io.json_text import json_text
from attunet3d.io.printable import one_line


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder for images, labels and datalist.json.")],
    cases: Annotated[int, typer.Option("--cases", "-n", min=1, help="Number of phantoms.")],
    seed: Seed = 0,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(metavar="X Y Z", help="Voxel spacing, mm; default: varies.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fraction of cases for validation.")
    ] = 0.2,
    organs: Annotated[
        bool, typer.Option("--organs", help="Label all organs, with TotalSegmentator's label values (pancreas: 7).")
    ] = False,
) -> None:
    """Write synthetic abdominal CTs with exact pancreas masks, and a datalist for training.

    Example: attunet3d phantom phantoms --cases 30 --seed 1 --spacing 2.5 2.5 3
    """
    refuse_bad_folder(output)
    from attunet3d.datasets.phantom import write_phantoms

    with products() as product, progress_bar() as (bar, _):
        task = bar.add_task("phantoms", total=cases)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        path = write_phantoms(
            output,
            cases,
            seed=seed,
            spacing=spacing,
            validation_fraction=validation_fraction,
            organs=organs,
            progress=show,
        )
        product(path)


@app.command()
def export(
    context: typer.Context,
    weights: Annotated[Path, typer.Argument(help="A model.pt of a training run, or its safetensors file.")],
    output: Annotated[Path, options.output("File to write; replaced if it exists.", metavar="FILE")],
    output_format: Annotated[
        str | None,
        options.output_format(
            "onnx, torchscript or safetensors; by default that of the suffix .onnx, .ts or .safetensors."
        ),
    ] = None,
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
) -> None:
    """Export the network for other programs, for images of any size, with the preprocessing values of its training.

    A safetensors file contains the same weights, and can be used wherever a model.pt can.

    Example: attunet3d export runs/mine/model.pt -o mine.onnx
    """
    set_up_logging(verbose=False)
    refuse_bad_folder(output.parent)
    refuse_unprintable(output)
    overrides = overrides_of(set_, ("checkpoint",))
    with products() as product, progress_bar() as (bar, say):
        bar.add_task("export", total=None)
        from attunet3d.runtime import export as export_network

        def warn(line: str) -> None:
            say(f"warning: {one_line(with_options(line, context.command))}")

        product(export_network(weights, output, output_format, presets or (), allow_code, warn, **overrides))


@app.command()
def benchmark(
    ct: Annotated[Path, typer.Argument(metavar="CT", help="NIfTI, NRRD or MetaImage file, or DICOM folder.")],
    output: Annotated[Path, options.output("Folder for benchmark.json and the masks.")] = Path("benchmark"),
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions after a warm-up.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of attunet3d, attunet3d-fp32, monai-same-network and monai-attentionunet; default: all.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure time and memory on this machine, against MONAI's stock pipeline on the same CT.

    Example: attunet3d benchmark ct.nii.gz -o benchmark --repeat 3
    """
    set_up_logging(verbose=False)
    refuse_bad_folder(output)
    from attunet3d.benchmarks.inference import CONTENDERS, RESULT, run_benchmark, table

    overrides = overrides_of(set_, ("checkpoint", "device", "precision", "output_dir"))
    names = list(CONTENDERS) if only is None else [name.strip() for name in only.split(",")]
    with products() as product, progress_bar() as (bar, say):
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
            presets=presets or (),
            allow_code=allow_code,
            progress=show,
            **overrides,
        )
        for line in table(result).split("\n"):
            say(line)
        product(output / RESULT)


@app.command("benchmark-training")
def benchmark_training(
    patch_size: Annotated[tuple[int, int, int], typer.Option(metavar="X Y Z", help="In voxels.")] = (
        96,
        96,
        96,
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Patches per step.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each trainer.")] = 6,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure the time of a training step, against MONAI's stock trainer with its AttentionUnet; prints JSON.

    Example: attunet3d benchmark-training --steps 9
    """
    set_up_logging(verbose=False)
    from attunet3d.benchmarks import training

    with products() as product, progress_bar() as (bar, say):
        task = bar.add_task("steps", total=steps)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        result = training.benchmark_training(patch_size, batch_size, steps, device, precision, progress=show)
        for line in training.table(result).split("\n"):
            say(line)
        product(json_text(result))
