"""The command line: products on stdout, one path per line; log and progress on stderr.

Exit codes: 0 done, 1 some cases failed, 2 the command cannot be carried out as given.
Heavy imports happen inside the verbs, so that ``attunet3d --help`` is immediate.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import redirect_stderr
from typing import Any, cast

import typer

from attunet3d.cli import inspect, label, many, prepare, score, segment, study, tools  # noqa: F401  (they add their verbs, in order)
from attunet3d.cli.app import app
from attunet3d.errors import AttUNet3dError
from attunet3d.io.printable import ForeignText, one_line, own, say

# Of the click that typer imports, or brings along.
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Entry point: an error of ours, or in the arguments, becomes one line on stderr and exit code 2."""
    with redirect_stderr(cast("Any", ForeignText(own(sys.stderr)))):
        sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except AttUNet3dError as error:
        say(f"error: {one_line(error)}")
        return 2
    except BrokenPipeError:
        # The reader of stdout went away, as `head` does.
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
