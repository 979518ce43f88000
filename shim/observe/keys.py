"""Single keys of a terminal, read without waiting for Enter; the terminal is as it was afterwards, whatever happens."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Any


class Keys:
    """A context manager. Where standard input is no terminal there are no keys, and waiting is all it does."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._before: list[Any] = []

    def __enter__(self) -> Keys:
        if self._fd >= 0:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd, termios.TCSADRAIN)  # Ctrl-C is a signal still
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def wait(self, timeout_s: float) -> str:
        """Return what was typed, as soon as something is; empty when nothing was for so long."""
        if self._fd < 0:
            time.sleep(timeout_s)
            return ""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, timeout_s))
        if not ready:
            return ""
        typed = os.read(self._fd, 64)
        if not typed:  # the terminal is gone
            return "q"
        return typed.decode(errors="ignore")
