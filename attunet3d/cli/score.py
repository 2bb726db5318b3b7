"""The verb that judges masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli.app import app


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
