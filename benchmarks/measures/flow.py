"""Flows of UDP datagrams whose two ends do not bound the figure.

The senders are threads of their own (sender.py). The receiver is a socket nobody reads, so it costs no CPU the contender
could have used: what comes to it is counted in /proc/net/snmp, as RcvbufErrors once its tiny queue is full.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from benchmarks.contenders.interface import Way
from benchmarks.measures.sender import Sender
from benchmarks.namespace import Namespace

_PORT = 5301
_SNMP_BYTES = 8192


class Flow:
    """Sends from the client to the server of a way inside the `with` block, as fast as it can or paced."""

    def __init__(
        self, way: Way, payload_bytes: int, packets_per_s: float = 0, *,
        more: Sequence[Way] = (), senders: int = 1, ahead: bool = False,
    ) -> None:  # fmt: skip
        """Send over `more` ways in turn, from several threads, or `ahead`: half more than arrives, once that is known."""
        self._ways = (way, *more)
        self._payload = bytes(payload_bytes)
        self._packets_per_s = packets_per_s / senders
        self._sender_count = senders
        self._ahead = ahead
        self._stack = ExitStack()

    def __enter__(self) -> Flow:
        with ExitStack() as attempt:
            servers = {way.server.path: way for way in self._ways}.values()
            self._receivers = [attempt.enter_context(way.server.inside(_udp_socket)) for way in servers]
            for receiver, way in zip(self._receivers, servers, strict=True):
                receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                receiver.bind((way.address, _PORT))
            self._counters = [_open_snmp(attempt, way.server) for way in servers]
            self._before = 0
            self._before = self.arrived
            self._senders = [self._sender(attempt) for _ in range(self._sender_count)]
            for sender in self._senders:
                sender.start()
            self._stack = attempt.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.stop()

    @property
    def sent(self) -> int:
        """Datagrams the clients' kernels have taken so far."""
        return sum(sender.sent for sender in self._senders)

    @property
    def arrived(self) -> int:
        """Datagrams that have come; the three or so in a receiver's queue count when the flow is stopped."""
        # pread, as a sender looks too: a shared file position would be in its way.
        return sum(arrived(os.pread(fd, _SNMP_BYTES, 0).decode()) for fd in self._counters) - self._before

    def stop(self, timeout_s: float = 2) -> None:
        """Stop sending, wait until the queues on the way are empty, and count to the last one."""
        for sender in self._senders:
            sender.stop()
        deadline = time.monotonic() + timeout_s
        last = -1
        while last != (last := self.arrived) and time.monotonic() < deadline:
            time.sleep(0.1)
        for receiver in self._receivers:
            try:
                while True:
                    receiver.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass

    def _sender(self, stack: ExitStack) -> Sender:
        sockets = []
        for way in self._ways:
            sockets.append(stack.enter_context(way.client.inside(_udp_socket)))
            sockets[-1].connect((way.address, _PORT))
        arrived_of_one = (lambda: self.arrived // self._sender_count) if self._ahead else None
        return Sender(sockets, self._payload, self._packets_per_s, arrived_of_one)


def arrived(snmp: str) -> int:
    """Return how many datagrams came to sockets and were read or found no room, out of /proc/net/snmp."""
    names, values = (line.split()[1:] for line in snmp.splitlines() if line.startswith("Udp:"))
    udp = dict(zip(names, map(int, values), strict=True))
    return udp["InDatagrams"] + udp["RcvbufErrors"]


def _open_snmp(stack: ExitStack, server: Namespace) -> int:
    fd = server.inside(lambda: os.open("/proc/thread-self/net/snmp", os.O_RDONLY | os.O_CLOEXEC))
    stack.callback(os.close, fd)
    return fd


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
