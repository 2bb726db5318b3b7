from .folders import score_folders as score_folders
from .masks import METRICS as METRICS
from .masks import compare_masks as compare_masks
from .masks import score as score
from .table import summarize as summarize
from .table import write_metrics_csv as write_metrics_csv
