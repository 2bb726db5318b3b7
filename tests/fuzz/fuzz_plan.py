"""Which cases there are: each number is one, of one kind and with one random generator, whoever works on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

# Of so many cases as these are together, how many are of each group.
MIX = {
    "images": 24,
    "labels": 6,
    "manifests": 12,
    "datalists": 12,
    "presets": 8,
    "set": 8,
    "weights": 10,
    "recipes": 12,
    "states": 8,
    "caches": 6,
    "records": 8,
    "tables": 6,
    "rest": 12,
}
_CYCLE = [group for group, share in MIX.items() for _ in range(share)]


@dataclass(frozen=True)
class Outcome:
    """Of one case: "good", an error's class, or in ``failure`` what must not happen."""

    case: int
    kind: str
    outcome: str
    failure: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0  # beyond what the process held before


def group_of(case: int) -> str:
    """What a case is of."""
    return _CYCLE[case % len(_CYCLE)]


def kind_of(case: int, kinds: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Group and kind of a case; a group's kinds come in turn."""
    group, place = group_of(case), case % len(_CYCLE)
    turn = case // len(_CYCLE) * MIX[group] + _CYCLE[:place].count(group)
    return group, kinds[group][turn % len(kinds[group])]


def rng_of(seed: int, case: int) -> np.random.Generator:
    """What a case is damaged with."""
    return np.random.default_rng([seed, case])


def numbers(cases: int, only: Sequence[str] = (), left_out: Sequence[str] = ()) -> list[int]:
    """So many cases: the first ones, of the groups ``only`` if there are any, and of none that is left out."""
    groups = {group for group in only or MIX if group not in left_out}
    return list(islice((case for case in count() if group_of(case) in groups), cases if groups else 0))


def table(outcomes: Sequence[Outcome]) -> str:
    """What became of the cases of each group, as a table for the docs, and the extremes."""
    failed = sum(bool(o.failure) for o in outcomes)
    lines = [f"{len(outcomes)} cases, {failed} faults", "", "| kind | cases | good | refused | faults | a second |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: |")
    for group in MIX:
        of = [o for o in outcomes if o.kind.split()[0] == group]
        if of:
            lines.append(_row(group, of))
    slowest, largest = max(outcomes, key=lambda o: o.seconds), max(outcomes, key=lambda o: o.peak_mb)
    lines += ["", f"slowest: case {slowest.case}, {slowest.seconds:.2f} s ({slowest.kind}, {slowest.outcome})"]
    lines += [f"most memory: case {largest.case}, {largest.peak_mb:.0f} MB more than before it ({largest.kind})"]
    return "\n".join(lines)


def _row(group: str, outcomes: Sequence[Outcome]) -> str:
    sound = [o.outcome for o in outcomes if not o.failure]
    errors = sorted({name for name in sound if name != "good"}, key=lambda name: (-sound.count(name), name))
    refused = ", ".join(f"{name} {sound.count(name)}" for name in errors)
    rate = len(outcomes) / max(sum(o.seconds for o in outcomes), 1e-9)
    faults = len(outcomes) - len(sound)
    return f"| {group} | {len(outcomes)} | {sound.count('good')} | {refused} | {faults} | {rate:.0f} |"
