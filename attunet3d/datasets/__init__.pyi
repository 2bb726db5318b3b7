from .datalist import check_classes as check_classes
from .datalist import label_groups as label_groups
from .datalist import named_labels as named_labels
from .datalist import pancreas_labels as pancreas_labels
from .sections import load_cases as load_cases
from .separation import check_cases as check_cases
