"""A thread that sends datagrams over connected sockets: unpaced, paced in bursts, or a given factor ahead of what arrives.

It hands a burst to the kernel a call (sendmmsg over ctypes, which gives the interpreter lock away): true single packets,
as applications send them. What a burst costs beside the kernel's own work is a microsecond or two.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from collections.abc import Callable, Sequence

BURST = 64
PACED_BURST = 10
_AHEAD = 1.5
"""How much more than arrives is offered by a sender that saturates without burning the CPU the way itself could use."""
_LOOK_S = 0.05
"""How often such a sender looks at what arrives; the first time it has sent as fast as it can."""
_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    """struct msghdr on 64-bit Linux, with its padding at the end."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint32), ("vectors", ctypes.POINTER(_IoVec)),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]  # fmt: skip


class _Message(ctypes.Structure):
    """struct mmsghdr: 64 bytes, as the header's padding comes before the count."""

    _fields_ = [("header", _Header), ("sent_bytes", ctypes.c_uint32)]


class Sender(threading.Thread):
    """Sends the same datagram until stopped, a burst over each socket in turn."""

    def __init__(
        self, connected: Sequence[socket.socket], payload: bytes, packets_per_s: float = 0,
        arrived: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        """Pace to `packets_per_s`, or to somewhat more than `arrived` counts; without either, as fast as it goes."""
        super().__init__(name="sender", daemon=True)
        self._fds = [each.fileno() for each in connected]
        self._payload = ctypes.create_string_buffer(payload, len(payload))
        self._vector = _IoVec(ctypes.addressof(self._payload), len(payload))
        message = _Message(_Header(vectors=ctypes.pointer(self._vector), vector_count=1))
        self._count = PACED_BURST if packets_per_s else BURST
        self._messages = (_Message * self._count)(*[message] * self._count)
        self._interval_s = self._count / packets_per_s if packets_per_s else 0.0
        self._arrived = arrived
        self._stopping = False
        self.sent = 0

    def run(self) -> None:
        """Send; an error (a queue full, a peer's ICMP) sends the next one."""
        send, messages, count = _libc.sendmmsg, self._messages, self._count
        due = looked = time.monotonic()
        seen = self._arrived() if self._arrived else 0
        while not self._stopping:
            for fd in self._fds:
                self.sent += max(0, send(fd, messages, count, 0))
                due += self._interval_s
            now = time.monotonic()
            if self._arrived and now > looked + _LOOK_S:
                came = self._arrived()
                # What arrives sets the pace; a burst every now and then finds out when it could be more.
                self._interval_s = min(_LOOK_S, count * (now - looked) / max(1, came - seen) / _AHEAD)
                looked, seen, due = now, came, now
            if self._interval_s and due > now:
                time.sleep(due - now)

    def stop(self) -> None:
        """Stop and wait for the last burst."""
        self._stopping = True
        self.join()
