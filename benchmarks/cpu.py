"""CPU time: of given processes, and of the whole machine, for what the kernel does in nobody's name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds spent so far; the difference of two is what a measure cost."""

    processes_s: float
    machine_s: float

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        return CpuTime(self.processes_s - earlier.processes_s, self.machine_s - earlier.machine_s)


def read_cpu_time(pids: Iterable[int] = ()) -> CpuTime:
    """Read the clock of those processes (all their threads) and of the machine."""
    stat, now_s = Path("/proc/stat").read_text(), time.monotonic()
    return CpuTime(sum(process_s(Path("/proc", str(pid), "stat").read_text()) for pid in pids), machine_s(stat, now_s))


def process_s(stat: str) -> float:
    """Return user and system seconds out of /proc/PID/stat (proc(5): fields 14 and 15; the name may hold blanks)."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def machine_s(stat: str, now_s: float) -> float:
    """Return busy seconds of all CPUs at a moment of the monotonic clock: what is not idle, waiting for a disk or stolen.

    Idle time is what the kernel measures to the nanosecond (get_idle_time, fs/proc/stat.c); busy time it guesses at each
    tick, and bursts shorter than one fall through. Only the difference of two moments means anything.
    """
    lines = stat.splitlines()
    _user, _nice, _system, idle, iowait, _irq, _softirq, steal = map(int, lines[0].split()[1:9])
    cpus = sum(line.startswith("cpu") for line in lines) - 1
    return now_s * cpus - (idle + iowait + steal) * _TICK_S
