"""The benchmark: its processes, its arithmetic, and the stock pipeline it compares this package with."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import HANG, TINY, Run

from attunet3d.benchmarks import inference as benchmark
from attunet3d.benchmarks import stock_pipeline
from attunet3d.benchmarks.inference import (
    CONTENDERS,
    BenchmarkError,
    _figures,
    _run,
    dice,
    ratios,
    run_benchmark,
    table,
)
from attunet3d.benchmarks.stock_pipeline import busy_seconds, monai_network, same_network
from attunet3d.errors import ConfigError
from attunet3d.metrics.masks import score

STAGES = ("read_and_preprocess", "network", "postprocess_and_write")
# A parent as small as the command line: what pytest has imported would hide the children's peaks of memory.
DRIVER = """
import json, sys
from attunet3d.benchmarks.inference import run_benchmark
assert not {"torch", "monai"} & set(sys.modules)
run_benchmark(**json.loads(sys.argv[1]))
"""


def _arguments(ct: Path, out: Path, checkpoint: Path) -> dict[str, Any]:
    common = {"repeat": 1, "threads": 1, "device": "cpu", **TINY}
    return {"ct": str(ct), "output_dir": str(out), "checkpoint": str(checkpoint), **common}


@pytest.mark.slow
def test_processes_are_measured_from_outside(
    write_phantom: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One contender, which is three processes of this package."""
    ct, out = write_phantom("LPS"), tmp_path / "out"
    arguments = _arguments(ct, out, tiny_checkpoint) | {"only": ["attunet3d"]}
    driver = [sys.executable, "-c", DRIVER, json.dumps(arguments)]
    done = subprocess.run(driver, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    result = json.loads((out / "benchmark.json").read_text())
    (figures,) = result["contenders"].values()
    assert all(value > 0 for name, value in figures["seconds"].items() if name not in STAGES), figures
    assert sum(figures["seconds"][stage] for stage in STAGES) <= figures["seconds"]["warm"] + 0.01
    assert figures["seconds_of_warm_cases"] == [figures["seconds"]["warm"]]
    # None: below what the tests' own process took, which its children's account starts from.
    assert figures["peak_memory_mb"] is None or figures["peak_memory_mb"] > 0
    assert nib.load(out / figures["mask"]).shape == (60, 56, 44)


def test_a_complete_run(
    run: Run,
    write_phantom: Callable[..., Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that the contenders do, without the time that their imports take: each in this process."""

    def run_here(name: str, command: Sequence[str], threads: int) -> dict[str, float | None]:
        python, option, module, *arguments = command
        assert (python, option, threads) == (sys.executable, "-m", 1)
        if module == "attunet3d":
            assert run(*arguments)[0] == 0
        else:
            assert module == "attunet3d.benchmarks.stock_pipeline"
            stock_pipeline._main(json.loads(*arguments))
        return {"wall": 5.0, "cpu": 4.0, "peak": 300.0, "disturbed": 0.0}

    monkeypatch.setattr(benchmark, "_run", run_here)
    ct, out = write_phantom("LPS"), tmp_path / "out"
    run_benchmark(**_arguments(ct, out, tiny_checkpoint))
    text = (out / "benchmark.json").read_text()
    assert str(tmp_path) not in text
    assert str(tiny_checkpoint.parent) not in text
    result = json.loads(text)
    assert result["ct"] == {"file": ct.name, "shape": [60, 56, 44], "spacing_mm": _spacing(ct)}
    assert result["machine"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["order"]["warm"] == list(CONTENDERS) == list(result["contenders"])
    assert result["settings"]["stock"] == TINY | {"hu_window": [-160.0, 240.0]}
    for figures in result["contenders"].values():
        assert figures["seconds"]["process"] == 5.0
        assert figures["peak_memory_mb"] == 300.0
        mask = nib.load(out / figures["mask"])
        assert mask.shape == (60, 56, 44)
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, nib.load(ct).affine, atol=1e-5)
    ours = result["contenders"]["attunet3d"]
    for name, figures in result["attunet3d_beside"].items():
        assert figures == ratios(ours, result["contenders"][name])
    assert list(result["attunet3d_beside"]) == ["monai-same-network", "monai-attentionunet"]
    for name, value in result["dice_of_attunet3d_against"].items():
        expected = score(out / ours["mask"], out / result["contenders"][name]["mask"])["dice"]
        assert value == pytest.approx(expected, abs=1e-5)
    assert list(result["dice_of_attunet3d_against"]) == ["attunet3d-fp32", "monai-same-network"]
    exact = ("attunet3d-fp32", "monai-same-network", "monai-attentionunet")
    assert {result["contenders"][name]["ran_as"]["precision"] for name in exact} == {"float32"}
    assert all(name in table(result) for name in CONTENDERS)


def _spacing(ct: Path) -> list[float]:
    return [round(float(zoom), 4) for zoom in nib.load(ct).header.get_zooms()]


def _contender(warm: float, network: float, process: float, memory: float | None) -> dict[str, Any]:
    stages = {"read_and_preprocess": 0.1, "network": network, "postprocess_and_write": 0.2}
    seconds = {**stages, "warm": warm, "process": process, "imports_and_setup": 0.5}
    return {"seconds": seconds, "peak_memory_mb": memory, "cores_disturbed": {"warm": 0.1, "process": None}}


def test_ratios_are_stock_over_ours_and_for_memory_ours_over_stock() -> None:
    ours, stock = _contender(2.0, 1.0, 5.0, 500.0), _contender(20.0, 15.0, 25.0, 2000.0)
    expected = {"warm_times": 10.0, "network_times": 15.0, "process_times": 5.0, "memory_share": 0.25}
    assert ratios(ours, stock) == expected
    # Not known, or nothing to divide by: every window may have been skipped.
    blank = _contender(2.0, 0.0, 5.0, None)
    assert ratios(blank, stock) == expected | {"network_times": None, "memory_share": None}


def test_table_shows_what_is_not_known_as_a_dash() -> None:
    ours, stock = _contender(2.0, 0.0, 5.0, None), _contender(20.0, 15.0, 25.0, 2000.0)
    result = {
        "ct": {"file": "ct.nii.gz", "shape": [512, 512, 72], "spacing_mm": [0.7, 0.7, 2.5]},
        "machine": {"device": "cpu", "threads": 2, "cpu": "some CPU"},
        "settings": {"warnings": ["model.pt: no recipe"]},
        "contenders": {"attunet3d": ours, "monai-attentionunet": stock},
        "attunet3d_beside": {"monai-attentionunet": ratios(ours, stock)},
        "dice_of_attunet3d_against": {"attunet3d-fp32": None, "monai-same-network": 0.99876},
    }
    assert table(result).splitlines() == [
        "ct.nii.gz: 512 x 512 x 72 voxels of 0.7 x 0.7 x 2.5 mm; cpu, threads: 2, some CPU",
        "seconds              read+pre  network  post+write  warm case  whole process  imports+setup  peak MB",
        "attunet3d                0.10     0.00        0.20       2.00           5.00           0.50        -",
        "monai-attentionunet      0.10    15.00        0.20      20.00          25.00           0.50     2000",
        "attunet3d against monai-attentionunet: a warm case 10.0 times as fast, the whole process 5.0 times, "
        "- of its memory",
        "Dice of attunet3d against attunet3d-fp32: -",
        "Dice of attunet3d against monai-same-network: 0.9988",
        "warning: model.pt: no recipe",
    ]
    stock["cores_disturbed"]["warm"] = 0.52
    caution = "unreliable: other processes used 0.5 cores while monai-attentionunet was measured"
    assert table(result).splitlines()[-1] == caution


@pytest.mark.parametrize(("totals", "median"), [([4.0], 4.0), ([5.0, 2.0], 2.0), ([9.0, 1.0, 3.0], 3.0)])
def test_the_median_warm_case_counts_and_the_first_case_does_not(totals: list[float], median: float) -> None:
    def case(total: float) -> dict[str, float]:
        return {"total": total, "read_and_preprocess": 0.1, "network": total - 0.2, "postprocess_and_write": 0.1}

    warm: dict[str, Any] = {"cases": [case(0.5), *map(case, totals)], "setup": 1.0, "mask": "ct_seg.nii.gz"}
    warm |= {"ran_as": {}, "gpu_peak": None, "disturbed": 0.0}
    figures = _figures("attunet3d", warm, {"wall": 7.0, "cpu": 8.0, "peak": 300.04, "disturbed": None})
    assert figures["seconds"] == {
        "read_and_preprocess": 0.1,
        "network": pytest.approx(median - 0.2),
        "postprocess_and_write": 0.1,
        "warm": median,
        "first_case": 0.5,
        "imports_and_setup": 1.0,
        "process": 7.0,
        "process_cpu": 8.0,
    }
    assert figures["seconds_of_warm_cases"] == totals
    assert figures["peak_memory_mb"] == 300.0
    assert figures["mask"] == "attunet3d/ct_seg.nii.gz"


def test_dice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def mask(name: str, voxels: int, spacing: float = 1.0) -> Path:
        array = np.zeros((4, 4, 4), np.uint8)
        array.flat[:voxels] = 1
        nib.save(nib.Nifti1Image(array, np.diag([spacing, 1.0, 1.0, 1.0])), tmp_path / name)
        return tmp_path / name

    some, more, none = mask("some.nii.gz", 8), mask("more.nii.gz", 24), mask("none.nii.gz", 0)
    assert dice(some, some) == 1.0
    assert dice(some, more) == 0.5
    assert dice(some, none) == 0.0
    assert dice(none, none) is None
    assert not caplog.records
    # Minutes of measurements are not lost because a reader put the CT elsewhere.
    assert dice(some, mask("elsewhere.nii.gz", 8, spacing=2.0)) is None
    assert "3.00 mm apart" in caplog.text


def _python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('log\\nerror: no such weights\\n\\n')", "the contender: no such weights"),
        ("raise ValueError('bad size')", "the contender: ValueError: bad size"),
        ("raise SystemExit(3)", "the contender: exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "the contender: ended by signal 9; out of memory?"),
    ],
)
def test_a_process_that_fails_is_one_clear_error(code: str, message: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        _run("the contender", _python(code), threads=1)
    assert str(caught.value) == message


def test_an_interrupt_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    def interrupt(pid: int, options: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Watched)
    monkeypatch.setattr(os, "wait4", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run("the contender", _python(f"import time; time.sleep({HANG})"), threads=1)
    assert [process.returncode for process in started] == [-signal.SIGKILL]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the account begins, and counts, in its own way")
def test_the_memory_of_a_process_is_its_own() -> None:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    size = int(own) + 100
    peak = _run("large", _python(f"b'x' * ({size} << 20)"), threads=1)["peak"]
    assert peak is not None
    assert own < peak < 2 * size
    # What such a small process would be credited with is the peak of this one.
    assert _run("small", _python("pass"), threads=1)["peak"] is None


def test_work_of_others_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(benchmark, "busy_seconds", lambda: next(clock))
    answer = _run("the contender", _python("pass"), threads=1)
    wall, cpu = answer["wall"], answer["cpu"]
    assert wall is not None
    assert cpu is not None
    assert answer["disturbed"] == max(3.0 - cpu, 0.0) / wall, "all but what the process itself has worked"
    monkeypatch.setattr(benchmark, "busy_seconds", lambda: None)
    assert _run("the contender", _python("pass"), threads=1)["disturbed"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")
def test_busy_seconds_are_those_of_the_cores_that_can_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By hand, in hundredths: 1 + 2 + 4 + 64 + 128 + 256 of the first core and 3 of the third, idle and waiting not."""
    assert busy_seconds() is not None
    rows = ["cpu 9 9 9 9 9 9 9 9 9 9", "cpu0 1 2 4 8 16 64 128 256 512 1024", "cpu1 9 9 9 9 9 9 9 9 9 9"]
    (tmp_path / "stat").write_text("\n".join([*rows, "cpu2 1 1 1 0 0 0 0 0 0 0", "intr 5 5 5", "ctxt 7", ""]))
    monkeypatch.setattr(stock_pipeline, "Path", lambda name: tmp_path / Path(name).relative_to("/proc"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2})
    monkeypatch.setattr(os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    assert busy_seconds() == 4.58
    (tmp_path / "stat").unlink()
    assert busy_seconds() is None


def test_each_process_has_the_same_threads_and_its_whole_time_counts(tmp_path: Path) -> None:
    code = (
        "import os, time; start = time.monotonic(); threads = os.environ['OMP_NUM_THREADS']\n"
        f"open({str(tmp_path / 'n')!r}, 'w').write(threads + ' ' + str(time.monotonic() - start))"
    )
    answer = _run("threads", _python(code), threads=3)
    threads, part = (tmp_path / "n").read_text().split()
    assert threads == "3"
    assert answer["wall"] is not None
    assert answer["wall"] > float(part)


@pytest.mark.parametrize(("name", "expected"), [("attunet3d", "1"), ("monai-same-network", "0")])
def test_the_stock_pipeline_has_no_huge_pages_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, expected: str
) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    code = f"import os; open({str(tmp_path / 'n')!r}, 'w').write(os.environ['THP_MEM_ALLOC_ENABLE'])"
    _run(name, _python(code), threads=1)
    assert (tmp_path / "n").read_text() == expected


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks where the user stands")
def test_modules_are_not_taken_from_where_the_user_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "quopri.py").write_text("raise SystemExit('taken for the standard library')")
    monkeypatch.chdir(tmp_path)
    _run("attunet3d", _python("import quopri"), threads=1)


def test_what_cannot_be_run_is_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="choose among attunet3d, attunet3d-fp32, monai-same"):
        run_benchmark("ct.nii.gz", out, only=("attunet3d", "nnunet"))
    with pytest.raises(ConfigError, match="0 warm cases"):
        run_benchmark("ct.nii.gz", out, repeat=0)
    with pytest.raises(ConfigError, match="threads: 0"):
        run_benchmark("ct.nii.gz", out, threads=0)
    with pytest.raises(ConfigError, match="'nonsense'"):
        run_benchmark("ct.nii.gz", out, nonsense=1)
    assert not out.exists()
    with pytest.raises(BenchmarkError, match=r"^the CT and the device: \S*none\.nii\.gz: does not exist"):
        run_benchmark(tmp_path / "none.nii.gz", out)
    assert not (out / "benchmark.json").exists()


class _Brighter(torch.nn.Module):
    """Logits whose larger one says whether a voxel is brighter than half the window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - x, x - 0.5], dim=1)


@pytest.mark.parametrize("orientation", ["RAS", "LPS"])
def test_the_stock_pipeline_puts_the_mask_in_its_place(
    orientation: str, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct = write_phantom(orientation)
    image = nib.load(ct)
    hu = np.asarray(image.dataobj)
    segment = stock_pipeline.stock_pipeline(
        _Brighter(), spacing=_spacing(ct), hu_window=(-160, 240), roi_size=[32] * 3, device="cpu", output_dir=tmp_path
    )
    path, seconds = segment(str(ct))
    assert list(seconds) == ["read_and_preprocess", "network", "postprocess_and_write"]
    mask = nib.load(path)
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert mask.get_data_dtype() == np.uint8
    # The model grid has the CT's own voxels, so nothing is lost on the way.
    agree = np.asarray(mask.dataobj) == (hu > 40)
    assert agree.mean() > 0.999


def test_networks_of_the_stock_pipeline(tiny_checkpoint: Path) -> None:
    weights = torch.load(tiny_checkpoint, weights_only=True)
    definition = {"_target_": "attunet3d.networks.AttentionUNet", "channels": TINY["channels"]}
    same = same_network({"network_def": definition, "checkpoint": tiny_checkpoint}).state_dict()
    assert all(torch.equal(same[key], value) for key, value in weights.items())
    config = {"channels": TINY["channels"], "num_classes": 2}
    one, other = monai_network(config).state_dict(), monai_network(config).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
