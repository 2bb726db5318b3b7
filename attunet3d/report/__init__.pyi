from .evaluation import CaseResult as CaseResult
from .evaluation import write_report as write_report
from .monai_handlers import CaseMetrics as CaseMetrics
from .monai_handlers import EvaluationReport as EvaluationReport
