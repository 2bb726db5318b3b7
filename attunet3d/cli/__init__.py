"""The command line: products on stdout, one path per line; log and progress on stderr.

Exit codes: 0 done, 1 some cases failed, 2 the command cannot be carried out as given.
Heavy imports happen inside the verbs, so that ``attunet3d --help`` is immediate.
"""

from __future__ import annotations

import os
import sys

from attunet3d.cli import inspect, label, many, prepare, score, segment, study, tools  # noqa: F401  (they add their verbs, in order)
from attunet3d.cli.app import app
from attunet3d.errors import AttUNet3dError
from attunet3d.io.printable import one_line


def main() -> None:
    """Entry point: an error of ours becomes one line on stderr and exit code 2."""
    try:
        app()
    except AttUNet3dError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of stdout went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
