"""Namespaces that a runtime made and forgot: it was killed before it wrote down whose they are.

No attachment leads to such a one when it never came to ADD, so they are looked for by name. What goes is what the runtime
does not know, what is older than the grace, and what nothing is in: no process, no device that is up. Names do not tell one
containerd's from another's, so its knowing nothing of one is not enough.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from shim.runtimes.source import Source

DIRECTORY = Path("/run/netns")
LEAST_AGE_S = 5.0
"""Whatever the grace: a sandbox that is just being made has nothing in it, and is written down nowhere."""


def find(sources: Sequence[Source], used: Collection[str], grace_s: float) -> list[str]:
    """Return the paths of namespaces that runtimes abandoned, but for the `used` ones (names). SourceError as `unknown`."""
    before_s = time.time() - max(grace_s, LEAST_AGE_S)
    old = [path.name for path in _entries() if path.name not in used and _made_at_s(path) < before_s]
    candidates = [name for name in old if any(source.is_leaked(DIRECTORY / name) for source in sources)]
    for source in sources:
        if mine := [name for name in candidates if source.is_leaked(DIRECTORY / name)]:
            known = set(mine).difference(source.forgotten(mine))
            candidates = [name for name in candidates if name not in known]
    return [str(DIRECTORY / name) for name in candidates if _is_empty(DIRECTORY / name)]


_A_NAMESPACE = Path("/proc/self/ns/net")
"""On the file system of all namespaces (fs/nsfs.c)."""


def is_inhabited(netns_path: Path) -> bool:
    """Tell whether a process lives in a namespace."""
    try:
        wanted = netns_path.stat()
    except OSError:  # no path leads there: the router sees to it by itself
        return False
    for entry in Path("/proc").glob("[1-9]*"):
        try:
            found = (entry / "ns/net").stat()
        except OSError:  # it ended meanwhile
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


def _entries() -> list[Path]:
    try:
        return sorted(DIRECTORY.iterdir())
    except FileNotFoundError:
        return []


def _made_at_s(path: Path) -> float:
    """Return when a namespace got its name (Unix time); one that is gone is new."""
    try:
        return path.stat().st_ctime
    except OSError:
        return float("inf")


def _is_empty(path: Path) -> bool:
    """Tell whether nothing is in it. Devices that the kernel puts into every namespace are down."""
    if is_inhabited(path):
        return False
    try:
        if path.stat().st_dev != _A_NAMESPACE.stat().st_dev:  # only a name: its runtime died before there was more
            return True
    except OSError:
        return False
    done = subprocess.run(
        ["ip", "-netns", path.name, "-json", "link"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:  # what cannot be looked at is not for us to remove
        return False
    return not any("UP" in link["flags"] and "LOOPBACK" not in link["flags"] for link in json.loads(done.stdout))
