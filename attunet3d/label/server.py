"""Run MONAI Label's server with the bundle in this process."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from attunet3d.config.files import BUNDLE
from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.label.access import TOKEN_VARIABLE, Access, Guard
from attunet3d.label.checks import check_index


def serve(app: Path, studies: str, host: str, port: int, access: Access, epistemic: bool = False) -> None:
    """Serve the app of ``make_app`` until the process is stopped.

    Args:
        app: its folder; logs, and for DICOMweb a copy of the series that were opened, are kept there too.
        studies: as returned by ``check_studies``.
        host, port: where to listen.
        access: which requests to accept.
        epistemic: score unlabelled cases by the network's uncertainty in the background, at the start and after each
            training; else only on request (``POST /scoring/``).
    """
    with tempfile.TemporaryDirectory(prefix="attunet3d-", ignore_cleanup_errors=True) as folder:
        before = os.getcwd()
        _work_in(folder, app)
        try:
            _serve(app, studies, host, port, access, epistemic)
        finally:
            os.chdir(before)  # Windows cannot remove a working directory


def _work_in(folder: str, app: Path) -> None:
    """Use a folder that only this user can read as working and temporary directory, of child processes too.

    MONAI Label leaves uploaded images of patients in the temporary directory. Its training runs ``python -m``, which
    would import Python files from the user's working directory, possibly that of the studies.
    """
    for name, place in (("MONAI_LABEL_DICOMWEB_CACHE_PATH", "dicom"), ("MONAI_LABEL_SESSION_PATH", "sessions")):
        os.environ[name] = os.path.abspath(os.environ.get(name, app / place))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    tempfile.tempdir = folder
    os.environ.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder))  # Windows uses the last two
    os.chdir(folder)


def _serve(app: Path, studies: str, host: str, port: int, access: Access, epistemic: bool) -> None:
    # Seconds for which lists of series and labels are cached: with the default of two hours, cases that have been
    # labelled since would be offered again.
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_CACHE_EXPIRY", "5")
    os.environ["MONAI_LABEL_AUTO_UPDATE_SCORING"] = str(epistemic).lower()
    os.environ.pop(TOKEN_VARIABLE, None)
    if epistemic and access.token is not None:
        os.environ[TOKEN_VARIABLE] = access.token  # for training processes, which request new scores
    # MONAI Label looks for dcmqi's programs on PATH, and downloads them if they are not found.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    from attunet3d.label.torchvision_ops import make_torchvision_importable

    make_torchvision_importable()
    from monailabel.main import Main
    from starlette.middleware.cors import CORSMiddleware

    from attunet3d.label.endpoints import labelling_app

    # Nothing may be downloaded from the model zoo.
    conf = {"models": BUNDLE, "zoo_source": "local", "sam2": "false", "epistemic_model": BUNDLE}
    conf["server"] = address(host, port)
    server = Main()
    words = ["start_server", "--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
    words += [word for key, value in conf.items() for word in ("--conf", key, value)]
    # After its shutdown uvicorn raises the signal again, whose default action would skip the cleanup.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    arguments = server.args_parser().parse_args(words)
    answering = CORSMiddleware(
        labelling_app(app, studies.startswith("http")),
        allow_origins=[*access.origins],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["content-disposition"],
    )
    arguments.uvicorn_app = Guard(answering, access)
    try:
        server.action_start_server(arguments)
    finally:
        _stop_children()


def _stop_children() -> None:
    """Stop training and scoring, whose processes would otherwise continue."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        child.terminate()
    for child in psutil.wait_procs(children, timeout=10)[1]:
        child.kill()


def check_studies(studies: str) -> str:
    """Check a folder of NIfTI files or the URL of a DICOMweb server, and return it as MONAI Label takes it.

    Raises:
        InputNotFoundError: the folder does not exist.
        ConfigError: the URL has no host, or contains a password; the folder's image list refers to files outside it.
    """
    if studies.startswith(("http://", "https://")):
        url = urlsplit(studies)
        if not url.hostname:
            raise ConfigError(f"{studies}: names no host; expected e.g. http://127.0.0.1:8042/dicom-web")
        if url.username or url.password:
            raise ConfigError(
                "the URL of the studies contains a user name or password, which logs would show: set "
                "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD in the environment"
            )
        return studies
    folder = Path(studies)
    if not folder.is_dir():
        raise InputNotFoundError(
            f"{studies}: no such folder; give one with NIfTI files, or the URL of a DICOMweb server"
        )
    if (index := folder / "datastore_v2.json").exists():
        check_index(index)
    return str(folder.resolve())


def address(host: str, port: int) -> str:
    """Return the URL of a server at an address, without a path."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_address(host: str, port: int) -> None:
    """Check that a server can listen at an address.

    Raises:
        ConfigError: the port is in use, or the address is not one of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if sys.platform != "win32":  # there it would allow a port in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "not a host name")
        raise ConfigError(
            f"{host}, port {port}: {reason}; choose another port or host", arguments=("port", "host")
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
