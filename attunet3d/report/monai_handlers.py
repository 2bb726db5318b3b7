"""Metrics and report of an evaluation, as handlers of a MONAI evaluator."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.transforms import Compose
from torch import Tensor, nn

from attunet3d.checkpoint import file_sha256
from attunet3d.errors import ConfigError
from attunet3d.inferers import SlidingWindowInferer
from attunet3d.io.monai_io import MaskLayout
from attunet3d.metrics.masks import compare_masks
from attunet3d.networks import AttentionUNet
from attunet3d.networks.attention_maps import AttentionMaps
from attunet3d.report.evaluation import CaseResult, write_report
from attunet3d.runtime.fast_network import MixedPrecision
from attunet3d.segmenter.attention import MapsOnCT
from attunet3d.segmenter.record import library_versions
from attunet3d.transforms.grid import crop
from attunet3d.transforms.monai_transforms import grid_of, source_grid
from attunet3d.version import __version__

logger = logging.getLogger(__name__)


class CaseMetrics(Metric):
    """Computes the metrics of each case on the grid of its CT; the key metric of an evaluator, with mean Dice as value.

    Class maps and labels are (1, X, Y, Z) on the same grid. Every class but 0 counts as pancreas; if there are several,
    each also has metrics of its own, such as "class2_dice".

    Args:
        layout: paths of the saved masks.
        num_classes: background included.
        tolerance_mm: of the normalized surface Dice.

    Attributes:
        results: of all cases and processes, ordered by name, once the evaluator has run.
    """

    def __init__(self, layout: MaskLayout, num_classes: int = 2, tolerance_mm: float = 2.0) -> None:
        self.layout = layout
        self.num_classes = num_classes
        self.tolerance_mm = tolerance_mm
        self.results: list[CaseResult] = []
        super().__init__()

    def reset(self) -> None:
        """Discard all cases."""
        self._found: list[CaseResult] = []

    def update(self, output: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the cases of a decollated batch."""
        for case in output:
            prediction, label = (np.asarray(case[key][0].cpu()) for key in ("pred", "label"))
            affine = case["pred"].affine.cpu().numpy()
            metrics = compare_masks(prediction != 0, label != 0, affine, self.tolerance_mm)
            for number in range(1, self.num_classes) if self.num_classes > 2 else ():
                found = compare_masks(prediction == number, label == number, affine, self.tolerance_mm)
                metrics |= {f"class{number}_{name}": value for name, value in found.items()}
            image, reference = (str(case[key].meta["filename_or_obj"]) for key in ("image", "label"))
            mask = self.layout.path(image)
            name = self.layout.case(image)
            self._found.append(CaseResult(name, image, str(mask), reference, metrics))
            logger.info("%s: Dice %.3f", name, metrics["dice"])

    def compute(self) -> float:
        """Return the mean Dice over all cases."""
        texts = [json.dumps([asdict(result) for result in self._found])]
        if idist.get_world_size() > 1:
            texts = idist.all_gather(texts[0])
        # If there are fewer cases than processes, several have the same ones.
        unique = {row["image"]: CaseResult(**row) for text in texts for row in json.loads(text)}
        self.results = sorted(unique.values(), key=lambda result: result.case)
        return float(np.mean([result.metrics["dice"] for result in self.results]))


class EvaluationReport:
    """Writes metrics.csv, summary.json and report.html after an evaluator has run; see ``write_report``.

    Args:
        metrics: the evaluator's ``CaseMetrics``.
        output_dir: folder for the three files.
        checkpoint: file of the weights.
        network: with those weights, for its attention maps, if it has gates.
        runner: the network as the evaluator runs it, from ``prepare``.
        preprocessing: of the evaluator, from paths to an image on the model grid.
        inferer: of the evaluator.
        pancreas_labels: label values of the pancreas, or lists of them.
        settings: values to show.
        write: False in all processes but one.
    """

    def __init__(
        self,
        metrics: CaseMetrics,
        output_dir: str | Path,
        checkpoint: str | Path,
        network: nn.Module,
        runner: MixedPrecision,
        preprocessing: Compose,
        inferer: SlidingWindowInferer,
        pancreas_labels: Sequence[Any],
        settings: Mapping[str, Any],
        write: bool = True,
    ) -> None:
        self.metrics = metrics
        self.output_dir = Path(output_dir)
        self.checkpoint = Path(checkpoint)
        self.network = network
        self.runner = runner
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.pancreas_labels = np.ravel(np.concatenate([np.atleast_1d(v) for v in pancreas_labels])).tolist()
        self.settings = settings
        self.write = write

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        if self.write:
            engine.add_event_handler(Events.COMPLETED, self._report)

    def _report(self, engine: Engine) -> None:
        write_report(
            self.output_dir,
            self.metrics.results,
            settings=self._all_settings(),
            pancreas_labels=self.pancreas_labels,
            tolerance_mm=self.metrics.tolerance_mm,
            attention=self._attention(),
        )

    def _all_settings(self) -> dict[str, Any]:
        parameters = sum(p.numel() for p in self.network.parameters())
        return {
            "checkpoint": {"file": self.checkpoint.name, "sha256": file_sha256(self.checkpoint)},
            "network": f"{type(self.network).__name__}, {parameters / 1e6:.4f} M parameters",
            "runs as": str(getattr(self.runner, "variant", "")),
            **self.settings,
            "versions": {"attunet3d": __version__, **library_versions()},
        }

    def _attention(self) -> Callable[[str], Mapping[str, np.ndarray]] | None:
        """Return a function from the path of a CT to attention maps on its grid; None for a network without gates."""
        if not isinstance(self.network, AttentionUNet):
            return None
        try:
            maps = AttentionMaps(self.network.eval())
        except ConfigError:
            return None
        device = next(self.network.parameters()).device
        run = MixedPrecision(maps, device, self.runner.dtype).eval()
        names = [name.replace("level", "level ").replace("_gate", ", gate ") for name in maps.names]
        labels = {result.image: result.reference for result in self.metrics.results}

        @torch.inference_mode()
        def of(image: str) -> Mapping[str, np.ndarray]:
            item = self.preprocessing({"image": image, "label": labels[image]})["image"]
            values = item.as_tensor()[None].float().to(device)
            plan = self.inferer.plan(values)
            found = self.inferer.average(values, run, plan)
            return MapsOnCT(names, found[0].cpu(), crop(grid_of(item), plan.box), source_grid(item))

        return of
