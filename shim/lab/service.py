"""A process that belongs to a lab: a router, etcd, the relay. Started in a namespace, known by its pid on disk, ended by it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from shim.lab import netns, process
from shim.lab.errors import LabError
from shim.lab.ledger import read_process, write_whole
from shim.lab.process import ProcessId

_REAP_TIMEOUT_S = 10.0
_LOG_TAIL_LINES = 6


class Service:
    """One such process, which may be started again and again. Whoever looks sees the same, this program or another."""

    def __init__(self, what: str, directory: Path, name: str, netns_path: Path) -> None:
        """`what` is what to call it in errors; NAME.pid and NAME.log are kept in the directory."""
        self.what = what
        self.directory = directory
        self.log_path = directory / f"{name}.log"
        self._pid_path = directory / f"{name}.pid"
        self._netns_path = netns_path
        self._child: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """Its pid while it runs, or None."""
        found = read_process(self._pid_path)
        return found.pid if found and found.alive else None

    @property
    def stopped(self) -> bool:
        """Whether it runs, but a signal has stopped it where it stands."""
        found = read_process(self._pid_path)
        return bool(found and found.stopped)

    def start(self, command: Sequence[str]) -> None:
        """Start it. LabError when it runs already, or there is no such command."""
        if self.pid is not None:
            raise LabError(f"{self.what} runs already")
        self._reap()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._child = self._popen(command)
        # A crash before this line leaves a process that only its namespace betrays: `down` looks there too.
        self._write_pid(self._child)

    def succeed(self, command: Sequence[str], timeout_s: float) -> None:
        """Start another one beside it, and have that in its place once the first has ended by itself.

        LabError when the other one ends instead, or both run when the time is over; then the first is as before.
        """
        first, first_child = read_process(self._pid_path), self._child
        if first is None or self.pid is None:
            raise LabError(f"{self.what} does not run: there is nothing to succeed to")
        other = self._popen(command)
        deadline_s = time.monotonic() + timeout_s
        while first.alive:
            if other.poll() is not None or time.monotonic() > deadline_s:
                other.kill()
                other.wait(timeout=_REAP_TIMEOUT_S)
                raise LabError(f"{self.what} was not succeeded: {self.log_tail()}")
            if first_child is not None:
                first_child.poll()  # a zombie's status is ours to collect
            time.sleep(0.01)
        self._reap()
        self._child = other
        self._write_pid(other)

    def end(self, grace_s: float) -> bool:
        """End it, stopped ones too; return whether it had to be killed though it had time to end by itself."""
        found = read_process(self._pid_path)
        if found and grace_s > 0:
            self.signal(signal.SIGCONT)
        killed = process.end([found] if found else [], grace_s)
        self._reap()
        return bool(killed) and grace_s > 0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it does not run."""
        found = read_process(self._pid_path)
        if found:
            process.send(found, number)

    def log_tail(self) -> str:
        """Return the end of its log on one line."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        return " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:] if line.strip()) or "it said nothing"

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        with self.log_path.open("a") as log:
            return netns.popen(
                self._netns_path,
                command,
                # So that `-m router` is the code this lab is part of, installed or not.
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _write_pid(self, child: subprocess.Popen[str]) -> None:
        if found := ProcessId.of(child.pid):
            write_whole(self._pid_path, str(found))

    def _reap(self) -> None:
        """Collect the exit status of one that this program started and that has ended."""
        if self._child is not None:
            self._child.wait(timeout=_REAP_TIMEOUT_S)
            self._child = None
