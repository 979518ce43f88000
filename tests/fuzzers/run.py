"""Feed one target for a time: inputs by number from the seed, each bounded in time, memory watched."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import FrameType

from tests.fuzz import resident_bytes
from tests.fuzzers.target import Target

MOST_FINDINGS = 10
HANG_S = 30.0
"""An input that takes longer is a finding: nothing a parser is given may keep it so long, however busy the machine."""
MOST_GROWTH_BYTES = 64 << 20
_WARM = 0.3
"""The part of the time after which memory is to stay as it is."""


class Hang(BaseException):
    """An input took too long. No Exception, so that no parser takes it for its own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An input, and what came of it."""

    number: int
    given: bytes
    trace: str


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def run(target: Target, seed: int, seconds: float, most: int | None = None) -> Outcome:
    """Feed a target for a time, and at least one input, at most so many; a cause that was found already is not told again."""
    outcome = Outcome(target.name)
    causes: set[str] = set()
    began_s, floor_bytes, number = time.monotonic(), 0, 0
    with target:
        while not number or (time.monotonic() - began_s < seconds and number != most):
            given = target.make(Random(f"{seed} {target.name} {number}"))
            finding = _fed(target, given, number)
            if finding is not None and (cause := _cause(finding.trace)) not in causes:
                causes.add(cause)
                outcome.findings.append(finding)
                if len(outcome.findings) == MOST_FINDINGS:
                    break
            number += 1
            outcome.inputs += target.feeds()
            if not floor_bytes and time.monotonic() - began_s > seconds * _WARM:
                floor_bytes = resident_bytes()
        grown = resident_bytes() - floor_bytes if floor_bytes else 0
        if grown > MOST_GROWTH_BYTES:
            outcome.findings.append(Finding(number - 1, b"", f"memory grew by {grown} bytes in {number} inputs"))
    outcome.seconds = time.monotonic() - began_s
    return outcome


def replay(target: Target, given: bytes) -> Finding | None:
    """Feed one input."""
    with target:
        return _fed(target, given, 0)


def _fed(target: Target, given: bytes, number: int) -> Finding | None:
    try:
        with _watched():
            target.feed(given)
    except (Exception, Hang):  # noqa: BLE001 - whatever it is, it is what is looked for
        return Finding(number, given, traceback.format_exc(limit=-8))
    return None


def _cause(trace: str) -> str:
    """Return where and as what it was raised: the last place, and the kind of exception without what it says of the input."""
    places = [line for line in trace.splitlines() if line.startswith("  File ")]
    return f"{places[-1] if places else ''} {trace.splitlines()[-1].partition(':')[0]}"


@contextmanager
def _watched() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end after {HANG_S:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
