"""Where cases come from: data sets on disk as datalists, and synthetic CTs."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {
    "check_classes": "datalist",
    "label_groups": "datalist",
    "load_cases": "datalist",
    "pancreas_labels": "datalist",
}

__all__ = ["check_classes", "label_groups", "load_cases", "pancreas_labels"]

if TYPE_CHECKING:
    from attunet3d.datasets.datalist import check_classes, label_groups, load_cases, pancreas_labels

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
