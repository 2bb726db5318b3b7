"""The command line: results on stdout, one path per line; log and progress on stderr.

Exit codes: 0 success, 1 some cases failed, 2 the command cannot be run as given.
Heavy imports are inside the verbs, to keep ``attunet3d --help`` fast.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import redirect_stderr
from typing import Any, cast

import typer

from attunet3d.cli import inspect, label, many, prepare, score, segment, study, tools  # noqa: F401  (importing them adds their verbs, in order)
from attunet3d.cli.app import app
from attunet3d.errors import AttUNet3dError
from attunet3d.io.printable import ForeignText, one_line, own, say

# From click, or from the copy of it inside typer.
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the program; errors of this package or in the arguments become one line on stderr and exit code 2."""
    with redirect_stderr(cast("Any", ForeignText(own(sys.stderr)))):
        sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except AttUNet3dError as error:
        say(f"error: {one_line(error)}")
        return 2
    except BrokenPipeError:
        # The reader closed stdout, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _ClickError as error:
        return _usage(error)
    except typer.Abort:
        say("interrupted")
        return 130
    except Exception as error:
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        say(f"error: unexpected {type(error).__name__}: {one_line(error)}")
        return 1


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "attunet3d"
        say(f"error: {one_line(error.format_message())} See: {command} --help")
    return int(error.exit_code)
