"""Code shared by verbs: options, results on stdout, progress on stderr, and checks of output paths.

Parameters have the names of the Python arguments that they set, so that errors can name their option, see ``verbs``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attunet3d.errors import ConfigError, OutputError
from attunet3d.io.output_formats import FOR_ANY_CT, FOR_DICOM
from attunet3d.io.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress


def output(help: str, metavar: str | None = None) -> Any:
    """Declare the option for the output of a verb."""
    return typer.Option("--output", "-o", metavar=metavar, help=help)


def checkpoint(help: str) -> Any:
    """Declare the option for weights."""
    return typer.Option("--checkpoint", help=help)


def output_format(help: str) -> Any:
    """Declare the option for the format of the output."""
    return typer.Option("--format", help=help)


def memory(help: str) -> Any:
    """Declare the option for a memory limit."""
    return typer.Option("--memory", metavar="GB", min=0.1, help=help)


# The network and its config
Checkpoint = Annotated[Path | None, checkpoint("Weights; default: the bundle's own.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Presets = Annotated[
    list[str] | None, typer.Option("--preset", "-c", metavar="PRESET", help="Preset name or YAML file; repeatable.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="ID=VALUE", help="Override one id of the bundle's config; repeatable."),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Let presets and --set run code, which can be any program: only if you trust their author.",
    ),
]
# Reading CTs, and the results of each
AllowUneven = Annotated[
    bool, typer.Option("--allow-uneven", help="Interpolate DICOM slices that are missing or unevenly spaced.")
]
AllowSmallerWindows = Annotated[
    bool,
    typer.Option(
        "--allow-smaller-windows",
        help="Use smaller windows if memory is short, instead of refusing the CT; this changes the mask.",
    ),
]
MaskFormat = Annotated[
    str,
    output_format(f"Format of masks: {', '.join(FOR_ANY_CT)}; for CTs in DICOM folders also {', '.join(FOR_DICOM)}."),
]
QC = Annotated[bool, typer.Option("--qc", help="Also write a picture of each mask over its CT.")]
NoUids = Annotated[
    bool,
    typer.Option("--no-uids", help="No DICOM UIDs in records, tables and messages. A DICOM SEG contains UIDs anyway."),
]
# Data sets
DatasetDir = Annotated[Path, typer.Option(help="Folder that the datalist's paths are relative to.")]
Datalist = Annotated[Path, typer.Option(help='MONAI datalist JSON with "training" and "validation".')]
Seed = Annotated[int, typer.Option(min=0, help="Random seed: the same seed gives the same result.")]

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log and the warnings of libraries.")]


@contextmanager
def products() -> Iterator[Callable[[object], None]]:
    """Reserve stdout for results: what libraries print there (MONAI's loggers do) goes to stderr.

    A result is a path, JSON or a table. Paths are printed exactly, as ``refuse_unprintable`` has checked them; tables,
    and paths that the locale's encoding cannot represent, have escapes for what cannot be printed.

    Yields:
        A function that prints a result.
    """
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):

        def product(value: object) -> None:
            lines = "\n".join(map(printable, str(value).split("\n") if isinstance(value, str) else [str(value)]))
            shown = lines.encode(stdout.encoding or "utf-8", "backslashreplace").decode(stdout.encoding or "utf-8")
            try:
                print(shown, file=stdout, flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                if sys.platform == "win32" and error.errno == errno.EINVAL:  # Windows' error for a closed pipe
                    raise BrokenPipeError from error
                raise OutputError(f"stdout: cannot be written ({error.strerror})") from error

        yield product


@contextmanager
def progress_bar() -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """Show a progress bar on stderr, which disappears when done.

    Yields:
        The bar, and a function that prints a line above it.
    """
    from attunet3d.console import make_bar, say_above

    bar, console = make_bar()
    with bar:
        yield bar, partial(say_above, console)


def overrides_of(pairs: list[str] | None, taken: tuple[str, ...], **switches: bool) -> dict[str, Any]:
    """Parse ``["overlap=0.5"]`` to ``{"overlap": 0.5}``, see ``override``.

    Unknown ids are refused here, as they could be other arguments of the function that gets the values.

    Args:
        pairs: values of ``--set``.
        taken: ids that have an option of their own.
        switches: likewise, with the value of their option; those that are on are added to the result.

    Raises:
        ConfigError: an id does not exist or has an option of its own, or a value does not fit.
    """
    from attunet3d.cli.values import override
    from attunet3d.config.files import refuse_unknown

    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, value = override(pair)
        if key in taken or key in switches:
            raise ConfigError(f"--set {pair!r}: {key} has an option of its own, see --help")
        refuse_unknown(key)
        values[key] = value
    return values | {name: True for name, on in switches.items() if on}


def refuse_unprintable(path: Path) -> None:
    """Check, before hours of work, that the path of a result can be printed: as one line without control characters.

    Raises:
        OutputError: it cannot.
    """
    if printable(str(path)) != str(path):
        raise OutputError(
            f"{printable(str(path))}: a result of this name cannot be printed on one line as it is (shown here with "
            "escapes for line breaks, control characters, direction marks and invalid bytes); rename the input or the "
            "output folder"
        )


def refuse_bad_folder(path: Path) -> None:
    """Check, before hours of work, that an output folder is writable and printable; it is not created yet.

    Raises:
        OutputError: it is not.
    """
    refuse_unprintable(path)
    folder = path.absolute()
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder; choose another output folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {folder}; choose another output folder")
