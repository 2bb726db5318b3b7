"""Python imports this when it starts, in the label server and in the processes that it starts: see fuzz_rest.py."""

import os
from pathlib import Path

from fuzz_audit import watch_server

if "FUZZ_LOG" in os.environ:
    watch_server(Path(os.environ["FUZZ_LOG"]), os.environ["FUZZ_ALLOWED"].split(os.pathsep), os.environ["FUZZ_SECRET"])
