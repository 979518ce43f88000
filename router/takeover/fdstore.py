"""systemd's store of fds: what is put there outlives a crash, and packets wait in TUN rings and socket for the next start.

sd_notify(3) to NOTIFY_SOCKET, with FileDescriptorStoreMax= in the unit; given back as LISTEN_FDS (sd_listen_fds(3)).
Without systemd, or without a store, nothing happens here.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
from collections.abc import MutableMapping

from router.takeover.inherited import UNDERLAY, Inherited

_log = logging.getLogger(__name__)

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_NAMED = (UNDERLAY, "tun-")
"""What our names begin with."""


class FdStore:
    """What systemd is told: of fds, and of start and end. Thread-safe."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take from the environment where systemd listens; processes started from here do not get it."""
        self._where = environ.pop("NOTIFY_SOCKET", "")
        most = environ.pop("FDSTORE", "0")
        self.there = bool(self._where) and most.isdigit() and int(most) > 0
        """Whether fds are kept, by a process that has them too: closing one of ours deletes no device."""

    def keep(self, name: str, fd: int) -> None:
        """Put an fd into the store; one that is there already stays."""
        if self.there:
            # Not watched there: an error of the socket's would throw it out.
            self._tell(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd)

    def drop(self, name: str) -> None:
        """Take it out."""
        if self.there:
            self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def started(self) -> None:
        """Say that control answers."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """Say that it is about to end."""
        self._tell("STOPPING=1")

    def _tell(self, text: str, fd: int = -1) -> None:
        if not self._where:
            return
        address = f"\0{self._where[1:]}" if self._where.startswith("@") else self._where
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(5)
                out.sendmsg([text.encode()], rights, 0, address)
        except OSError as error:
            _log.warning("systemd could not be told %s: %s", text.splitlines()[0], error.strerror or error)


def inherited(environ: MutableMapping[str, str], store: FdStore) -> Inherited:
    """Return the fds that systemd gives back, by our names; close what is none of ours, and take it out of the store."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return Inherited()
    found = Inherited(reject=store.drop)
    for fd, name in zip(range(_FIRST_FD, _FIRST_FD + int(count)), names, strict=False):
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError:
            _log.warning("systemd says that fd %d is %s, and it is not open", fd, name)
            continue
        if name.startswith(_NAMED) and name not in found.fds:
            found.fds[name] = fd
        else:
            _log.warning("fd %d (%s) of systemd is none of a router's, and is not used", fd, name)
            os.close(fd)
            store.drop(name)
    return found
