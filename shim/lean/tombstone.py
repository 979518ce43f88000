"""A detachment that found no router, left where the next one looks (router/tombstones.py says how it reads it)."""

from __future__ import annotations

import os
import time


def directory_beside(socket_path: str) -> str:
    """Return where a router at that socket looks for tombstones."""
    return os.path.join(os.path.dirname(socket_path), "tombstones")  # noqa: PTH118, PTH120 - pathlib costs 5 ms


def leave(socket_path: str, sandbox_id: str, if_name: str) -> None:
    """Write a tombstone, whole or not at all. OSError when it cannot be."""
    from json import dumps

    directory = directory_beside(socket_path)
    os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103
    detached_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    name = f"{detached_ns}-{os.getpid()}"
    draft = os.path.join(directory, f"{name}.draft")  # noqa: PTH118
    content = dumps({"sandbox_id": sandbox_id, "if_name": if_name, "detached_ns": detached_ns}).encode()
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
    os.rename(draft, os.path.join(directory, f"{name}.json"))  # noqa: PTH104, PTH118
