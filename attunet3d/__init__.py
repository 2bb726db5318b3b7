"""3D Attention U-Net with trilinear gating for pancreas CT. Research software, not a medical device.

The public names are loaded on first use, so that ``import attunet3d`` and ``attunet3d --help`` stay fast.
"""

from typing import TYPE_CHECKING

from attunet3d._huge_pages import ask_for_huge_pages
from attunet3d._lazy import lazy_names

__version__ = "0.7.0"

_PUBLIC = {
    "AttUNet3dError": "errors",
    "AttentionUNet": "networks",
    "load_reference_weights": "networks",
    "load_network": "runtime",
    "Segmentation": "outputs",
    "Segmenter": "segmenter",
    "segment": "segmenter",
    "bundle_root": "config",
    "evaluate": "workflow",
    "train": "workflow",
    "score": "metrics",
    "score_folders": "scoring",
    "read_ct": "io",
}
_SUBMODULES = (
    "checkpoint",
    "config",
    "datasets",
    "errors",
    "inferers",
    "io",
    "metrics",
    "networks",
    "report",
    "runtime",
    "training",
    "scoring",
    "transforms",
    "workflow",
)

__all__ = [
    "AttUNet3dError",
    "AttentionUNet",
    "Segmentation",
    "Segmenter",
    "__version__",
    "bundle_root",
    "evaluate",
    "load_network",
    "load_reference_weights",
    "read_ct",
    "score",
    "score_folders",
    "segment",
    "train",
]

if TYPE_CHECKING:
    from attunet3d.config import bundle_root
    from attunet3d.errors import AttUNet3dError
    from attunet3d.io import read_ct
    from attunet3d.metrics import score
    from attunet3d.networks import AttentionUNet, load_reference_weights
    from attunet3d.outputs import Segmentation
    from attunet3d.runtime import load_network
    from attunet3d.scoring import score_folders
    from attunet3d.segmenter import Segmenter, segment
    from attunet3d.workflow import evaluate, train

ask_for_huge_pages()
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC, _SUBMODULES)
