"""Setting up the server's folder, and what the command refuses; nothing is started."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PLAIN, TINY

from attunet3d.checkpoint import file_sha256, read_weights, save_weights
from attunet3d.config.files import BUNDLE, installed_bundle
from attunet3d.config.recipe import read_recipe
from attunet3d.errors import CheckpointError, ConfigError, InputNotFoundError
from attunet3d.label import folder, server
from attunet3d.label.access import TOKEN_VARIABLE, Access
from attunet3d.label.server import address, check_address, check_studies, is_loopback

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MONAI Label's app, which need not be installed for this."""
    main = tmp_path / "main.py"
    main.write_text("class MyApp: ...\n")
    monkeypatch.setattr(folder, "sample_app", lambda: main)
    return main


def _config(bundle: Path, name: str) -> dict:
    return yaml.safe_load((bundle / "configs" / name).read_text())


def test_the_app_holds_a_bundle_with_the_values_given(sample: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    bundle = folder.make_app(tmp_path / "app", tiny_checkpoint, (), {**TINY, "max_epochs": 7})
    assert bundle == tmp_path / "app" / "model" / BUNDLE
    assert (tmp_path / "app" / "monaibundle.py").read_text() == sample.read_text()
    assert "MONAILabelApp" in (tmp_path / "app" / "main.py").read_text()
    for name in ("train.yaml", "inference.yaml"):
        config = _config(bundle, name)
        assert {key: config[key] for key in TINY} == TINY
        # What was not changed is there as it is in the installed bundle.
        assert config["network_def"] == _config(installed_bundle(), name)["network_def"]
    train = _config(bundle, "train.yaml")
    assert train["max_epochs"] == 7
    assert train["state_interval"] == 0  # last.pt would be offered as weights
    assert "max_epochs" not in _config(bundle, "inference.yaml")
    assert file_sha256(bundle / "models" / "model.pt") == file_sha256(tiny_checkpoint)
    assert {path.name for path in (bundle / "configs").iterdir()} == {
        path.name for path in (installed_bundle() / "configs").iterdir()
    }


def test_safetensors_become_a_file_that_monai_label_reads(sample: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    weights = read_weights(tiny_checkpoint)
    start = save_weights(weights, tmp_path / "tiny.safetensors", torch.float32, read_recipe(tiny_checkpoint))
    path = folder.make_app(tmp_path / "app", start) / "models" / "model.pt"
    found = torch.load(path, weights_only=True)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert read_recipe(path) == read_recipe(tiny_checkpoint)


def test_what_was_learned_stays_until_other_weights_are_given(
    sample: Path, tmp_path: Path, tiny_checkpoint: Path, bare_checkpoint: Path
) -> None:
    app = tmp_path / "app"
    weights = folder.make_app(app) / "models" / "model.pt"
    installed = file_sha256(installed_bundle() / "models" / "model.pt")
    assert file_sha256(weights) == installed
    folder.make_app(app, tiny_checkpoint, (), TINY)
    learned = file_sha256(weights)
    assert learned == file_sha256(tiny_checkpoint) != installed
    folder.make_app(app, None, (), TINY)
    assert file_sha256(weights) == learned
    with pytest.raises(CheckpointError, match="give the preset it was trained with"):
        folder.make_app(app, bare_checkpoint)  # MONAI Label would only warn, and segment with what fits
    assert file_sha256(weights) == learned
    folder.make_app(app)
    assert _config(weights.parents[1], "inference.yaml")["channels"] == TINY["channels"]


def test_the_recipe_of_the_weights_is_that_of_the_server(sample: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """What it segments and trains with; the next start needs no preset either."""
    for checkpoint in (tiny_checkpoint, None):
        bundle = folder.make_app(tmp_path / "app", checkpoint)
        for name in ("train.yaml", "inference.yaml"):
            config = _config(bundle, name)
            assert {key: config[key] for key in TINY | PLAIN} == TINY | PLAIN
        assert read_recipe(bundle / "models" / "model.pt") == read_recipe(tiny_checkpoint)
    assert (
        _config(folder.make_app(tmp_path / "app", None, (), {"spacing": [5.0] * 3}), "train.yaml")["spacing"]
        == [5.0] * 3
    )


def test_an_unknown_id_is_refused_and_leaves_nothing(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'spacin'"):
        folder.make_app(tmp_path / "app", None, (), {"spacin": 2.0})
    assert not (tmp_path / "app").exists()


@pytest.mark.skipif(importlib.util.find_spec("monailabel") is not None, reason="MONAI Label is installed here")
def test_without_monai_label_one_line_says_what_to_install(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run("label", tmp_path, "--app", tmp_path / "app")
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: MONAI Label is not installed here: in a clone run `make label`")
    assert not (tmp_path / "app").exists()


def test_studies_are_a_folder_or_a_url(tmp_path: Path) -> None:
    assert check_studies(str(tmp_path)) == str(tmp_path.resolve())
    url = "http://127.0.0.1:8042/dicom-web"
    assert check_studies(url) == url
    with pytest.raises(InputNotFoundError, match="no such folder"):
        check_studies(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="names no host"):
        check_studies("http:///dicom-web")
    with pytest.raises(ConfigError, match="MONAI_LABEL_DICOMWEB_PASSWORD") as error:
        check_studies("https://doe:secret@pacs/dicom-web")
    assert "secret" not in str(error.value)


@contextmanager
def held_port() -> Iterator[tuple[socket.socket, int]]:
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held, held.getsockname()[1]


def test_an_address_that_cannot_be_had_is_refused() -> None:
    """Held, so that nobody else takes it, an address can still be had; not where somebody listens."""
    with held_port() as (held, port):
        check_address("127.0.0.1", port)
        held.listen()
        with pytest.raises(ConfigError, match=f"127.0.0.1, port {port}: Address already in use; choose another port"):
            check_address("127.0.0.1", port)
    with pytest.raises(ConfigError, match="or host"):
        check_address("192.0.2.1", port)  # reserved for documentation: no machine's


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("pacs.local", False)],
)
def test_other_machines_reach_all_but_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_urls_of_addresses() -> None:
    assert address("127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert address("::1", 8000) == "http://[::1]:8000"


def test_the_url_holds_the_token_and_warnings_say_what_is_open(
    sample: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attunet3d.label import server

    calls = []
    monkeypatch.setattr(server, "serve", lambda *arguments: calls.append(arguments))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with held_port() as (_, port):
        start = ["label", tmp_path, "--app", tmp_path / "app", "--port", port]
        code, stdout, stderr = run(*start)
        token = calls[0][4].token
        assert (code, stdout, stderr) == (0, f"http://127.0.0.1:{port}/{token}/\n", "")
        code, stdout, stderr = run(
            *start, "--host", "0.0.0.0", "--allow-host", "pacs", "--allow-origin", "https://ohif"
        )
        assert (code, stdout) == (0, f"http://0.0.0.0:{port}/{calls[1][4].token}/\n")
        assert "can be reached from other machines" in stderr
        code, stdout, stderr = run(*start, "--no-token")
        assert (code, stdout) == (0, f"http://127.0.0.1:{port}/\n")
        assert "everyone who can reach the server" in stderr
        code, stdout, stderr = run(*start, "--allow-origin", "*")
        assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert [call[2:4] + call[5:] for call in calls] == [
        (host, port, False) for host in ("127.0.0.1", "0.0.0.0", "127.0.0.1")
    ]
    assert {f"pacs:{port}", "pacs", f"0.0.0.0:{port}"} < calls[1][4].hosts
    assert calls[1][4].origins == {"https://ohif"}
    assert calls[2][4].token is None


def test_on_windows_a_port_that_is_taken_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """There SO_REUSEADDR would let two servers listen on one port."""
    asked: list[int] = []

    class Probe(socket.socket):
        def setsockopt(self, *option: Any) -> None:
            asked.append(option[1])

    monkeypatch.setattr(socket, "socket", Probe)
    check_address("127.0.0.1", 0)
    assert asked == [socket.SO_REUSEADDR]
    monkeypatch.setattr(server.sys, "platform", "win32")
    check_address("127.0.0.1", 0)
    assert asked == [socket.SO_REUSEADDR]


def test_temporary_files_of_every_program_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of Windows heed TMP and TEMP; and it removes no folder in which a process works."""
    variables = ("TMPDIR", "TEMP", "TMP")
    seen: set[str] = set()

    def serving(*arguments: object) -> None:
        seen.update(os.environ[name] for name in variables)
        seen.add(os.getcwd())

    for name in (*variables, "PYTHONPATH", "MONAI_LABEL_DICOMWEB_CACHE_PATH", "MONAI_LABEL_SESSION_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server, "_serve", serving)
    before = os.getcwd()
    server.serve(tmp_path, "", "", 0, Access(frozenset()))
    (folder_of_server,) = seen
    assert Path(folder_of_server).parent == tmp_path
    assert os.getcwd() == before
    assert not list(tmp_path.iterdir())
