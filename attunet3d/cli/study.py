"""The verbs of a study: from raw data to a table of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli.app import app
from attunet3d.cli.options import (
    Datalist,
    DatasetDir,
    Overrides,
    Presets,
    overrides_of,
    products,
    refuse_bad_folder,
    set_up_logging,
)


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
    set_up_logging(verbose=True)
    refuse_bad_folder(output)
    from attunet3d import workflow

    overrides = overrides_of(set_, ("dataset_dir", "datalist", "ckpt_dir"))
    with products() as product:
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
    set_up_logging(verbose=True)
    refuse_bad_folder(output)
    from attunet3d import workflow

    overrides = overrides_of(set_, ("dataset_dir", "datalist", "checkpoint", "output_dir"))
    with products() as product:
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
