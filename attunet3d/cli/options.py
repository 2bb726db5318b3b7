"""What the verbs share: their common options, products on stdout, the progress bar on stderr, and early refusals."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from attunet3d.errors import ConfigError, OutputError

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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
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
    """Keep stdout for products: what libraries print there (MONAI's loggers do) goes to stderr meanwhile."""
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):

        def product(value: object) -> None:
            try:
                try:
                    print(value, file=stdout, flush=True)
                except UnicodeEncodeError:  # in a locale that lacks a character, or of a name that is no text
                    shown = str(value).encode(stdout.encoding, "backslashreplace").decode(stdout.encoding)
                    print(shown, file=stdout, flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"stdout: cannot be written ({error.strerror})") from error

        yield product


def set_up_logging(verbose: bool, progress: bool = False) -> None:
    """Log to stderr: all with ``verbose``; else errors, and with ``progress`` how far this package has come."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.ERROR,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    import pydicom.config  # which sets the level of its log: not after it has been set here

    # Their messages quote values of headers, which can be a patient's.
    for logger in (pydicom.config.logger, logging.getLogger("highdicom")):
        logger.setLevel(logging.CRITICAL)
    if verbose:
        warnings.filterwarnings("ignore", module="pydicom")
        # Of a decoder that is not used here.
        warnings.filterwarnings("ignore", message="NvImgCodec")
        return
    warnings.simplefilter("ignore")
    # It logs what is raised, and that is said on one line when it arrives.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    if progress:
        logging.getLogger("attunet3d").setLevel(logging.INFO)


@contextmanager
def progress_bar() -> Iterator[tuple[Any, Any]]:
    """A progress bar on stderr that vanishes when done, and the console to write beside it."""
    from attunet3d.progress import make_bar

    bar, console = make_bar()
    with bar:
        yield bar, console


def overrides_of(pairs: list[str] | None, taken: tuple[str, ...], **switches: bool) -> dict[str, Any]:
    """``["overlap=0.5"]`` -> ``{"overlap": 0.5}``, see `override`.

    ``taken`` and ``switches`` are ids that have an option of their own; switches that are on are among the values.
    What is no id could be another argument of what the values are given to.
    """
    from attunet3d.cli.values import override
    from attunet3d.config import refuse_unknown

    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, value = override(pair)
        if key in taken or key in switches:
            raise ConfigError(f"--set {pair!r}: {key} has an option of its own, see --help")
        refuse_unknown(key)
        values[key] = value
    return values | {name: True for name, on in switches.items() if on}


def refuse_bad_folder(path: Path) -> None:
    """Before hours of work: the output folder must be one that can be written to. It is only made when needed."""
    folder = path.absolute()
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder; choose another output folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {folder}; choose another output folder")
