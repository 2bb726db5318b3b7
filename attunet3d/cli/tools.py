"""Commands that need no data set: phantoms, export, and benchmarks against MONAI's stock pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli.app import app
from attunet3d.cli.options import (
    AllowCode,
    Device,
    Overrides,
    Precision,
    Presets,
    overrides_of,
    products,
    progress_bar,
    refuse_bad_folder,
    refuse_unprintable,
)
from attunet3d.console import set_up_logging
from attunet3d.io.json_text import json_text
from attunet3d.io.printable import one_line


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
    organs: Annotated[
        bool, typer.Option("--organs", help="Label all organs, with TotalSegmentator's numbers (pancreas: 7).")
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
    weights: Annotated[Path, typer.Argument(help="A model.pt that training wrote, or its safetensors file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file, which is replaced.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="onnx, torchscript or safetensors; by default that of the suffix .onnx, .ts, .safetensors."
        ),
    ] = None,
    preset: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
) -> None:
    """Write the network for other programs, for images of any size, with the values it was trained with.

    A safetensors file holds the same weights, and can be used wherever a model.pt can.

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
            say(f"warning: {one_line(line)}")

        product(export_network(weights, output, format_, preset or (), allow_code, warn, **overrides))


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
    allow_code: AllowCode = False,
) -> None:
    """Time and memory on this machine, beside MONAI's stock pipeline on the same CT.

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
            presets=preset or (),
            allow_code=allow_code,
            progress=show,
            **overrides,
        )
        for line in table(result).split("\n"):
            say(line)
        product(output / RESULT)


@app.command("benchmark-training")
def benchmark_training(
    patch_size: Annotated[tuple[int, int, int], typer.Option(metavar="X Y Z", help="Voxels.")] = (96, 96, 96),
    batch_size: Annotated[int, typer.Option(min=1, help="Patches per step.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each trainer.")] = 6,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Time of a training step on this machine, beside MONAI's stock trainer with its AttentionUnet; prints JSON.

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
