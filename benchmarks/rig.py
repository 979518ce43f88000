"""What an engine stands in when it is measured alone: a daemon that has nothing to say, and Pods that are sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address, ip_interface, ip_network

from benchmarks.frames import Traffic
from benchmarks.measures import MeasureFailed
from router.engine.interface import Engine, EngineSettings
from router.model import Attachment, AttachmentKey, Endpoint
from router.wire.packet import IPV4_BYTES, VNET_BYTES, VnetHeader

NETWORK = ip_network("10.244.0.0/16")
NO_BUDGET = 1 << 20
"""A budget that never runs out."""


class Host:
    """A daemon that has nothing to say but what loopback is like."""

    def path_mtu(self, endpoint: Endpoint) -> int:  # noqa: ARG002
        """Return what Ethernet has."""
        return 1500

    def attachment_lost(self, key: AttachmentKey, why: str) -> None:
        """Void the measure."""
        raise MeasureFailed(f"attachment {key} lost: {why}")

    def offload_failed(self, feature: str, why: str) -> None:
        """Void the measure."""
        raise MeasureFailed(f"{feature}: {why}")

    def probe_answered(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> None:
        """Nobody asks here."""

    def question_came(self, endpoint: Endpoint, datagram: bytes, received_ns: int) -> None:
        """Nobody asks here."""

    def engine_failed(self, why: str) -> None:
        """Void the measure."""
        raise MeasureFailed(why)


class PodEnd:
    """The Pod's side of an attachment: a SEQPACKET socket in a TUN device's place."""

    def __init__(self, stack: ExitStack, engine: Engine, address: str) -> None:
        """Attach it to an engine, with an IPv4 address of its node."""
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.key = AttachmentKey(address, "eth0")
        self.address = IPv4Address(address)
        interface = ip_interface(f"{address}/24")
        engine.attach(Attachment(self.key, "", (interface,), EngineSettings().mtu_bytes), theirs.fileno())
        self._socket = ours
        self._buffer = bytearray(VNET_BYTES + 65536)

    def inject(self, frame: bytes, count: int = 1) -> None:
        """Send a frame, as the Pod's kernel would."""
        for _ in range(count):
            os.write(self._socket.fileno(), frame)

    def drain(self) -> int:
        """Read what came, return how many packets it stood for."""
        packets = 0
        while True:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return packets
            step = VnetHeader.read(self._buffer, 0).gso_size
            packets += max(1, (size - VNET_BYTES - IPV4_BYTES) // step) if step else 1

    def expect(self, traffic: Traffic) -> int:
        """Read a whole batch and return how many packets it was. MeasureFailed when some are missing."""
        came, sent = self.drain(), traffic.batch * traffic.packets
        if came != sent:
            raise MeasureFailed(f"{traffic.title}: {came} of {sent} packets came out of the engine")
        return came


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds it took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
