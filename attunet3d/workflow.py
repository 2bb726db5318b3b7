"""Training and evaluation through the bundle: the only place that builds MONAI's ConfigWorkflow."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.config import CONFIG_FILES, Mode, config_changes, installed_bundle
from attunet3d.errors import ConfigError, InputNotFoundError, own_error

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


def make_workflow(
    mode: Mode, presets: Sequence[str | Path] = (), overrides: Mapping[str, Any] | None = None
) -> ConfigWorkflow:
    """The bundle's workflow for ``mode``, with presets merged in order and then single ids overridden.

    Raises:
        ConfigError: a preset does not exist or is no mapping, or an id is unknown.
    """
    from monai.bundle import ConfigWorkflow

    # MONAI warns that no logging file is applied; whoever calls this has set logging up already.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    changes = config_changes(mode, presets, overrides or {})
    configs = installed_bundle() / "configs"
    return ConfigWorkflow(
        config_file=[str(configs / name) for name in CONFIG_FILES[mode]],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="infer" if mode == "inference" else "train",
        **{"bundle_root": str(installed_bundle()), **changes},
    )


def parsed(workflow: ConfigWorkflow, name: str) -> Any:
    """The value or object that a config id stands for.

    Raises:
        ConfigError: it cannot be built; the message is that of the component which refused.
    """
    try:
        return workflow.parser.get_parsed_content(name)
    except Exception as error:
        own = own_error(error)
        if own is not None:
            raise own from None
        root: BaseException = error
        while (deeper := root.__cause__ or root.__context__) is not None:
            root = deeper
        raise ConfigError(f"config id {name!r} cannot be built: {root}") from error


def train(
    dataset_dir: str | Path,
    datalist: str | Path,
    output_dir: str | Path,
    presets: Sequence[str | Path] = (),
    **overrides: Any,
) -> Path:
    """Train the bundle's network; the weights with the best validation Dice are in ``output_dir/model.pt``.

    Args:
        dataset_dir: folder that the datalist's paths are relative to.
        datalist: MONAI datalist JSON with "training" and "validation".
        output_dir: weights and TensorBoard logs go here.
        presets: names or files, merged in order.
        overrides: config ids and their values.

    Raises:
        InputNotFoundError: the datalist or a file it names is missing.
        ConfigError: a preset or an id does not exist.
    """
    changes = _dataset_ids(dataset_dir, datalist, ("training", "validation")) | {"ckpt_dir": str(output_dir)}
    workflow = make_workflow("train", presets, changes | overrides)
    epochs, interval = parsed(workflow, "max_epochs"), parsed(workflow, "val_interval")
    if interval > epochs:
        raise ConfigError(f"val_interval is {interval}, max_epochs {epochs}: no validation would choose model.pt")
    _run(workflow)
    return Path(output_dir) / "model.pt"


def evaluate(
    dataset_dir: str | Path,
    datalist: str | Path,
    checkpoint: str | Path,
    output_dir: str | Path,
    presets: Sequence[str | Path] = (),
    **overrides: Any,
) -> dict[str, float]:
    """Dice of a checkpoint on the datalist's "validation" cases, on each CT's own grid.

    Writes the masks, ``val_dice_raw.csv`` and ``val_dice_summary.csv`` to ``output_dir``; returns the mean values.

    Raises:
        InputNotFoundError: the datalist or a file it names is missing.
        ConfigError: a preset or an id does not exist.
        CheckpointError: the checkpoint cannot be read.
    """
    from attunet3d.checkpoint import load_weights

    changes = _dataset_ids(dataset_dir, datalist, ("validation",))
    changes |= {"checkpoint": str(checkpoint), "output_dir": str(output_dir)}
    workflow = make_workflow("evaluate", presets, changes | overrides)
    load_weights(parsed(workflow, "network_def"), checkpoint)  # refuses what does not fit before any CT is read
    _run(workflow)
    metrics = parsed(workflow, "validate::evaluator").state.metrics
    return {name: float(value) for name, value in metrics.items()}


def _run(workflow: ConfigWorkflow) -> None:
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except Exception as error:
        own = own_error(error)
        if own is None:
            raise
        raise own from None


def _dataset_ids(dataset_dir: str | Path, datalist: str | Path, sections: Sequence[str]) -> dict[str, Any]:
    """Check a datalist before anything runs: every file it names must be there."""
    if not Path(datalist).is_file():
        raise InputNotFoundError(f"{datalist}: no such datalist; `attunet3d phantom` writes an example")
    try:
        content = json.loads(Path(datalist).read_text())
    except ValueError as error:
        raise ConfigError(f"{datalist}: not JSON ({error})") from error
    for section in sections:
        cases = content.get(section) if isinstance(content, dict) else None
        if not cases:
            raise ConfigError(f'{datalist}: no cases under "{section}"')
        for case in cases:
            for key in ("image", "label"):
                if not isinstance(case, dict) or not isinstance(case.get(key), str):
                    raise ConfigError(f'{datalist}: a case under "{section}" lacks the path of its {key}')
                if not os.path.exists(os.path.join(dataset_dir, case[key])):
                    raise InputNotFoundError(f"{os.path.join(dataset_dir, case[key])}: named in {datalist}, not there")
    return {"dataset_dir": str(dataset_dir), "datalist": str(datalist)}
