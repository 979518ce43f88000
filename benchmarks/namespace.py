"""A network namespace of our own: made, entered, filled with processes, and removed with everything in it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

_RUN_DIR = Path("/run/netns")
PREFIX = "pwb"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(Exception):
    """A command of the set-up did not work; the message says which, where, and what it said."""


def ip(*words: str | int) -> None:
    """Run one `ip` command in the caller's namespace."""
    _check(["ip", *map(str, words)])


def sweep() -> list[str]:
    """Remove what benchmark runs that were killed have left; return the names of the namespaces removed."""
    removed = []
    for path in _RUN_DIR.glob(f"{PREFIX}-*"):
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-.*", path.name)
        if owner and not Path("/proc", owner[1]).exists():
            for pid in _check(["ip", "netns", "pids", path.name]).split():
                os.kill(int(pid), 9)
            ip("netns", "delete", path.name)
            removed.append(path.name)
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-.*", path.name)
        if owner and not Path("/proc", owner[1]).exists():
            shutil.rmtree(path)
    return removed


class Namespace:
    """A network namespace that lives until the stack is closed. Forwards IP, loopback is up."""

    def __init__(self, stack: ExitStack, label: str) -> None:
        self.name = f"{PREFIX}-{os.getpid()}-{label}"
        self.path = str(_RUN_DIR / self.name)
        ip("netns", "add", self.name)
        stack.callback(ip, "netns", "delete", self.name)
        self.sysctl("net/ipv4/ip_forward", 1)
        self.sysctl("net/ipv6/conf/all/forwarding", 1)
        self.ip("link", "set", "lo", "up")

    @classmethod
    def existing(cls, path: str) -> Namespace:
        """Wrap a namespace somebody else made and removes."""
        self = cls.__new__(cls)
        self.name = Path(path).name
        self.path = path
        return self

    def ip(self, *words: str | int) -> str:
        """Run one `ip` command inside."""
        return _check(["ip", "-n", self.name, *map(str, words)])

    def bridge(self, *words: str | int) -> str:
        """Run one `bridge` command inside."""
        return _check(["bridge", "-n", self.name, *map(str, words)])

    def run(self, *words: str | int | Path, timeout_s: float = 30) -> str:
        """Run a command inside to its end and return what it printed. CommandFailed if it fails."""
        return _check(self.command(*words), timeout_s)

    def command(self, *words: str | int | Path) -> list[str]:
        """Return the argument list that runs a command inside. `nsenter` execs: the pid is the command's."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, words)]

    def spawn(
        self, stack: ExitStack, *words: str | int, output: IO[bytes] | int = subprocess.DEVNULL,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start a process inside that is ended with the stack."""
        process = subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        stack.callback(end, process)
        return process

    def inside(self, action: Callable[[], T]) -> T:
        """Call something in a thread that has entered the namespace: sockets and files opened there stay in it."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                fd = os.open(self.path, os.O_RDONLY)
                try:
                    if _libc.setns(fd, _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.path}: {os.strerror(ctypes.get_errno())}")
                finally:
                    os.close(fd)
                outcome.append(action())
            except BaseException as error:  # noqa: BLE001
                failure.append(error)

        thread = threading.Thread(target=enter, name=f"in {self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def sysctl(self, name: str, value: str | int) -> None:
        """Set a sysctl of this namespace, its name written with slashes."""
        # /proc/sys/net shows the namespace of the thread that opens the file.
        self.inside(lambda: Path("/proc/sys", name).write_text(str(value)))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process we started, gently first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _check(command: list[str], timeout_s: float = 30) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise CommandFailed(f"`{' '.join(command)}` failed with status {done.returncode}: {said}")
    return done.stdout
