"""The process that works on cases: their numbers on stdin, what became of them as JSON lines on what was stdout."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_audit import Audit
from fuzz_plan import Outcome, kind_of, rng_of
from fuzz_target import Target, judge

MORE_BYTES = 2**31  # that one case may take, resident, beyond what the process holds
MORE_ADDRESSES = 6 * 2**30  # and reserved, which costs nothing


def targets(groups: Iterable[str], scratch: Path) -> dict[str, Target]:
    """Those of some groups, each with the sound inputs that it damages in ``scratch``; their imports take seconds."""
    groups = set(groups)
    found: dict[str, Target] = {}
    if groups & {"images", "presets", "set", "weights", "recipes", "records"}:
        found |= _with_network(groups, scratch)
    if groups & {"manifests", "datalists"}:
        from fuzz_texts import Datalists, Manifests

        found |= {"manifests": Manifests(), "datalists": Datalists()}
    if "labels" in groups:
        from fuzz_images import Labels

        found["labels"] = Labels(scratch / "labels")
    if "states" in groups:
        from fuzz_weights import States

        found["states"] = States(scratch / "states")
    if "caches" in groups:
        from fuzz_runs import Caches

        found["caches"] = Caches(scratch / "caches")
    if "tables" in groups:
        from fuzz_runs import Tables

        found["tables"] = Tables()
    return {group: target for group, target in found.items() if group in groups}


def _with_network(groups: set[str], scratch: Path) -> dict[str, Target]:
    import nibabel as nib
    import torch
    from conftest import PLAIN, TINY
    from dicom_files import phantom
    from fuzz_images import Images
    from fuzz_recipes import Recipes
    from fuzz_runs import Records
    from fuzz_texts import Presets, SetValues
    from fuzz_weights import Weights

    from attunet3d import AttentionUNet, Segmenter
    from attunet3d.config.changes import inference_values
    from attunet3d.config.recipe import make_recipe

    scratch.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    network = AttentionUNet(channels=TINY["channels"])
    weights = scratch / "model.pt"
    torch.save(network.state_dict(), weights)
    ct = scratch / "small.nii.gz"
    nib.save(nib.Nifti1Image(phantom((14, 12, 10)), np.diag([3.0, 3.0, 3.0, 1.0])), ct)
    values = {**TINY, "scales": [1.0], "backend": "torch"}
    settings: dict[str, Any] = {**values, "device": "cpu", "precision": "fp32", "memory_limit": 2.0}
    sessions = Segmenter(weights, **settings), Segmenter(weights, allow_uneven=True, **settings)
    for session in sessions:
        session.segment(ct)  # what is imported and allocated once does not count
    presets = Presets(values, weights, ct)
    found: dict[str, Target] = {"presets": presets, "set": SetValues(values, presets), "weights": Weights(network)}
    if "recipes" in groups:
        found["recipes"] = Recipes(network, make_recipe(inference_values((), {**TINY, **PLAIN})), ct)
    if "images" in groups:
        (scratch / "images").mkdir()
        found["images"] = Images(scratch / "images", sessions)
    if "records" in groups:
        found["records"] = Records(sessions[0], ct, scratch / "records")
    return found


def work(seed: int, groups: Iterable[str], scratch: Path) -> None:
    """Until stdin ends: each case in a folder of its own, which stays where something is wrong with it."""
    import torch

    faulthandler.enable()
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    here = scratch / "here"  # what is written by a name alone lands there
    here.mkdir(exist_ok=True)
    os.chdir(here)
    ready = targets(groups, scratch / "sound")
    audit = Audit()
    soft = _memory("VmSize") + MORE_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    print(json.dumps({group: list(target.kinds) for group, target in ready.items()}), file=answers, flush=True)
    for line in sys.stdin:
        found = _measured(int(line), seed, ready, scratch, audit)
        print(json.dumps(vars(found)), file=answers, flush=True)


def _measured(case: int, seed: int, ready: dict[str, Target], scratch: Path, audit: Audit) -> Outcome:
    group, kind = kind_of(case, {group: target.kinds for group, target in ready.items()})
    folder = scratch / f"case{case}"
    folder.mkdir()
    base, start = _reset_peak(), time.perf_counter()
    tempfile.tempdir = str(folder)
    try:
        ready[group].damage(kind, rng_of(seed, case), folder)
        outcome, failure = judge(ready[group], kind, folder, audit)
    except Exception:
        outcome, failure = "check failed", traceback.format_exc()
    finally:
        tempfile.tempdir = None
    seconds, more = time.perf_counter() - start, _memory("VmHWM") - base
    if more > MORE_BYTES:
        failure += f" took {more >> 20} MiB"
    if not failure:
        shutil.rmtree(folder)
    return Outcome(case, kind, outcome, failure.strip(), round(seconds, 3), round(more / 1e6, 1))


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status: the fuzz test needs Linux")


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    return _memory("VmRSS")
