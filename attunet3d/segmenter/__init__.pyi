from .outputs import Outputs as Outputs
from .outputs import Segmentation as Segmentation
from .record import CaseRecord as CaseRecord
from .record_schema import record_schema as record_schema
from .session import Case as Case
from .session import Segmenter as Segmenter
from .session import segment as segment
