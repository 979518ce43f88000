"""UDP at saturation: one core sends true single datagrams as fast as it can; the receiver's kernel counts.

iperf3 bounds this figure itself. Here one sendmmsg call hands 64 datagrams to the kernel, and the receiver is a socket
nobody reads: whatever comes to it is counted in /proc/net/snmp, first queued (InDatagrams counts when read, so the
queue is kept tiny), then as RcvbufErrors, which costs no CPU that the contender could have used.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from benchmarks.contenders.interface import Network
from benchmarks.figures import Metric
from benchmarks.measures.interface import MeasureFailed

_PORT = 5301
_BATCH = 64
_WARM_UP_S = 0.2
_libc = ctypes.CDLL(None, use_errno=True)


class Flood:
    """Datagrams of one size, unpaced."""

    def __init__(self, payload_bytes: int) -> None:
        self.name = f"udp{payload_bytes}"
        self.title = f"UDP {payload_bytes} B"
        self._payload_bytes = payload_bytes
        self._arrived = Metric(f"{self.name}_kpps", self.title, "kpps", "UDP at saturation", base="vxlan")
        self._offered = Metric(f"{self.name}_offered", f"{self.title}: offered", "kpps", "UDP at saturation")
        self.metrics = (self._arrived, self._offered)

    def suits(self, network: Network) -> bool:  # noqa: ARG002
        """Every network carries UDP."""
        return True

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Open no socket before the run: a queue left over would be counted."""

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Flood for that long after a warm-up; return thousands of packets a second that came and that were sent."""
        way = network.across
        with ExitStack() as stack:
            receiver = stack.enter_context(way.server.inside(_udp_socket))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            receiver.bind((way.address, _PORT))
            snmp = stack.enter_context(way.server.inside(_open_snmp))
            sender = stack.enter_context(way.client.inside(_udp_socket))
            sender.connect((way.address, _PORT))
            flood = _Sender(sender, bytes(self._payload_bytes))
            flood.start()
            try:
                time.sleep(_WARM_UP_S)
                start, sent, came = time.monotonic(), flood.sent, arrived(_read(snmp))
                time.sleep(seconds)
                span_s = time.monotonic() - start
                sent, came = flood.sent - sent, arrived(_read(snmp)) - came
            finally:
                flood.stop()
            _drain(snmp)
        if not came:
            raise MeasureFailed(f"{sent} datagrams sent, none arrived")
        return {self._arrived.key: came / span_s / 1e3, self._offered.key: sent / span_s / 1e3}


def arrived(snmp: str) -> int:
    """Return how many datagrams came to sockets, read or not, out of /proc/net/snmp."""
    names, values = (line.split()[1:] for line in snmp.splitlines() if line.startswith("Udp:"))
    udp = dict(zip(names, map(int, values), strict=True))
    return udp["InDatagrams"] + udp["RcvbufErrors"]


def _open_snmp() -> IO[str]:
    return Path("/proc/thread-self/net/snmp").open()


def _read(snmp: IO[str]) -> str:
    snmp.seek(0)
    return snmp.read()


def _drain(snmp: IO[str], timeout_s: float = 2) -> None:
    """Wait until queues on the way are empty, lest they disturb who comes next."""
    deadline = time.monotonic() + timeout_s
    last = -1
    while last != (last := arrived(_read(snmp))) and time.monotonic() < deadline:
        time.sleep(0.05)


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    """struct mmsghdr on 64-bit Linux."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint32), ("vectors", ctypes.POINTER(_IoVec)),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent_bytes", ctypes.c_uint32),
    ]  # fmt: skip


class _Sender(threading.Thread):
    """Sends the same datagram over a connected socket until stopped. ctypes gives the GIL away while it sends."""

    def __init__(self, connected: socket.socket, payload: bytes) -> None:
        super().__init__(name="flood", daemon=True)
        self._fd = connected.fileno()
        self._payload = ctypes.create_string_buffer(payload, len(payload))
        self._vector = _IoVec(ctypes.addressof(self._payload), len(payload))
        message = _Message(vectors=ctypes.pointer(self._vector), vector_count=1)
        self._batch = (_Message * _BATCH)(*[message] * _BATCH)
        self._stopping = False
        self.sent = 0

    def run(self) -> None:
        """Send; an error (a queue full, a peer's ICMP) sends the next one."""
        while not self._stopping:
            self.sent += max(0, _libc.sendmmsg(self._fd, self._batch, _BATCH, 0))

    def stop(self) -> None:
        """Stop and wait for the last batch."""
        self._stopping = True
        self.join()
