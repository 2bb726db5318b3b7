"""AMOS22 (arXiv:2206.08023, CC BY 4.0): NIfTI, fifteen organs in CTs, and in MRIs that are not used."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from attunet3d.datasets.msd_pancreas import listed_cases
from attunet3d.datasets.numbering import Renumbering, metadata_of
from attunet3d.datasets.prepare import RawCase, RawData

ORGANS = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "oesophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "pancreas",
    11: "right adrenal gland",
    12: "left adrenal gland",
    13: "duodenum",
    14: "urinary bladder",
    15: "prostate or uterus",
}
METADATA = {
    "name": "AMOS22",
    "description": "Abdominal CTs with fifteen organs; AMOS22, arXiv:2206.08023, CC BY 4.0",
    **metadata_of(list(ORGANS.values())),
}
LAST_CT = 500
CASE = re.compile(r"amos_(\d+)")


def find_cases(raw: str | Path) -> RawData:
    """Find the CTs under "training" and "validation" of ``dataset.json``; those without labels (imagesTs) are ignored.

    Args:
        raw: the folder with dataset.json, imagesTr, labelsTr, imagesVa and labelsVa.

    Raises:
        InputNotFoundError: there is no dataset.json.
        ConfigError: it is not JSON, or lists no cases.
    """
    raw = Path(raw)
    listed, refused = listed_cases(raw, "amos22", ("training", "validation"))
    renumber = Renumbering.by_names(ORGANS)
    cases: dict[str, RawCase] = {}
    left_out = []
    for case in listed:
        number = CASE.fullmatch(case.name)
        if number and int(number[1]) > LAST_CT:
            left_out.append((case.name, f"{case.image}: an MRI, as all above amos_{LAST_CT:04d}"))
        elif case.name in cases:
            refused.append((case.name, f"{case.image}: dataset.json lists {cases[case.name].image} by that name, too"))
        else:
            cases[case.name] = replace(case, renumber=renumber)
    return RawData(raw, METADATA, list(cases.values()), None, refused=refused, left_out=left_out)
