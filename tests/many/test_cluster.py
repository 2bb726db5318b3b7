"""Who can reach the Ray of a run, and which cluster a run joins."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HANG

from attunet3d.errors import ConfigError
from attunet3d.many import address_file, local_cluster
from attunet3d.many.address_file import read_address_file
from attunet3d.many.cluster import connected
from attunet3d.many.local_cluster import set_token

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

ASK = """
import os, sys
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
from ray.exceptions import AuthenticationError
for mode, token in (("disabled", ""), ("token", "0" * 64), ("token", open(sys.argv[2]).read())):
    os.environ.update(RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None)
        print("let in")
    except AuthenticationError:
        print("refused")
"""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return ((isinstance(parsed, IPv6Address) and parsed.ipv4_mapped) or parsed).is_loopback


def test_a_local_cluster_is_reached_from_this_machine_by_this_user_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All its sockets, its token, its folder; and nothing is left behind."""
    import psutil

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    before = dict(os.environ)
    with connected("local"):
        worker, modules = ray.get(ray.remote(lambda: (os.getpid(), sys.path)).remote())
        assert worker != os.getpid()
        assert str(tmp_path) not in modules  # where the user stands there may be images, and anything else
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets, words = [], []
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # some are there for a moment
                words += process.cmdline()
                found = process.net_connections("tcp")
                sockets += [(process.name(), one.laddr.ip) for one in found if one.status == psutil.CONN_LISTEN]
        assert {"gcs_server", "raylet"} < {name for name, _ in sockets}
        assert [one for one in sockets if not is_loopback(one[1])] == []

        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        token, folder = path.read_text(), path.parent
        assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)
        assert len(token) == 64
        files = [file for file in folder.rglob("*") if file.is_file() and file != path]
        assert "gcs_server.out" in {file.name for file in files}
        assert not any(token in file.read_text(errors="replace") for file in files)
        assert not any(token in word for word in words)
        gcs = ray.get_runtime_context().gcs_address
        asked = [sys.executable, "-c", ASK, gcs, path]
        answers = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=HANG).stdout.split("\n")
        assert answers == ["refused", "refused", "let in", ""]
    assert not folder.exists()
    assert dict(os.environ) == before
    assert psutil.wait_procs(processes[1:], timeout=HANG)[1] == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``ray.init`` is asked for; it finds no cluster, and starts none."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        calls.append(options | {"mode": os.environ.get("RAY_AUTH_MODE")})
        if options["address"] != "local":
            raise ConnectionError("nobody there")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    return calls


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def note(listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a cluster that has been started here, and that listens."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    path = tmp_path / "ray" / "ray_current_cluster"
    path.parent.mkdir()
    path.write_text(f"127.0.0.1:{listener.getsockname()[1]}")
    path.chmod(0o644)
    return path


def joined(asked: list[dict[str, Any]], address: str = "auto") -> list[str]:
    asked.clear()
    with connected(address):
        pass
    return [call["address"] for call in asked]


def test_workers_look_for_modules_where_this_process_does(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "known")
    joined(asked, "local")
    places = asked[0]["job_config"]._py_driver_sys_path
    places.extend([str(tmp_path / "known"), str(tmp_path)])
    assert places == [str(tmp_path / "known")]


def test_the_cluster_of_this_user_is_joined(note: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert joined(asked) == [note.read_text(), "local"]
    assert asked[0]["mode"] is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("1" * 64)
    assert joined(asked) == [note.read_text(), "local"]
    assert asked[0]["mode"] == "token"
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize(
    "how", ["owner", "link", "writable", "group", "members", "listener", "silent", "torn", "far", "pipe"]
)
def test_what_another_user_can_have_noted_is_not_joined(
    note: Path, listener: socket.socket, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "owner":
        other = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: other)
        monkeypatch.setattr(address_file, "_answers", lambda host, port: True)
    elif how == "link":
        note.rename(note.with_name("other"))
        note.symlink_to("other")
    elif how == "writable":
        note.chmod(0o666)
    elif how in ("group", "members"):
        user = pwd.getpwuid(os.getuid()).pw_name
        group = ("staff", []) if how == "group" else (user, [user, "other"])
        monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=group[0], gr_mem=group[1]))
        note.chmod(0o664)
    elif how == "listener":
        monkeypatch.setattr(address_file, "_listeners", lambda port: {os.getuid(), os.getuid() + 1})
    elif how == "silent":
        listener.close()
    elif how == "torn":
        note.write_bytes(b"127.0.0.1:\xff")
    elif how == "far":
        note.write_text("127.0.0.1:99999999999")
        monkeypatch.setattr(address_file, "_is_here", lambda host: False)
    else:
        note.unlink()
        os.mkfifo(note)
    assert read_address_file() is None
    assert joined(asked) == ["local"]


def test_a_group_that_is_the_users_alone_may_write_the_note(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=user, gr_mem=[]))
    note.chmod(0o664)
    assert read_address_file() == note.read_text()


def test_the_users_who_listen_on_a_port(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert address_file._listeners(port) == {os.getuid()}
    listener.close()
    assert address_file._listeners(port) == set()


def test_a_cluster_that_is_named_is_joined_whoever_runs_it(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, variable in (("10.0.0.1:6379", None), ("auto", "10.0.0.1:6379")):
        if variable:
            monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(ConfigError, match=f"address {address}: .*nobody there"):
            joined(asked, address)
        assert [call["address"] for call in asked] == ["10.0.0.1:6379"]
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert joined(asked) == ["local"]
    assert asked[0]["mode"] == "token"
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379"])
def test_a_cluster_that_wants_another_token(note: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def refused(**options: Any) -> None:
        raise ConnectionError("Failed to connect") from RuntimeError("RPC error: InvalidAuthToken")

    monkeypatch.setattr("ray.init", refused)
    with pytest.raises(ConfigError, match="requires another token: set RAY_AUTH_MODE=token"):
        joined([], address)


def test_what_is_set_of_authentication_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    before = dict(os.environ)
    set_token(tmp_path)
    assert dict(os.environ) == before
    monkeypatch.delenv("RAY_AUTH_MODE")
    set_token(tmp_path)
    assert dict(os.environ) == before | {"RAY_AUTH_MODE": "token"}
    assert list(tmp_path.iterdir()) == []


def test_where_it_would_listen_elsewhere_it_does_not_run(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.0.0.1")
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=r"would listen on 10\.0\.0\.1"):
        joined(asked, "local")
    assert dict(os.environ) == before
    assert not Path(asked[0]["_temp_dir"]).parent.exists()


def test_on_windows_only_a_cluster_that_is_named_is_joined(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there says whose a cluster is."""
    assert address_file.read_address_file() is not None
    monkeypatch.delattr(os, "getuid")
    assert address_file.read_address_file() is None


def test_on_windows_temporary_files_are_where_they_are_wanted(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("deep" * 20)))
    monkeypatch.setattr(local_cluster.sys, "platform", "win32")
    with local_cluster._private_folder() as folder:
        assert Path(folder).parent == tmp_path / ("deep" * 20)


def test_a_folder_that_is_too_deep_for_sockets_or_no_path_for_ray(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("deep" * 20)
    odd = [Path(f"/none{text}") for text in ("'", '"', "\\", "é")]
    for wanted, where in ((deep, "/tmp"), (Path("/var/tmp/"), "/var/tmp"), *((path, "/tmp") for path in odd)):
        monkeypatch.setenv("RAY_TMPDIR", str(wanted))
        joined(asked, "local")
        assert asked[0]["_temp_dir"].startswith(f"{where}/attunet3d-")
    assert not any(path.exists() for path in (deep, *odd))


def test_a_node_that_does_not_start_is_an_error_of_one_line(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=r"address local: .*timed out during startup"):
        joined(asked, "local")
    assert dict(os.environ) == before
