"""A process that is known for sure: pid and start time, so that a recycled pid is never taken for it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid and when its process started, in clock ticks since boot (proc(5), /proc/PID/stat field 22)."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return who has that pid now, or None. A zombie has ended."""
        try:
            # The name, field 2, is in parentheses and may hold any byte: count from the last of them.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in b"ZX" else cls(pid, int(fields[19]))

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """Read what `str` writes; None for anything else, as a crash in the middle of writing leaves."""
        try:
            pid, start_ticks = map(int, text.split())
        except ValueError:
            return None
        return cls(pid, start_ticks)

    def __str__(self) -> str:
        return f"{self.pid} {self.start_ticks}"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return ProcessId.of(self.pid) == self

    @property
    def stopped(self) -> bool:
        """Whether it is there, but a signal has stopped it (SIGSTOP)."""
        try:
            return self.alive and Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
        except OSError:
            return False

    def open(self) -> int | None:
        """Return a pidfd that can only mean this process, or None when it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.alive:  # looked at after the fd is held: from now on the pid cannot be given to another
            return fd
        os.close(fd)
        return None


def send(process: ProcessId, number: signal.Signals) -> None:
    """Send a process a signal, if it is still there."""
    if (fd := process.open()) is not None:
        try:
            _signal({fd: process}, number)
        finally:
            os.close(fd)


def end(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """Ask processes to end, kill those still there after `grace_s`, wait for them; return those that had to be killed."""
    killed = []
    with ExitStack() as stack:
        waiting: dict[int, ProcessId] = {}
        for process in processes:
            if (fd := process.open()) is not None:
                stack.callback(os.close, fd)
                waiting[fd] = process
        if grace_s > 0:
            _signal(waiting, signal.SIGTERM)
            _wait(waiting, grace_s)
        _signal(waiting, signal.SIGKILL)
        killed = list(waiting.values())
        _wait(waiting, 10.0)
    return killed


def _signal(waiting: dict[int, ProcessId], number: signal.Signals) -> None:
    for fd in waiting:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _wait(waiting: dict[int, ProcessId], timeout_s: float) -> None:
    """Take the processes that end within the time out of `waiting`. A pidfd turns readable at its process's end."""
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    deadline_s = time.monotonic() + timeout_s
    while waiting and (left_s := deadline_s - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            poll.unregister(fd)
            del waiting[fd]
