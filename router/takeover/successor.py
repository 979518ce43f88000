"""The successor's side of a takeover: knocks, is told what there is, and says how far it has come.

What the predecessor does when we die is its own to see to. When it dies, we go on with all it had, if we have it already; else we
start as ever.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from router.errors import Kind, Refusal
from router.model import Offloads
from router.takeover.channel import PROTOCOL, Channel, Gone, Process
from router.takeover.inherited import Inherited, Relief, set_offloads
from router.takeover.predecessor import door_of

_log = logging.getLogger(__name__)

_ESTATE_S = 60.0
_STOPPED_S = 30.0
_COUNTERS_S = 30.0
_LEFT_S = 30.0
_DEATH_S = 10.0
"""How long a process that ends may take to be gone, once it has closed its connections."""


class Successor(Relief):
    """One takeover. `close` ends it, and with it the predecessor, once `leave` was said."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._predecessor = Process(channel.pid)
        self._offloads: Offloads | None = None
        self._dead = False
        """Whether we go on alone."""

    @classmethod
    def knock(cls, socket_path: Path) -> Successor | None:
        """Find the router that runs at a control socket; None when none does. Raise Refusal(STATE)."""
        door = door_of(socket_path)
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            directory_fd = os.open(door.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found.connect(f"/proc/self/fd/{directory_fd}/{door.name}")
            finally:
                os.close(directory_fd)
        except OSError as error:
            found.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            raise Refusal(Kind.STATE, f"--takeover: cannot reach a router at {door}: {error.strerror}") from None
        return cls(Channel(found))

    def inherit(self, identity: dict[str, Any], switches: dict[str, Any]) -> Inherited | None:
        """Have the predecessor freeze, and return what it has; None when it died before we had it. Raise Refusal."""
        found = Inherited(live=True)
        try:
            self._channel.send("hello", protocol=PROTOCOL, **identity)
            told = self._hear("estate", _ESTATE_S)
            (found.lock_fd,) = self._channel.take()
            while len(found.fds) < int(told["count"]):
                some = self._hear("fds", _ESTATE_S)
                found.fds.update(zip(map(str, some["names"]), self._channel.take(), strict=True))
            found.counters_epoch = str(told["counters_epoch"])
            found.listens = frozenset(map(str, told["listens"]))
            self._offloads = Offloads(**told["offloads"])
            if told["switches"] == switches:
                found.offloads = self._offloads
        except Gone as gone:
            found.fds, left = {}, found.fds
            for fd in (*left.values(), found.take_lock()):
                if fd >= 0:
                    os.close(fd)
            if not self._predecessor.ended(_DEATH_S):
                raise Refusal(Kind.STATE, f"--takeover: the running router (pid {self._channel.pid}): {gone}") from None
            _log.warning("the running router ended before it had handed anything over: starting as ever")
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise Refusal(
                Kind.STATE, f"--takeover: the running router says what is not understood ({error!r})"
            ) from None
        return found

    def before_start(self, engine_fds: tuple[int, ...], offloads: Offloads, underlay_socket: socket.socket) -> None:
        """Say that we are ready, and return when the predecessor's engine has stopped, or died. Raise Refusal."""
        try:
            self._channel.send("ready")
            self._hear("stopped", _STOPPED_S)
        except Gone as gone:
            self._go_alone(gone)
        set_offloads(engine_fds, offloads, underlay_socket)

    def after_start(self) -> dict[str, Any] | None:
        """Say that packets flow again, and return what was counted before; None when the predecessor died. Raise Refusal."""
        if self._dead:
            return None
        try:
            self._channel.send("running")
            counters = self._hear("counters", _COUNTERS_S).get("counters")
        except Gone as gone:
            self._go_alone(gone)
            return None
        return counters if isinstance(counters, dict) else None

    def leave(self, stop_control: bool) -> None:
        """Let the predecessor go, and have every device for us alone. With `stop_control` its control has ended then too. Raise Refusal."""
        if self._dead:
            return
        try:
            self._channel.send("leave", control="stop" if stop_control else "keep")
            self._hear("left", _LEFT_S)
        except Gone as gone:
            self._go_alone(gone)

    def close(self) -> None:
        """End the connection. May be called twice."""
        self._channel.close()
        self._predecessor.close()

    def _hear(self, expected: str, timeout_s: float) -> dict[str, Any]:
        """Return the next message. Raise Refusal when the predecessor will not have us, Gone when it says nothing."""
        told = self._channel.receive(expected, "refused", "kept", timeout_s=timeout_s)
        if told["say"] == "kept":
            raise Refusal(Kind.STATE, f"--takeover: the running router goes on: {told.get('why')}")
        if told["say"] == "refused":
            raise Refusal(Kind.STATE, f"--takeover: {told.get('why')}")
        return told

    def _go_alone(self, gone: Gone) -> None:
        """Go on without the predecessor if it is dead. Raise Refusal if it lives: then it works on, or will."""
        with suppress(Gone):
            self._hear("kept", 0.1)  # what it said before it hung up
        if not self._predecessor.ended(_DEATH_S):
            raise Refusal(Kind.STATE, f"--takeover: the running router (pid {self._channel.pid}) goes on: {gone}")
        _log.warning("the running router ended while it handed its work over: going on without it")
        self._dead = True
