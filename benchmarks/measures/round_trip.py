"""Round trips on an idle network, one after the other: UDP to an echo process, ICMP to the Pod's kernel."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contenders.interface import Network
from benchmarks.figures import Metric, percentile
from benchmarks.measures.interface import MeasureFailed
from benchmarks.namespace import end

_PORT = 5302
_PAYLOAD_BYTES = 64
_LOST_S = 0.5
_WARM_UP = 20
_ECHO = Path(__file__).with_name("echo.py")


class RoundTrip:
    """p50 and p99 of UDP and ICMP round trips."""

    name = "rtt"
    title = "Round trips"

    def __init__(self) -> None:
        self.metrics = tuple(
            Metric(f"rtt_{kind}_p{percent}_us", f"{kind.upper()} p{percent}", "µs", "Round trip", False, "vxlan")
            for kind in ("udp", "icmp")
            for percent in (50, 99)
        )

    def suits(self, network: Network) -> bool:  # noqa: ARG002
        """Every network answers."""
        return True

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Keep no echo process about: it would be in the way of other measures."""

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Spend half the time on each kind."""
        figures = {}
        for kind, measure in (("udp", udp_round_trips), ("icmp", icmp_round_trips)):
            trips_us = measure(network, seconds / 2)
            for percent in (50, 99):
                figures[f"rtt_{kind}_p{percent}_us"] = percentile(trips_us, percent)
        return figures


def udp_round_trips(network: Network, seconds: float) -> list[float]:
    """Return µs of each ping-pong of 64 bytes."""
    way = network.across
    with way.server.inside(_udp_socket) as server, way.client.inside(_udp_socket) as client:
        server.bind((way.address, _PORT))
        client.connect((way.address, _PORT))
        echo = subprocess.Popen([sys.executable, _ECHO, str(server.fileno())], pass_fds=[server.fileno()])
        try:
            return _ping_pong(client, seconds, lambda number: struct.pack("!I60x", number), 0)
        finally:
            end(echo)


def icmp_round_trips(network: Network, seconds: float) -> list[float]:
    """Return µs of each echo of 64 bytes."""
    with network.across.client.inside(_icmp_socket) as client:
        client.connect((network.across.address, 0))
        # What comes back has its IP header before it; the number follows the ICMP header.
        return _ping_pong(client, seconds, _echo_request, 28)


def _ping_pong(client: socket.socket, seconds: float, message: Callable[[int], bytes], number_at: int) -> list[float]:
    # A receive timeout of the socket costs no system call a packet, as settimeout's poll would.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@qq", 0, int(_LOST_S * 1e6)))
    trips_us: list[float] = []
    lost = number = 0
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or number < _WARM_UP:
        number += 1
        request = message(number)
        wanted = number.to_bytes(4, "big")
        start = time.perf_counter_ns()
        client.send(request)
        try:
            while client.recv(2048)[number_at : number_at + 4] != wanted:
                pass
        except (BlockingIOError, ConnectionRefusedError):  # refused: the echo process is not up yet
            lost += number > _WARM_UP
            if lost > 10:
                raise MeasureFailed(f"{lost} of {number} round trips lost on an idle network") from None
            continue
        trips_us.append((time.perf_counter_ns() - start) / 1e3)
    return trips_us[_WARM_UP:]


def _echo_request(number: int) -> bytes:
    identity = os.getpid() & 0xFFFF
    words = (0x0800, 0, identity, number & 0xFFFF, number >> 16, number & 0xFFFF)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(f"!6H{_PAYLOAD_BYTES - 4}x", 0x0800, ~total & 0xFFFF, *words[2:])


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _icmp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
