"""What was measured on: kernel, processor, versions, commit, time."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.cpu import read_cpu_time

_VERSION_OF = {
    "iperf3": ("iperf3", "--version"),
    "ip": ("ip", "-Version"),
    "wireguard-go": ("wireguard-go", "--version"),
    "nebula": ("nebula", "-version"),
    "fastd": ("fastd", "--version"),
    "tinc": ("tincd", "--version"),
}
_PACKAGES = ("podwire", "numpy", "grpcio", "python-pytun", "pyroute2")


def describe(contenders: Iterable[str] = ()) -> dict[str, Any]:
    """Return the facts that belong beside a figure; versions of the contenders named too."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for name in ("iperf3", "ip", *contenders):
        if name in _VERSION_OF and (first := _first_line(*_VERSION_OF[name])):
            versions[name] = first
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "commit": _commit(),
        "versions": versions,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def busy_note(seconds: float = 1, tolerated: float = 0.1) -> str:
    """Watch the machine before anything is measured; return what to tell when others keep it busy, else nothing."""
    before = read_cpu_time().machine_s
    time.sleep(seconds)
    share = (read_cpu_time().machine_s - before) / seconds / (os.cpu_count() or 1)
    if share < tolerated:
        return ""
    return f"other processes used {share:.0%} of the CPUs before the start: measure again on a quiet machine for figures to keep"


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name out of /proc/cpuinfo; architectures that give none, by theirs."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _commit() -> str:
    here = str(Path(__file__).parent)
    commit = _first_line("git", "-C", here, "rev-parse", "--short=12", "HEAD")
    changed = commit and _first_line("git", "-C", here, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changes not committed" if changed else commit or "no git"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return ""
    printed = "" if done.returncode else (done.stdout or done.stderr).strip()
    return printed.splitlines()[0] if printed else ""
