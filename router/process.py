"""What this process is to its machine: how much of it, and of which version."""

from __future__ import annotations

import os
from pathlib import Path

_CORES_FOR_TWO_THREADS = 4


def engine_threads() -> int:
    """Return how many engine threads this machine is worth.

    Threads of Python wait for each other's lock at every system call: on two cores, shared with the Pods, one thread
    spends a third less CPU a gigabyte than two (docs/decisions/0011-engine-threads.md).
    """
    return 1 if len(os.sched_getaffinity(0)) < _CORES_FOR_TWO_THREADS else 2


def version() -> str:
    """Return the version of the distribution."""
    from importlib import metadata  # late: it takes longer to import than a table to read

    return metadata.version("podwire")


def resident_bytes() -> int:
    """Return how much memory it has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
