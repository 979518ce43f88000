"""The connection between a router and its successor: a Unix stream socket with messages of JSON, each with fds or without.

    length u32 · fds u32, big-endian, the fds go along with these bytes (SCM_RIGHTS, unix(7)) · JSON, an object with "say"

Both sides see to it that the other is of their own user (SO_PEERCRED).
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import time
from contextlib import suppress
from typing import Any

from router.errors import Kind, Refusal

PROTOCOL = 1
"""Grows when a side can no longer understand the other's older one."""
MOST_FDS = 200
"""In one message; the kernel takes 253 (SCM_MAX_FD, include/net/scm.h)."""
_MOST_BYTES = 64 << 20
_HEADER = struct.Struct(">II")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


class Gone(Exception):
    """The other side has ended the connection, or does not say what it should, or not in time."""


class Channel:
    """One end. Closes what it has received and nobody has taken."""

    def __init__(self, connected: socket.socket) -> None:
        """Take a connected socket over. Raise Refusal(STATE) when another user is at its other end."""
        self._socket = connected
        self._fds: list[int] = []
        self.pid, uid, _ = _CREDENTIALS.unpack(
            connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        """Of the process at the other end."""
        if uid != os.geteuid():
            connected.close()
            raise Refusal(Kind.STATE, f"process {self.pid} of user {uid} is no router of this user, {os.geteuid()}")

    def send(self, say: str, fds: list[int] | None = None, **what: Any) -> None:
        """Send a message. Raise Gone."""
        body = json.dumps({"say": say, **what}).encode()
        header = _HEADER.pack(len(body), len(fds or ()))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.settimeout(30)
            if self._socket.sendmsg([header], rights) != len(header):
                raise Gone("half a message was sent")
            self._socket.sendall(body)
        except OSError as error:
            raise Gone(error.strerror or str(error)) from None

    def receive(self, *expected: str, timeout_s: float) -> dict[str, Any]:
        """Return the next message, which must be one of these; its fds are `taken`. Raise Gone."""
        deadline_s = time.monotonic() + timeout_s
        size_bytes, count = _HEADER.unpack(self._exactly(_HEADER.size, deadline_s))
        if size_bytes > _MOST_BYTES or count > MOST_FDS:
            raise Gone(f"it sends a message of {size_bytes} bytes and {count} fds")
        body = self._exactly(size_bytes, deadline_s)
        if len(self._fds) != count:
            raise Gone(f"{count} fds were sent, and {len(self._fds)} came: is the limit of open files too low?")
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or message.get("say") not in expected:
            said = message.get("say") if isinstance(message, dict) else body[:40]
            raise Gone(f"it says {said!r}, not {' or '.join(expected)}")
        return message

    def take(self) -> list[int]:
        """Return the fds that came with the last message; they are the caller's now."""
        taken, self._fds = self._fds, []
        return taken

    def wait_end(self, timeout_s: float) -> None:
        """Wait until the other side has ended the connection, at most so long."""
        with suppress(Gone):
            self.receive(timeout_s=timeout_s)

    def interrupt(self) -> None:
        """Let whoever waits here find the connection ended. From any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it. May be called twice."""
        self._socket.close()
        for fd in self.take():
            os.close(fd)

    def _exactly(self, size_bytes: int, deadline_s: float) -> bytes:
        found = bytearray()
        while len(found) < size_bytes:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise Gone("it does not answer")
            try:
                self._socket.settimeout(left_s)
                data, rights, flags, _ = self._socket.recvmsg(
                    min(size_bytes - len(found), 1 << 20), socket.CMSG_SPACE(4 * MOST_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except TimeoutError:
                continue
            except OSError as error:
                raise Gone(error.strerror or str(error)) from None
            for level, kind, raw in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += array.array("i", raw[: len(raw) - len(raw) % 4])
            if flags & socket.MSG_CTRUNC:
                raise Gone("not all fds came: is the limit of open files too low?")
            if not data:
                raise Gone("it has ended")
            found += data
        return bytes(found)


class Process:
    """Another process, by a pidfd: its number may be used again, this not."""

    def __init__(self, pid: int) -> None:
        self._unknown = False
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it is gone already
            self._fd = -1
        except OSError:  # of another pid namespace (then pid is 0), or not allowed: nobody can say
            self._fd, self._unknown = -1, True

    def ended(self, within_s: float) -> bool:
        """Wait at most so long for its end, and tell whether it has."""
        if self._fd < 0:
            return not self._unknown
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
