"""What was done, and what was found wrong: on the screen, in a file, and in memory for the end."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

SHOWN_OF_A_KIND = 5
_LAST_ACTIONS = 50


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold."""

    at_s: float
    invariant: str
    text: str


class Log:
    """Thread-safe. Times are seconds since it was made, or since `begin`."""

    def __init__(self, path: Path, quiet: bool = False) -> None:
        self.path = path
        self.violations: list[Violation] = []
        self.broken: Counter[str] = Counter()
        """How often each invariant did not hold."""
        self.last: deque[str] = deque(maxlen=_LAST_ACTIONS)
        self._quiet = quiet
        self.began_s = time.monotonic()
        self._lock = threading.Lock()
        self._file = path.open("w")

    def begin(self) -> None:
        self.began_s = time.monotonic()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def say(self, text: str, *, action: bool = False) -> None:
        with self._lock:
            line = f"{self.now_s:7.2f}  {text}"
            if action:
                self.last.append(line)
            self._file.write(line + "\n")
            self._file.flush()
            if not self._quiet:
                print(line, flush=True)

    def complain(self, invariant: str, text: str) -> None:
        """Note that an invariant does not hold."""
        with self._lock:
            self.broken[invariant] += 1
            first = self.broken[invariant] <= SHOWN_OF_A_KIND
            if first:
                self.violations.append(Violation(self.now_s, invariant, text))
        if first:
            self.say(f"BROKEN  {invariant}: {text}")

    def close(self) -> None:
        self._file.close()
