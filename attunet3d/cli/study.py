"""``attunet3d train`` and ``attunet3d evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.cli.options import (
    AllowCode,
    Datalist,
    DatasetDir,
    Overrides,
    Presets,
    Verbose,
    overrides_of,
    products,
    refuse_bad_folder,
)
from attunet3d.console import set_up_logging


@app.command()
def train(
    dataset_dir: DatasetDir,
    datalist: Datalist,
    output: Annotated[Path, options.output("Folder for weights and TensorBoard logs.")],
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the output folder, if any.")] = False,
) -> None:
    """Train the network on a datalist; prints the path of the best weights.

    Example: attunet3d train --dataset-dir phantoms --datalist phantoms/datalist.json -o runs/phantom -c phantom
    """
    set_up_logging(verbose, progress=True)
    refuse_bad_folder(output)
    from attunet3d import workflow

    overrides = overrides_of(set_, ("dataset_dir", "datalist", "ckpt_dir", "output_dir", "resume"))
    with products() as product:
        product(workflow.train(dataset_dir, datalist, output, presets or (), resume, allow_code, **overrides))


@app.command()
def evaluate(
    dataset_dir: DatasetDir,
    datalist: Datalist,
    checkpoint: Annotated[Path, options.checkpoint("Weights to evaluate.")],
    output: Annotated[Path, options.output("Folder for masks, tables and the report.")],
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate weights on the datalist's validation cases: masks on the CTs' own grids, metrics and a report.

    Example: attunet3d evaluate --dataset-dir D --datalist D/datalist.json --checkpoint runs/phantom/model.pt -o eval
    """
    set_up_logging(verbose, progress=True)
    refuse_bad_folder(output)
    from attunet3d import workflow

    overrides = overrides_of(set_, ("dataset_dir", "datalist", "checkpoint", "output_dir"))
    with products() as product:
        workflow.evaluate(dataset_dir, datalist, checkpoint, output, presets or (), allow_code, **overrides)
        for name in ("metrics.csv", "summary.json", "report.html"):
            product(output / name)
