"""Weights in files: tensors only, in half the space, and refused where they do not fit."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from attunet3d import AttentionUNet
from attunet3d.checkpoint import file_sha256, load_weights, mean_weights, read_weights, save_weights, without_auxiliary
from attunet3d.errors import CheckpointError


def small() -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(channels=(4, 8, 8, 8, 8)).eval()


def test_half_precision_weights_round_trip(tmp_path: Path) -> None:
    net, copy = small(), AttentionUNet(channels=(4, 8, 8, 8, 8)).eval()
    assert save_weights(net.state_dict(), tmp_path / "half.pt") == tmp_path / "half.pt"
    torch.save(net.state_dict(), tmp_path / "full.pt")
    assert (tmp_path / "half.pt").stat().st_size < 0.75 * (tmp_path / "full.pt").stat().st_size
    load_weights(copy, tmp_path / "half.pt")
    for key, value in net.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[key], value, rtol=1e-3, atol=1e-6)
        assert copy.state_dict()[key].dtype == value.dtype


def test_weights_may_lie_under_the_key_that_training_writes(tmp_path: Path) -> None:
    weights = small().state_dict()
    torch.save({"model": weights}, tmp_path / "nested.pt")
    found = read_weights(tmp_path / "nested.pt")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_no_pickle_is_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harm",)  # type: ignore[return-value]

    torch.save({"model": Harm()}, tmp_path / "harm.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Harm()))
    for name in ("harm.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match="not loaded"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_unfit_weights_say_why(tmp_path: Path) -> None:
    weights = small().state_dict()
    cases = {
        "wide.pt": (AttentionUNet(channels=(8, 8, 8, 8, 8)).state_dict(), "not"),
        "gateless.pt": (AttentionUNet(channels=(4, 8, 8, 8, 8), gate=None).state_dict(), "missing"),
        "more.pt": ({**weights, "head.weight": torch.zeros(1)}, "it also has head.weight"),
        "nan.pt": ({**weights, "final.bias": torch.full((2,), float("nan"))}, "not finite"),
        "list.pt": ([1, 2], "no state dict"),
        "empty.pt": ({}, "no state dict"),
    }
    for name, (content, why) in cases.items():
        torch.save(content, tmp_path / name)
        net = small()
        with pytest.raises(CheckpointError, match=f"{name}: .*{why}"):
            load_weights(net, tmp_path / name)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in weights.items())
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load_weights(small(), tmp_path / "none.pt")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit of a weight: between records torch leaves room, where it would mean nothing."""
    with zipfile.ZipFile(io.BytesIO(content)) as records:
        weight = max(records.infolist(), key=lambda record: record.file_size)
    place = content.index(weight.filename.encode()) + 200
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def zeroed(content: bytes) -> bytes:
    return content[:2000] + bytes(len(content) - 4000) + content[-2000:]


@pytest.mark.parametrize("damage", [cut, flipped, zeroed], ids=lambda damage: damage.__name__)
def test_damaged_weights_are_named(tmp_path: Path, damage: Any) -> None:
    """Also where torch would load them: it does not look at its checksums."""
    save_weights(small().state_dict(), tmp_path / "model.pt")
    assert read_weights(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(damage((tmp_path / "model.pt").read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.pt: damaged \(.*\); copy it again"):
        read_weights(tmp_path / "model.pt")


def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    weights = {"a": torch.arange(7.0), "b": torch.ones(3, dtype=torch.float16)}
    torch.save(weights, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    for place in range(0, len(content), 17):
        (tmp_path / "w.pt").write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            found = read_weights(tmp_path / "w.pt")
        except CheckpointError:
            continue
        assert all(torch.equal(found[key], value) for key, value in weights.items()), place


def test_hash_is_that_of_the_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than one block of what is read at a time
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_weights_fit_with_and_without_the_head_of_other_organs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    with_organs = AttentionUNet(channels=(4, 8, 8, 8, 8), auxiliary_channels=5)
    torch.save(with_organs.state_dict(), tmp_path / "organs.pt")
    plain = small()
    load_weights(plain, tmp_path / "organs.pt")
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(plain(image), with_organs.eval()(image))

    kept = without_auxiliary(with_organs.state_dict())
    assert kept.keys() == plain.state_dict().keys()
    torch.save(kept, tmp_path / "plain.pt")
    again = AttentionUNet(channels=(4, 8, 8, 8, 8), auxiliary_channels=5)
    head = {key: value.clone() for key, value in again.state_dict().items() if key not in kept}
    load_weights(again, tmp_path / "plain.pt")
    assert torch.equal(again.eval()(image), plain(image))
    assert head
    assert all(torch.equal(again.state_dict()[key], value) for key, value in head.items())

    with pytest.raises(CheckpointError, match=r"auxiliary\.0\.weight is"):
        load_weights(AttentionUNet(channels=(4, 8, 8, 8, 8), auxiliary_channels=7), tmp_path / "organs.pt")


def test_mean_of_runs(tmp_path: Path) -> None:
    runs = [
        save_weights({"w": torch.full((2,), float(v)), "n": torch.tensor(v)}, tmp_path / f"{v}.pt") for v in (1, 2, 6)
    ]
    mean = mean_weights(runs)
    assert mean["w"].tolist() == [3.0, 3.0]
    assert mean["n"].item() == 3
    assert mean["n"].dtype == torch.int64
    other = save_weights({"w": torch.zeros(3), "n": torch.tensor(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: does not fit .*1\.pt \(w is \(3,\), not \(2,\)\)"):
        mean_weights([*runs, other])


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda value: value.to("meta"), "meta"),
        (lambda value: value.to_sparse(), "sparse_coo"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantized"),
        (lambda value: value.tolist(), "a list"),
        (lambda value: value.to(torch.complex64), "is of complex64, not of float32"),
        (lambda value: value.to(torch.int32), "is of int32, not of float32"),
        (lambda value: torch.full(value.shape, 1e300, dtype=torch.float64), "not finite"),
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, change: Any, found: str) -> None:
    """Before torch fails over them in its own words, or takes them for other numbers."""
    state = small().state_dict()
    name = next(iter(state))
    torch.save({**state, name: change(state[name])}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}.*{found}"):
        load_weights(small(), tmp_path / "odd.pt")


@pytest.mark.parametrize("name", [7, b"bytes"])
def test_names_that_are_no_texts_are_refused(tmp_path: Path, name: Any) -> None:
    torch.save({**small().state_dict(), name: torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="contains no state dict of tensors"):
        load_weights(small(), tmp_path / "odd.pt")


def test_an_archive_of_code_is_refused_without_a_word_of_torch(tmp_path: Path) -> None:
    """Warnings are errors here."""
    torch.save(small().state_dict(), tmp_path / "code.pt")
    with zipfile.ZipFile(tmp_path / "code.pt", "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="not a checkpoint of tensors only"):
        load_weights(small(), tmp_path / "code.pt")


def repacked(source: Path, target: Path, content: bytes | None = None, how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", how) as new:
        for name in archive.namelist():
            new.writestr(name, content if content and name.endswith("data.pkl") else archive.read(name))


def test_a_file_that_is_small_and_becomes_large_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "zeros.pt")
    repacked(tmp_path / "zeros.pt", tmp_path / "stored.pt")
    assert read_weights(tmp_path / "stored.pt")["a"].shape == (100_000,)
    repacked(tmp_path / "zeros.pt", tmp_path / "bomb.pt", how=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"bomb\.pt: damaged \(compressed"):
        read_weights(tmp_path / "bomb.pt")
    torch.save({"a": torch.zeros(1).expand(10**5, 10**5)}, tmp_path / "expanded.pt")
    with pytest.raises(CheckpointError, match="'a' is a tensor that is expanded"):
        read_weights(tmp_path / "expanded.pt")


def test_a_key_without_end_is_refused(tmp_path: Path) -> None:
    """Each tuple holds the one before twice; a dictionary would compute the hash of 2^100 items."""
    twice = b"".join(b"q%ch%c\x86" % (n, n) for n in range(100))  # put, get, tuple of two
    pickled = b"\x80\x02}K\x01" + twice + b"K\x01s."
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    repacked(tmp_path / "plain.pt", tmp_path / "new.pt", pickled)
    torch.save({"a": torch.zeros(1)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "legacy.pt")["a"].shape == (1,)
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    (tmp_path / "old.pt").write_bytes(head + pickled + pickle.dumps([], 2))
    for name in ("new.pt", "old.pt"):
        with pytest.raises(CheckpointError, match="not loaded") as caught:
            read_weights(tmp_path / name)
        assert "a tuple of more than 1000 items" in str(caught.value.__cause__)
