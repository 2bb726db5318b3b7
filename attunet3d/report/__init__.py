"""Pictures of masks, and the report of an evaluation."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {
    "CaseMetrics": "monai_handlers",
    "CaseResult": "evaluation",
    "EvaluationReport": "monai_handlers",
    "qc_picture": "qc",
    "write_report": "evaluation",
}

__all__ = ["CaseMetrics", "CaseResult", "EvaluationReport", "qc_picture", "write_report"]

if TYPE_CHECKING:
    from attunet3d.report.evaluation import CaseResult, write_report
    from attunet3d.report.monai_handlers import CaseMetrics, EvaluationReport
    from attunet3d.report.qc import qc_picture

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
