"""Detachments that found no router: files that a shim leaves beside the socket, and the next router carries out.

    <directory of the socket>/tombstones/ANY.json    {"sandbox_id": …, "if_name": …, "detached_ns": CLOCK_BOOTTIME}

They are written under another name and renamed, so what ends in .json is whole. A file goes when its detachment is done.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from router.errors import Refusal
from router.model import AttachmentKey

_log = logging.getLogger(__name__)

_MOST_BYTES = 4096
_MOST_FILES = 4096
"""A round's share; what is left over has its turn in the next."""


class Tombstones:
    """The files of one directory, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._said: set[str] = set()
        """What was complained of already: a round comes every second."""

    def bury(self, detach: Callable[[AttachmentKey, int], None]) -> int:
        """Have every detachment done that waits here; return how many were. One that fails stays for the next round."""
        done = 0
        for path in self._waiting():
            try:
                key, detached_ns = _read(path)
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                _log.warning("removing %s: no detachment (%s)", path, " ".join(str(error).split()))
                with suppress(OSError):
                    path.unlink()
                continue
            try:
                detach(key, detached_ns)
            except Refusal as refusal:
                self._complain(path.name, f"{key} cannot be detached yet: {refusal.message}")
                continue
            with suppress(FileNotFoundError):
                path.unlink()
            done += 1
        return done

    def _waiting(self) -> list[Path]:
        try:
            status = self._directory.lstat()
        except FileNotFoundError:
            return []
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            self._complain("", f"{self._directory} may be written by others, and is left alone: make it mode 700")
            return []
        return sorted(self._directory.glob("*.json"))[:_MOST_FILES]

    def _complain(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            _log.warning("%s", message)


def _read(path: Path) -> tuple[AttachmentKey, int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        content = json.loads(file.read(_MOST_BYTES))
    sandbox_id, if_name, detached_ns = content["sandbox_id"], content["if_name"], content["detached_ns"]
    if not (isinstance(sandbox_id, str) and isinstance(if_name, str) and 0 < len(sandbox_id) <= 256 and if_name):
        raise ValueError("sandbox_id and if_name must be text")
    if isinstance(detached_ns, bool) or not isinstance(detached_ns, int) or not 0 <= detached_ns < 1 << 63:
        raise ValueError("detached_ns must be nanoseconds of CLOCK_BOOTTIME")
    return AttachmentKey(sandbox_id, if_name), detached_ns
