"""Which router holds a name: enough for another to tell whether it is its clone, or its predecessor that ended."""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, unique
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Holder:
    """A router, as it describes itself in the store."""

    identity: str
    """UUID of its state directory's life. A cloned machine has it too."""
    boot_id: str
    """Of its kernel: the same word, the same machine since the same boot."""
    pid_namespace: int
    """In which its pid counts."""
    pid: int
    start_ticks: int
    """When that process began (proc_pid_stat(5), field 22): pids are used again."""
    hostname: str
    since: str
    """When it was started (UTC, ISO 8601)."""
    place: str = ""
    """What it alone has locked, such as the inode of its state; names the same thing within one boot only."""
    run: str = ""
    """Which of several holders in one process."""

    def __str__(self) -> str:
        return f"{self.hostname or 'an unknown host'} (pid {self.pid}, since {self.since})"


@unique
class Standing(Enum):
    """What a holder is to the router that finds its name taken."""

    SELF = "self"
    ENDED = "ended"
    """It can be seen to be no more."""
    ALIVE = "alive"
    """It can be seen to live."""
    UNKNOWN = "unknown"
    """It is of another boot, or in another container: only its lease tells."""


living: set[str] = set()
"""The `run` of every holder in this process that has not ended."""


def this_process(identity: str, place: str = "") -> Holder:
    """Describe the router that this process is, with a `run` of its own."""
    return Holder(
        identity=identity,
        boot_id=_BOOT_ID.read_text().strip(),
        pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
        pid=os.getpid(),
        start_ticks=_start_ticks(os.getpid()) or 0,
        hostname=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        place=place,
        run=secrets.token_hex(8),
    )


def boot_clock_s() -> float:
    """Return seconds since the machine's boot, those it slept included (CLOCK_BOOTTIME): leases end meanwhile too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def standing(found: Holder, ours: Holder) -> Standing:
    """Say what the holder found in the store is to us."""
    if found.run == ours.run:
        return Standing.SELF
    if found.boot_id != ours.boot_id:
        return Standing.UNKNOWN
    if found.place and found.place == ours.place:
        return Standing.ENDED  # or it would have the lock that we have
    if found.pid_namespace != ours.pid_namespace:
        return Standing.UNKNOWN
    if (found.pid, found.start_ticks) == (ours.pid, ours.start_ticks):
        return Standing.ALIVE if found.run in living else Standing.ENDED
    return Standing.ALIVE if _start_ticks(found.pid) == found.start_ticks else Standing.ENDED


def _start_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the boot; None when there is no such process, or a dead one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) if fields[0] not in "ZX" else None
