"""One flow of UDP datagrams whose two ends do not bound the figure.

The sender hands 64 datagrams to the kernel a call (sendmmsg over ctypes, which gives the GIL away): true single
packets, as an application would send them. The receiver is a socket nobody reads, so it costs no CPU the contender
could have used: what comes to it is counted in /proc/net/snmp, as RcvbufErrors once its tiny queue is full.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from benchmarks.contenders.interface import Way

_PORT = 5301
_BATCH = 64
_PACED_BATCH = 10
_libc = ctypes.CDLL(None, use_errno=True)


class Flow:
    """Sends from the client to the server of a way inside the `with` block, as fast as it can or paced."""

    def __init__(self, way: Way, payload_bytes: int, packets_per_s: float = 0) -> None:
        self._way = way
        self._payload_bytes = payload_bytes
        self._packets_per_s = packets_per_s
        self._stack = ExitStack()

    def __enter__(self) -> Flow:
        with ExitStack() as attempt:
            self._receiver = attempt.enter_context(self._way.server.inside(_udp_socket))
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            self._receiver.bind((self._way.address, _PORT))
            self._snmp = attempt.enter_context(self._way.server.inside(_open_snmp))
            sender = attempt.enter_context(self._way.client.inside(_udp_socket))
            sender.connect((self._way.address, _PORT))
            self._before = arrived(self._read())
            self._sender = _Sender(sender, bytes(self._payload_bytes), self._packets_per_s)
            self._sender.start()
            self._stack = attempt.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.stop()

    @property
    def sent(self) -> int:
        """Datagrams the client's kernel has taken so far."""
        return self._sender.sent

    @property
    def arrived(self) -> int:
        """Datagrams that have come; the three or so in the receiver's queue count when the flow is stopped."""
        return arrived(self._read()) - self._before

    def stop(self, timeout_s: float = 2) -> None:
        """Stop sending, wait until the queues on the way are empty, and count to the last one."""
        self._sender.stop()
        deadline = time.monotonic() + timeout_s
        last = -1
        while last != (last := self.arrived) and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            while True:
                self._receiver.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass

    def _read(self) -> str:
        self._snmp.seek(0)
        return self._snmp.read()


def arrived(snmp: str) -> int:
    """Return how many datagrams came to sockets and were read or found no room, out of /proc/net/snmp."""
    names, values = (line.split()[1:] for line in snmp.splitlines() if line.startswith("Udp:"))
    udp = dict(zip(names, map(int, values), strict=True))
    return udp["InDatagrams"] + udp["RcvbufErrors"]


def _open_snmp() -> IO[str]:
    return Path("/proc/thread-self/net/snmp").open()


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


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


class _Sender(threading.Thread):
    """Sends the same datagram over a connected socket until stopped."""

    def __init__(self, connected: socket.socket, payload: bytes, packets_per_s: float) -> None:
        super().__init__(name="flow", daemon=True)
        self._fd = connected.fileno()
        self._payload = ctypes.create_string_buffer(payload, len(payload))
        self._vector = _IoVec(ctypes.addressof(self._payload), len(payload))
        message = _Message(_Header(vectors=ctypes.pointer(self._vector), vector_count=1))
        self._count = _PACED_BATCH if packets_per_s else _BATCH
        self._batch = (_Message * self._count)(*[message] * self._count)
        self._interval_s = self._count / packets_per_s if packets_per_s else 0
        self._stopping = False
        self.sent = 0

    def run(self) -> None:
        """Send; an error (a queue full, a peer's ICMP) sends the next one."""
        due = time.monotonic()
        while not self._stopping:
            self.sent += max(0, _libc.sendmmsg(self._fd, self._batch, self._count, 0))
            if self._interval_s:
                due += self._interval_s
                time.sleep(max(0, due - time.monotonic()))

    def stop(self) -> None:
        """Stop and wait for the last batch."""
        self._stopping = True
        self.join()
