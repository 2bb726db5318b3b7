"""Start a Ray cluster on this machine: on the loopback interface, with a token, in a private folder."""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
import secrets
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 100_000_000  # only records travel; the default is a third of the memory
# Bytes that the path of a Unix socket leaves for the folder of temporary files.
_MOST = (107 if sys.platform == "linux" else 103) - len(
    "/attunet3d-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
)

_PLAIN = re.compile(r"[\w :./+~-]+", re.ASCII)


def start_local_cluster(stack: ExitStack, **options: Any) -> None:
    """Start a local cluster. It changes environment variables, which the caller restores by ``restore_environment``.

    Args:
        stack: gets callbacks that stop the cluster.
        options: of ``ray.init``.

    Raises:
        OSError, RuntimeError: the cluster does not start, or not on the loopback interface.
    """
    import ray

    folder = Path(stack.enter_context(_private_folder()))  # Ray makes its own folder accessible to all users
    _keep_to_loopback(stack)
    set_token(folder)
    read_authentication()
    stack.callback(ray.shutdown)  # before the folder goes
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address=_LOOPBACK,
        _temp_dir=str(folder / "r"),
        **options,
    )
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        raise RuntimeError(f"Ray {ray.__version__} would listen on {address}, not on the loopback interface only")


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder of mode 0700, in /tmp if the usual path does not suit Ray.

    The path must be short enough for Unix sockets, without quotes, backslashes or non-ASCII letters.
    """
    wanted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    fits = len(str(wanted)) <= _MOST and _PLAIN.fullmatch(wanted.as_posix())
    # On Windows Ray has no such sockets, and each user has a folder for temporary files.
    parent = wanted if fits or sys.platform == "win32" else Path("/tmp")
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="attunet3d-", dir=parent, ignore_cleanup_errors=True)


def _keep_to_loopback(stack: ExitStack) -> None:
    """Have Ray take 127.0.0.1 for this node, as it does on macOS and Windows.

    Elsewhere it replaces it by the machine's own address, and then listens on all interfaces.
    """
    from ray._private import ray_constants

    stack.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
    ray_constants.ENABLE_RAY_CLUSTER = False  # set when Ray was imported
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for its processes


def set_token(folder: Path) -> None:
    """Request token authentication, with a random token in ``folder``, unless the environment sets either."""
    if not os.environ.get("RAY_AUTH_MODE"):
        os.environ["RAY_AUTH_MODE"] = "token"
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        path = folder / "token"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def use_token_of_user() -> None:
    """Request token authentication if the user has a token, as Ray does for a cluster that it finds by itself."""
    if not os.environ.get("RAY_AUTH_MODE") and _raylet().AuthenticationTokenLoader.instance().has_token(
        ignore_auth_mode=True
    ):
        os.environ["RAY_AUTH_MODE"] = "token"
        read_authentication()


def read_authentication() -> None:
    """Have Ray read the mode of authentication and the token from the environment again."""
    raylet = _raylet()
    raylet.Config.initialize("")  # first: without a token, a thread that is still at work would abort the process
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _raylet() -> Any:
    """Import Ray's compiled module, which has no types."""
    return importlib.import_module("ray._raylet")


def ray_environment() -> dict[str, str]:
    """Return the environment variables that are Ray's, or that it sets."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"}


def restore_environment(environment: dict[str, str]) -> None:
    """Undo changes of ``ray_environment``, made here or by Ray."""
    for name in ray_environment().keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    read_authentication()
