from .outputs import Outputs as Outputs
from .outputs import Segmentation as Segmentation
from .session import Case as Case
from .session import Segmenter as Segmenter
from .session import segment as segment
