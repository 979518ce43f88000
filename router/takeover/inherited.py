"""Open fds that an earlier process of this node left to this one: its predecessor's by a takeover, or systemd's store's.

None is believed: a TUN must be the device of that name in that namespace, the socket must be bound where ours is to be.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from router.kernel import netns, tun, underlay
from router.model import AttachmentKey, Endpoint, Offloads

_log = logging.getLogger(__name__)

UNDERLAY = "underlay"
"""The name of the socket."""


def name_of(key: AttachmentKey) -> str:
    """Return the name of an attachment's fd: of letters and digits, however long the key is (sd_pid_notify_with_fds(3))."""
    return f"tun-{hashlib.sha256(f'{key.sandbox_id}/{key.if_name}'.encode()).hexdigest()[:40]}"


@dataclass(slots=True)
class Inherited:
    """What is not taken is closed by `close`."""

    fds: dict[str, int] = field(default_factory=dict)
    lock_fd: int = -1
    """Of the state directory, locked; -1: there is none."""
    offloads: Offloads | None = None
    """As they were found to work here, for switches as ours are."""
    counters_epoch: str = ""
    """Under which counters go on."""
    listens: frozenset[str] = frozenset()
    """Addresses of TCP listeners that its owner has, and lets go of in time."""
    live: bool = False
    """Whether its owner still runs, and may want it back: what we take is shared, and not ours to mend yet."""
    same_socket: bool = False
    """Whether `socket` was taken."""
    reject: Callable[[str], None] = lambda _name: None
    """Told of what is not used, so that who keeps it need not."""

    def tun(self, key: AttachmentKey, namespace: netns.Identity) -> int:
        """Return the fd of an attachment, which is the caller's then; -1 when there is none."""
        fd = self.fds.pop(name := name_of(key), -1)
        if fd < 0:
            return -1
        if tun.is_at(fd, namespace, key.if_name):
            os.set_blocking(fd, False)
            return fd
        _log.warning("the fd left for %s is not used: it is not the TUN %s of its namespace", key, key.if_name)
        os.close(fd)
        self.reject(name)
        return -1

    def socket(self, endpoint: Endpoint) -> socket.socket | None:
        """Return the underlay socket, which is the caller's then; None when there is none that is bound there."""
        fd = self.fds.pop(UNDERLAY, -1)
        if fd < 0:
            return None
        try:
            found = socket.socket(fileno=fd)
            if underlay.is_bound(found, endpoint):
                found.setblocking(False)
                self.same_socket = True
                return found
            found.close()
        except OSError:  # no socket at all
            os.close(fd)
        _log.warning("the socket left for the underlay is not used: it is not bound to %s", endpoint)
        self.reject(UNDERLAY)
        return None

    def close(self) -> None:
        """Let go of what nobody took."""
        for name, fd in self.fds.items():
            _log.warning("fd %s was left for us, and nobody needs it", name)
            os.close(fd)
            self.reject(name)
        self.fds = {}
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def take_lock(self) -> int:
        """Return the lock's fd, which is the caller's then; -1 when there is none."""
        fd, self.lock_fd = self.lock_fd, -1
        return fd


def set_offloads(engine_fds: Iterable[int], offloads: Offloads, underlay_socket: socket.socket) -> None:
    """Let the kernel do for open fds what is wanted of it; they may come from a process that wanted something else."""
    for fd in (each for each in engine_fds if each >= 0):
        with suppress(OSError):  # the device is gone: the engine will say so
            tun.set_offload(fd, offloads)
    with suppress(OSError):  # this kernel has none
        underlay.set_gro(underlay_socket, offloads.udp_gro)


class Relief:
    """Who has to be relieved before our engine starts: nobody. A successor has its own (successor.py)."""

    def before_start(self, engine_fds: tuple[int, ...], offloads: Offloads, underlay_socket: socket.socket) -> None:
        """Return when no other engine uses the fds, and they have our offloads. Raise Refusal when it will not come to that."""
        set_offloads(engine_fds, offloads, underlay_socket)

    def after_start(self) -> dict[str, Any] | None:
        """Our engine runs; return what the other's had counted (counts.py), None when nobody can say."""
        return None
