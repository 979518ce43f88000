"""CPU time: of given processes, and of the whole machine, for what the kernel does in nobody's name."""

from __future__ import annotations

import os
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
    return CpuTime(sum(process_s(Path("/proc", str(pid), "stat").read_text()) for pid in pids),
                   machine_s(Path("/proc/stat").read_text()))  # fmt: skip


def process_s(stat: str) -> float:
    """Return user and system seconds out of /proc/PID/stat (proc(5): fields 14 and 15; the name may hold blanks)."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def machine_s(stat: str) -> float:
    """Return busy seconds of all CPUs out of /proc/stat: not idle, not waiting for a disk, not stolen by a host."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) * _TICK_S
