"""``attunet3d label``: serve the bundle with MONAI Label."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.cli.options import AllowCode, Overrides, Presets, overrides_of, products, refuse_bad_folder
from attunet3d.console import log_to_stderr
from attunet3d.io.printable import say


@app.command()
def label(
    studies: Annotated[str, typer.Argument(help="Folder of NIfTI files, or the URL of a DICOMweb server.")],
    folder: Annotated[
        Path, typer.Option("--app", metavar="DIR", help="Folder of the server's app, with its own copy of the bundle.")
    ] = Path("label_app"),
    checkpoint: Annotated[
        Path | None, options.checkpoint("Initial weights; default: those in the app's folder, or else the bundle's.")
    ] = None,
    presets: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    allow_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Further host name or address, with or without port, of the server; repeatable.",
        ),
    ] = None,
    allow_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="URL",
            help="Further origin whose pages may use the server, such as another OHIF; repeatable.",
        ),
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Accept requests without a token.")] = False,
    epistemic: Annotated[
        bool,
        typer.Option("--epistemic", help="Keep scoring unlabelled cases by uncertainty, in the background."),
    ] = False,
) -> None:
    """Serve the bundle with MONAI Label, for 3D Slicer and OHIF; prints the URL, which contains a token.

    The server segments, saves corrected labels, trains on them, and chooses the next case. It needs no internet access.
    Each start rewrites the app's configs with the given presets and values, and keeps its trained weights.

    Example: attunet3d label cts --app label_app
    """
    from attunet3d.label.access import access_of
    from attunet3d.label.folder import make_app
    from attunet3d.label.server import address, check_address, check_studies, is_loopback, serve

    source = check_studies(studies)
    if not source.startswith("http"):
        refuse_bad_folder(Path(source))  # labels are saved there
    refuse_bad_folder(folder)
    check_address(host, port)
    access = access_of(host, port, allow_hosts or (), allow_origins or (), token=not no_token)
    log_to_stderr(logging.INFO)
    make_app(folder, checkpoint, presets or (), overrides_of(set_, ("bundle_root", "ckpt_dir")), allow_code)
    if not is_loopback(host):
        say(
            f"warning: {host} can be reached from other machines (by further names with --allow-host), and traffic is "
            "not encrypted: an eavesdropper can read the images, the labels and the token"
        )
    if no_token:
        say(
            "warning: no token: everyone who can reach the server, and each user of this machine, can see, change and "
            "delete images and labels"
        )
    with products() as product:
        product(f"{address(host, port)}/{access.token}/" if access.token else f"{address(host, port)}/")
        serve(folder.resolve(), source, host, port, access, epistemic)
