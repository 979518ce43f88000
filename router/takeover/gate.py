"""Whether this router may change anything: not while a successor takes over from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from router.errors import Kind, Refusal


class Gate:
    """Every change passes through it, while it is open. Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self.closed = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Change something. Raise Refusal(UNAVAILABLE) while it is closed."""
        with self._condition:
            if self.closed:
                raise Refusal(Kind.UNAVAILABLE, "a successor is taking over; try again")
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    def close(self, timeout_s: float) -> None:
        """Let nobody in, and wait for those inside. Raise Refusal(UNAVAILABLE) when they take longer; it is closed then too."""
        with self._condition:
            self.closed = True
            if not self._condition.wait_for(lambda: not self._inside, timeout_s):
                raise Refusal(Kind.UNAVAILABLE, f"{self._inside} changes did not end within {timeout_s:.0f} s")

    def open(self) -> None:
        """Let everybody in again."""
        with self._condition:
            self.closed = False
