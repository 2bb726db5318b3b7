"""Training and evaluation with the bundle, through MONAI's ConfigWorkflow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.config.changes import changes_with_recipe
from attunet3d.config.files import CONFIG_FILES, Mode, installed_bundle
from attunet3d.config.plain import for_monai
from attunet3d.datasets.sections import load_cases
from attunet3d.errors import ConfigError, only_own_error, own_error
from attunet3d.io.cases import name_collisions, quote_collision
from attunet3d.io.locking import release_folder

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

logger = logging.getLogger(__name__)


def make_workflow(
    mode: Mode,
    presets: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> ConfigWorkflow:
    """Create the bundle's workflow for ``mode``, with the weights' recipe, presets and overrides merged in order.

    Raises:
        ConfigError, CheckpointError: as ``changes_with_recipe``.
    """
    from monai.bundle import ConfigWorkflow

    # MONAI warns that there is no logging file; the caller has configured logging.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    changes = changes_with_recipe(mode, presets, overrides or {}, allow_code)
    if changes.get("device") == "auto":  # the default of the config
        del changes["device"]
    configs = installed_bundle() / "configs"
    return ConfigWorkflow(
        config_file=[str(configs / name) for name in CONFIG_FILES[mode]],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="infer" if mode == "inference" else "train",
        **for_monai({"bundle_root": installed_bundle(), **changes}, allow_code),
    )


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn any error of a component that is being built into a ConfigError; errors of this package stay as they are."""
    try:
        yield
    except Exception as error:
        own = own_error(error)
        if own is not None:
            raise own from None
        root: BaseException = error
        while (deeper := root.__cause__ or root.__context__) is not None:
            root = deeper
        raise ConfigError(f"config id {name!r} cannot be built: {root}") from error


def parsed(workflow: ConfigWorkflow, name: str) -> Any:
    """Return the value or object of a config id.

    Raises:
        ConfigError: it cannot be built; the message is that of the component.
    """
    with _refusing(name):
        return workflow.parser.get_parsed_content(name)


def train(
    dataset_dir: str | Path,
    datalist: str | Path,
    output_dir: str | Path,
    presets: Sequence[str | Path] = (),
    resume: bool = False,
    allow_code: bool = False,
    **overrides: Any,
) -> Path:
    """Train the bundle's network, and return the file of the weights with the best validation Dice, ``model.pt``.

    A run may be stopped at any time; with ``resume`` it continues as if it had not been interrupted.

    Args:
        dataset_dir: folder that the datalist's paths are relative to.
        datalist: MONAI datalist JSON, with folds or "validation".
        output_dir: folder for weights, state and history of the run, TensorBoard logs and cached cases.
        presets: names or files, merged in order.
        resume: resume from the state in ``output_dir``, if there is one.
        allow_code: whether presets and overrides may contain expressions and class names; they can then run any
            program.
        overrides: config ids and their values.

    Raises:
        InputNotFoundError: the datalist or a file it names is missing.
        ConfigError: a preset or an id does not exist or contains code, ``output_dir`` contains a run and ``resume`` is
            false, the datalist is invalid, or a case is both trained on and held out.
        UnsupportedImageError, GeometryError: a label does not fit its CT.
        CheckpointError: the run in ``output_dir`` has other cases, other values or another network.
        OutputError: another run writes to ``output_dir``.
        TrainingError: the loss is not finite.
    """
    if not resume and any((Path(output_dir) / name).is_file() for name in ("last.pt", "previous.pt")):
        raise ConfigError(
            f"{output_dir}: contains a run already; continue it with resume=True, or choose another folder",
            arguments=("resume",),
        )
    ids = {"dataset_dir": Path(dataset_dir), "datalist": Path(datalist), "ckpt_dir": Path(output_dir), "resume": resume}
    workflow = make_workflow("train", presets, ids | overrides, allow_code)
    # Checked before the imports and components of the config, which take longer.
    training, validation = (
        load_cases(datalist, dataset_dir, section, parsed(workflow, "fold"), warn=warn)
        for section, warn in (("training", logger.warning), ("validation", logger.debug))
    )
    logger.info("%d cases to train on, %d to validate with", len(training), len(validation))
    try:
        _run(workflow, "train::trainer")
    finally:
        release_folder(output_dir)
    return Path(output_dir) / "model.pt"


def evaluate(
    dataset_dir: str | Path,
    datalist: str | Path,
    checkpoint: str | Path,
    output_dir: str | Path,
    presets: Sequence[str | Path] = (),
    allow_code: bool = False,
    **overrides: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint on the "validation" cases of a datalist, on the grid of each CT.

    Writes masks, ``metrics.csv``, ``summary.json`` and ``report.html``.

    Args:
        dataset_dir, datalist, presets, allow_code, overrides: as for ``train``.
        checkpoint: the weights.
        output_dir: folder for the results.

    Returns:
        The mean Dice, as "val_dice".

    Raises:
        InputNotFoundError: the datalist or a file it names is missing.
        ConfigError: a preset or an id does not exist or contains code, the datalist is invalid, or a case is also
            trained on.
        UnsupportedImageError, GeometryError: a label does not fit its CT.
        CheckpointError: the checkpoint cannot be read.
    """
    ids = {"dataset_dir": Path(dataset_dir), "datalist": Path(datalist), "checkpoint": Path(checkpoint)}
    workflow = make_workflow("evaluate", presets, ids | {"output_dir": Path(output_dir)} | overrides, allow_code)
    section, fold = parsed(workflow, "section"), parsed(workflow, "fold")
    cases = load_cases(datalist, dataset_dir, section, fold, warn=logger.warning)
    layout = parsed(workflow, "layout")
    names = [layout.case(case["image"]) for case in cases]
    for same in name_collisions(names):
        masks = quote_collision(f"{names[index]}_seg" for index in same)
        raise ConfigError(
            f"{datalist}: {len(same)} masks would be {masks}; rename them, or give a dataset_dir above all CTs",
            arguments=("dataset_dir",),
        )
    _run(workflow, "validate::evaluator")
    metrics = parsed(workflow, "validate::evaluator").state.metrics
    return {name: float(value) for name, value in metrics.items()}


def _run(workflow: ConfigWorkflow, engine: str) -> None:
    with only_own_error():
        with _refusing("initialize"):
            workflow.initialize()
        parsed(workflow, engine)  # finds invalid values before any case is read
        workflow.run()
        workflow.finalize()
