"""What every sort of damaged input has in common: how one case is made, run, and judged."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fuzz_audit import Audit
from fuzz_inputs import PATIENT
from fuzz_mutations import Rng
from fuzz_values import MARKER


class Fault(Exception):
    """What a case came to must not be, although nothing was raised."""


class Target(Protocol):
    """One sort of input, whose kinds are called by it: "presets yaml", "presets json"."""

    kinds: Sequence[str]

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """Write a damaged input into a folder that is empty."""

    def run(self, kind: str, folder: Path) -> str:
        """Do with it what the program does, in the same folder; gives what is said of a good result.

        Raises AttUNet3dError where it is refused, ``Fault`` where what comes out is wrong.
        """


def judge(target: Target, kind: str, folder: Path, audit: Audit) -> tuple[str, str]:
    """Run one case: "good" or the class of the error, and what is wrong with that, if anything is."""
    from attunet3d.errors import AttUNet3dError
    from attunet3d.io.printable import one_line

    said, outcome, wrong = "", "good", []
    with audit.watching([folder]) as seen, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="NvImgCodec")  # of a decoder that is not used here
        try:
            said = target.run(kind, folder)
        except AttUNet3dError as error:
            outcome, said = type(error).__name__, one_line(error)
            if not said:
                wrong.append("an error that says nothing")
        except Fault as error:
            outcome, wrong = "wrong", [str(error)]
        except Exception as error:
            outcome, wrong = type(error).__name__, ["".join(traceback.format_exception(error, limit=-12))]
    wrong += [f"warning: {w.category.__name__}: {w.message} ({w.filename}:{w.lineno})" for w in warned]
    wrong += [f"does {what}" for what in seen]
    wrong += [f"quotes {name}: {said:.300}" for name, value in PATIENT.items() if value in said]
    if not said.isprintable():
        wrong.append(f"not printable: {said!r:.300}")
    if Path(MARKER).exists():
        wrong.append("a forged input was run")
        Path(MARKER).unlink()
    return outcome, "; ".join(wrong)
