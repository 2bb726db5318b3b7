"""What the verbs share: their common options, products on stdout, log and progress on stderr, and early refusals."""

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
from attunet3d.io.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

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
        help="Let presets and --set run code, which can be any program: only for those that you trust as your own.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
AllowUneven = Annotated[
    bool, typer.Option("--allow-uneven", help="Interpolate DICOM slices that are missing or at uneven distances.")
]
AllowSmallerWindows = Annotated[
    bool,
    typer.Option(
        "--allow-smaller-windows",
        help="Where memory is short: a mask of smaller windows, which is another, in place of none.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log and the libraries' warnings.")]
DatasetDir = Annotated[Path, typer.Option(help="Folder that the datalist's paths are relative to.")]
Datalist = Annotated[Path, typer.Option(help='MONAI datalist JSON with "training" and "validation".')]


@contextmanager
def products() -> Iterator[Callable[[object], None]]:
    """Keep stdout for products: what libraries print there (MONAI's loggers do) goes to stderr meanwhile.

    A product is a path, JSON or a table. Paths are exact, as `refuse_unprintable` has seen to; a table, or a path in a
    locale that lacks one of its characters, has escapes for what cannot be shown.
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
                if sys.platform == "win32" and error.errno == errno.EINVAL:  # so it says that the reader went away
                    raise BrokenPipeError from error
                raise OutputError(f"stdout: cannot be written ({error.strerror})") from error

        yield product


@contextmanager
def progress_bar() -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """A progress bar on stderr that vanishes when done, and what prints a line above it."""
    from attunet3d.console import make_bar, say_above

    bar, console = make_bar()
    with bar:
        yield bar, partial(say_above, console)


def overrides_of(pairs: list[str] | None, taken: tuple[str, ...], **switches: bool) -> dict[str, Any]:
    """``["overlap=0.5"]`` -> ``{"overlap": 0.5}``, see `override`.

    ``taken`` and ``switches`` are ids that have an option of their own; switches that are on are among the values.
    What is no id could be another argument of what the values are given to.
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
    """Before hours of work: a product's path is printed as it is, so it must be one line that no terminal acts on."""
    if printable(str(path)) != str(path):
        raise OutputError(
            f"{printable(str(path))}: a result of this name cannot be printed on one line as it is (escapes stand for "
            "line breaks, control characters, marks of direction and what is no text); rename the input, or the folder "
            "of the output"
        )


def refuse_bad_folder(path: Path) -> None:
    """Before hours of work: the output folder must be one that can be written to, and that `refuse_unprintable` takes.

    It is only made when needed.
    """
    refuse_unprintable(path)
    folder = path.absolute()
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder; choose another output folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {folder}; choose another output folder")
