"""The training recipe: cases on the model grid, random patches, loss, schedule, checkpoints. Wired by train.yaml."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {
    "AverageWeights": "averaging",
    "CachedCases": "cases",
    "CaseSampler": "cases",
    "CheckStep": "handlers",
    "DiceCELoss": "loss",
    "GateWatch": "handlers",
    "History": "history",
    "Progress": "handlers",
    "RandContrastPhased": "augmentation",
    "RandOrganHUd": "organ_hu",
    "RandPatchd": "patches",
    "ReuseMemory": "handlers",
    "RunCheckpoint": "run_checkpoint",
    "TargetClassesd": "targets",
    "UnlabelledClassesd": "targets",
    "distributed_network": "distributed",
    "fill_cache": "cases",
    "load_initial_weights": "start",
    "loader_workers": "cases",
    "optimizer_class": "start",
    "validation_share": "cases",
    "warmup_polynomial": "schedule",
}

__all__ = [
    "AverageWeights",
    "CachedCases",
    "CaseSampler",
    "CheckStep",
    "DiceCELoss",
    "GateWatch",
    "History",
    "Progress",
    "RandContrastPhased",
    "RandOrganHUd",
    "RandPatchd",
    "ReuseMemory",
    "RunCheckpoint",
    "TargetClassesd",
    "UnlabelledClassesd",
    "distributed_network",
    "fill_cache",
    "load_initial_weights",
    "loader_workers",
    "optimizer_class",
    "validation_share",
    "warmup_polynomial",
]

if TYPE_CHECKING:
    from attunet3d.training.augmentation import RandContrastPhased
    from attunet3d.training.averaging import AverageWeights
    from attunet3d.training.cases import CachedCases, CaseSampler, fill_cache, loader_workers, validation_share
    from attunet3d.training.distributed import distributed_network
    from attunet3d.training.handlers import CheckStep, GateWatch, Progress, ReuseMemory
    from attunet3d.training.history import History
    from attunet3d.training.loss import DiceCELoss
    from attunet3d.training.organ_hu import RandOrganHUd
    from attunet3d.training.patches import RandPatchd
    from attunet3d.training.run_checkpoint import RunCheckpoint
    from attunet3d.training.schedule import warmup_polynomial
    from attunet3d.training.start import load_initial_weights, optimizer_class
    from attunet3d.training.targets import TargetClassesd, UnlabelledClassesd

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
