"""Errors a user can act on: each message names what was found and what to do about it.

Messages name Python arguments and config ids. The command line prints them on one line, without a traceback, and adds
its options for the names in ``arguments``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_SENT = re.compile(r"^Original Traceback(?s:.*?)^attunet3d\.errors\.(\w+): (.*)$", re.MULTILINE)


class AttUNet3dError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: one line: what was found, and the remedy.
        arguments: Python arguments and config ids that would change the outcome.
    """

    def __init__(self, message: str = "", *, arguments: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.arguments = arguments


class InputNotFoundError(AttUNet3dError):
    """A path does not exist, or a folder contains nothing to read."""


class UnreadableInputError(AttUNet3dError):
    """A file exists but cannot be decoded: truncated, corrupt, or of an unknown format."""


class UnsupportedImageError(AttUNet3dError):
    """An image was decoded but is not a 3D CT volume: 4D, RGB, another modality, not in HU."""


class GeometryError(AttUNet3dError):
    """The position of an image in the patient is missing, contradictory, or not supported."""


class AmbiguousSeriesError(AttUNet3dError):
    """A folder contains several CT series and none was chosen."""


class CheckpointError(AttUNet3dError):
    """Network weights cannot be read, or belong to another network."""


class ConfigError(AttUNet3dError):
    """A preset, config id or argument does not exist or has an invalid value."""


class TrainingError(AttUNet3dError):
    """Training cannot continue: the loss is not finite, or a saved state does not fit."""


class OutputError(AttUNet3dError):
    """A result cannot be written."""


class MemoryLimitError(AttUNet3dError):
    """A CT needs more memory than is available."""


class CopyError(AttUNet3dError, TypeError):
    """A session cannot be copied or sent to another process."""


class CancelledError(AttUNet3dError):
    """The caller cancelled the work."""


class Notice(str):
    """A warning, or an error's message passed on as text, with ``arguments`` like an ``AttUNet3dError``."""

    arguments: tuple[str, ...]

    def __new__(cls, text: str, arguments: tuple[str, ...] = ()) -> Notice:
        """Create a text with arguments."""
        notice = super().__new__(cls, text)
        notice.arguments = arguments
        return notice


def own_error(error: BaseException) -> AttUNet3dError | None:
    """Find the error of this package that caused another: MONAI wraps what transforms and components raise."""
    cause: BaseException | None = error
    while cause is not None:
        # A data loader's worker sends an error as text: a traceback that ends with its name and message.
        if sent := _SENT.search(str(cause)):
            kinds = {kind.__name__: kind for kind in AttUNet3dError.__subclasses__()}
            return kinds.get(sent[1], AttUNet3dError)(sent[2])
        if isinstance(cause, AttUNet3dError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def only_own_error() -> Iterator[None]:
    """Replace an exception by the error of this package that caused it, if any."""
    try:
        yield
    except Exception as error:
        own = own_error(error)
        if own is None:
            raise
        raise own from None
