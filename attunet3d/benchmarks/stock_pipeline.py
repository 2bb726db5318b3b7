"""MONAI's stock pipeline, configured as in its model zoo, and the process that runs it or this package for a benchmark.

The pipeline is untuned, and this file shows all of it. ``python -m attunet3d.benchmarks.stock_pipeline SPEC`` is for
``attunet3d.benchmarks.inference`` only. Imports are local, so that each contender's process loads only its own
libraries.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.errors import AttUNet3dError

if TYPE_CHECKING:
    from torch import nn

# A CT's path -> the mask's, and the seconds of each stage.
Segment = Callable[[str], tuple[Path, dict[str, float]]]
_STARTED = time.perf_counter()


def stock_pipeline(
    network: nn.Module,
    *,
    spacing: Sequence[float],
    hu_window: Sequence[float],
    roi_size: Sequence[int],
    device: str,
    output_dir: str | Path,
) -> Segment:
    """Build a function that segments a CT on its own grid, from MONAI's transforms and inferer only.

    Args:
        network: image in [0, 1], (1, 1, X, Y, Z) -> logits (1, classes, X, Y, Z); it is set to eval mode and fp32.
        spacing: of the model grid, mm, RAS+.
        hu_window: HU values that are mapped to 0 and 1.
        roi_size: sliding window, voxels of the model grid.
        device: a torch device's name.
        output_dir: folder for masks.
    """
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        Activationsd,
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )

    on = torch.device(device)
    network = network.float().to(on).eval()
    inferer = SlidingWindowInferer(roi_size, sw_batch_size=1, overlap=0.5, mode="gaussian")
    preprocessing = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),  # None: use the image's space; the default warns
            Spacingd("image", pixdim=spacing, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=hu_window[0], a_max=hu_window[1], b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    postprocessing = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred",
                output_dir=output_dir,
                output_postfix="seg",
                output_ext=".nii.gz",
                output_dtype=torch.uint8,
                resample=False,
                separate_folder=False,
                print_log=False,
                savepath_in_metadict=True,
            ),
        ]
    )

    def segment(ct: str) -> tuple[Path, dict[str, float]]:
        with torch.no_grad():
            start = time.perf_counter()
            data: Any = preprocessing({"image": ct})
            read = time.perf_counter()
            data["pred"] = inferer(data["image"][None].to(on), network)[0]
            if on.type == "cuda":
                torch.cuda.synchronize(on)  # else the network's time would count as the next stage
            inferred = time.perf_counter()
            data = postprocessing(data)
            written = time.perf_counter()
        seconds = {
            "read_and_preprocess": read - start,
            "network": inferred - read,
            "postprocess_and_write": written - inferred,
        }
        return Path(data["pred"].meta["saved_to"]), seconds

    return segment


def same_network(config: Mapping[str, Any]) -> nn.Module:
    """Build this package's network with its weights, without folding.

    Args:
        config: values of the bundle's inference config; "network_def" and "checkpoint" are used.

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
    """
    from attunet3d.checkpoint import load_weights
    from attunet3d.networks import AttentionUNet

    network = AttentionUNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
    load_weights(network, config["checkpoint"])
    return network


def monai_network(config: Mapping[str, Any]) -> nn.Module:
    """Build MONAI's attention U-Net with the same widths and random weights: only its time is meaningful.

    Args:
        config: values of the bundle's inference config; "channels" and "num_classes" are used.
    """
    import torch
    from monai.networks.nets import AttentionUnet

    channels = config["channels"]
    torch.manual_seed(0)
    return AttentionUnet(3, 1, config["num_classes"], channels=channels, strides=[2] * (len(channels) - 1))


def _describe(ct: str, device: str) -> dict[str, Any]:
    """Describe the CT and the machine. Imports the contenders' libraries, so that the first one finds them cached."""
    load = [round(value, 2) for value in os.getloadavg()] if sys.platform != "win32" else None
    from attunet3d.io import read_ct

    array, affine = read_ct(ct)
    import monai.inferers
    import monai.transforms
    import torch

    from attunet3d.runtime.device import choose_device

    chosen = choose_device(device)
    return {
        "device": str(chosen),
        "ct": {
            "shape": list(array.shape),
            "spacing_mm": [round(math.hypot(*affine[:3, axis]), 4) for axis in range(3)],
        },
        "machine": {
            "cpu": _cpu_model(),
            "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen),
            "os": platform.platform(),
            "load_average_before": load,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "monai": monai.__version__,
        },
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def busy_seconds() -> float | None:
    """Return the busy time since boot, s, of the cores that this process may use; None if unknown."""
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # user, nice, system; irq, softirq, steal: neither idle nor waiting for I/O.
    ticks = sum(int(ticks) for row in rows if row[0] in cores for ticks in row[1:4] + row[6:9])
    return ticks / os.sysconf("SC_CLK_TCK")


def _measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Segment one CT ``spec["cases"]`` times, timed in the same way for all contenders."""
    import torch

    torch.set_num_threads(spec["threads"])
    device = spec["device"]
    segment = _ours(device=device, **spec["ours"]) if "ours" in spec else _stock(device=device, **spec["stock"])
    setup = time.perf_counter() - _STARTED
    cases = []
    for _ in range(spec["cases"]):
        start = time.perf_counter()
        mask, stages = segment(spec["ct"])
        cases.append({"total": time.perf_counter() - start, **stages})
    gpu_peak = torch.cuda.max_memory_reserved(device) / 2**20 if device.startswith("cuda") else None
    # Our record tells what "auto" was resolved to; the stock pipeline has no such option.
    record = mask.with_name(mask.name.removesuffix(".nii.gz") + ".json")
    ran = json.loads(record.read_text(encoding="utf-8")) if "ours" in spec else {"precision": "float32"}
    ran_as = {key: ran.get(key, "torch") for key in ("backend", "precision")}
    return {"setup": setup, "cases": cases, "mask": mask.name, "ran_as": ran_as, "gpu_peak": gpu_peak}


def _ours(output_dir: str, **settings: Any) -> Segment:
    from attunet3d.segmenter.session import Segmenter

    session = Segmenter(**settings)

    def segment(ct: str) -> tuple[Path, dict[str, float]]:
        result = session.segment(ct, output_dir)
        assert result.path is not None
        seconds = result.record["seconds"]
        return result.path, {
            "read_and_preprocess": seconds["read"] + seconds["preprocess"],
            "network": seconds["network"],
            "postprocess_and_write": seconds["postprocess"] + seconds["write"],
        }

    return segment


def _stock(network: str, config: Mapping[str, Any], device: str, output_dir: str) -> Segment:
    make = {"same": same_network, "monai": monai_network}[network]
    grid = {name: config[name] for name in ("spacing", "hu_window", "roi_size")}
    return stock_pipeline(make(config), device=device, output_dir=output_dir, **grid)


def _main(spec: Mapping[str, Any]) -> None:
    try:
        answer = _measure(spec) if "cases" in spec else _describe(spec["ct"], spec["device"])
    except Exception as error:
        text = " ".join(str(error).split())
        if not isinstance(error, AttUNet3dError):
            traceback.print_exc()
            text = f"{type(error).__name__}: {text}"
        sys.exit(text)  # the benchmark reports the last line of stderr
    Path(spec["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
