"""Where cases come from: data sets on disk as datalists, and synthetic CTs."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {
    "check_cases": "separation",
    "check_classes": "datalist",
    "label_groups": "datalist",
    "load_cases": "sections",
    "named_labels": "datalist",
    "pancreas_labels": "datalist",
}

__all__ = ["check_cases", "check_classes", "label_groups", "load_cases", "named_labels", "pancreas_labels"]

if TYPE_CHECKING:
    from attunet3d.datasets.datalist import check_classes, label_groups, named_labels, pancreas_labels
    from attunet3d.datasets.sections import load_cases
    from attunet3d.datasets.separation import check_cases

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
