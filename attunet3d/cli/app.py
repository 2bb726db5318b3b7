"""The program ``attunet3d``, to which the other modules here add their verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from attunet3d.cli.options import products
from attunet3d.cli.verbs import Program
from attunet3d.version import __version__

app = Program(
    name="attunet3d",
    help="Pancreas segmentation in CT with a 3D Attention U-Net. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        with products() as product:
            product(__version__)
        raise typer.Exit
