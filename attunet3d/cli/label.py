"""The verb that serves the bundle to annotators."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from attunet3d.cli.app import app
from attunet3d.cli.options import AllowCode, Overrides, Presets, overrides_of, products, refuse_bad_folder
from attunet3d.console import log_to_stderr
from attunet3d.io.printable import say


@app.command()
def label(
    studies: Annotated[str, typer.Argument(help="Folder of NIfTI files, or the URL of a DICOMweb server.")],
    folder: Annotated[
        Path, typer.Option("--app", metavar="DIR", help="The server's copy of the bundle, which training changes.")
    ] = Path("label_app"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights to start from; else those in the app's folder, else the bundle's.")
    ] = None,
    preset: Presets = None,
    set_: Overrides = None,
    allow_code: AllowCode = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or address, and port, by which else it is reached; repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Where pages come from that may use it too, as another OHIF; repeatable."),
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let in whoever reaches it, without the token.")] = False,
    epistemic: Annotated[
        bool,
        typer.Option(
            "--epistemic",
            help="Score cases without a label by the network's uncertainty in the background, all the time.",
        ),
    ] = False,
) -> None:
    """Serve the bundle with MONAI Label, for 3D Slicer and OHIF; prints the URL, with a token in it.

    It segments, saves corrected labels, trains on them, and chooses the next case. It needs no network. Every start
    writes the app's configs anew, with the presets and values given; what was learned stays.

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
    access = access_of(host, port, allow_host or (), allow_origin or (), token=not no_token)
    log_to_stderr(logging.INFO)
    make_app(folder, checkpoint, preset or (), overrides_of(set_, ("bundle_root", "ckpt_dir")), allow_code)
    if not is_loopback(host):
        say(
            f"warning: {host} can be reached from other machines (by other names than that with --allow-host), "
            "and nothing is encrypted: who reads along has the images, the labels and the token"
        )
    if no_token:
        say(
            "warning: whoever reaches the server, and each user of this machine, can see, change and delete images "
            "and labels"
        )
    with products() as product:
        product(f"{address(host, port)}/{access.token}/" if access.token else f"{address(host, port)}/")
        serve(folder.resolve(), source, host, port, access, epistemic)
