"""Round trips one after the other: UDP to an echo process, ICMP to the Pod's kernel; on an idle network, and beside a stream."""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders.interface import Network, Way
from benchmarks.figures import Metric, Promise, percentile
from benchmarks.measures.interface import MeasureFailed
from benchmarks.measures.stream import saturating, serve
from benchmarks.namespace import end

_PORT = 5302
_PAYLOAD_BYTES = 64
_LOST_S = 0.5
_WARM_UP = 20
_MOST_LOST = 10
_SETTLE_S = 0.7
_ECHO = Path(__file__).with_name("echo.py")


@dataclass(slots=True)
class Trips:
    """What came of one ping-pong."""

    times_us: list[float] = field(default_factory=list)
    lost: int = 0

    @property
    def lost_percent(self) -> float:
        """How many never came back."""
        return 100 * self.lost / max(1, self.lost + len(self.times_us))


class RoundTrip:
    """p50 and p99 of UDP and ICMP round trips on an idle network."""

    name = "rtt"
    title = "Round trips"

    def __init__(self, promises: tuple[Promise, ...]) -> None:
        self.metrics = tuple(
            Metric(
                f"rtt_{kind}_p{percent}_us",
                f"{kind.upper()} p{percent}",
                "µs",
                "Round trip",
                False,
                "vxlan",
                promises if (kind, percent) == ("udp", 50) else (),
            )
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
            trips = measure(network.across, seconds / 2)
            if trips.lost > _MOST_LOST:
                raise MeasureFailed(f"{trips.lost} of {len(trips.times_us)} round trips lost on an idle network")
            for percent in (50, 99):
                figures[f"rtt_{kind}_p{percent}_us"] = percentile(trips.times_us, percent)
        return figures


class UnderLoad:
    """UDP round trips beside a TCP stream that takes all there is: between its own two Pods, and between two others."""

    name = "load"
    title = "Round trips beside a TCP stream"

    def __init__(self, worst_p99_ms: float) -> None:
        promises = {"p99": (Promise(worst_p99_ms),)}
        self._metrics = {
            (where, figure): Metric(f"load_{where}_{figure}", figure, unit, f"UDP round trip beside a TCP stream, {pods}",
                                    False, promises=promises.get(figure, ()))
            for where, pods in (("same", "between its Pods"), ("other", "between other Pods of its nodes"))
            for figure, unit in (("p50", "ms"), ("p99", "ms"), ("max", "ms"), ("lost", "%"))
        }  # fmt: skip
        self.metrics = tuple(self._metrics.values())

    def suits(self, network: Network) -> bool:  # noqa: ARG002
        """Every network has one way at least; where there is no other, there are no figures of it."""
        return True

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Start the stream's server, unless another measure has."""
        serve(stack, network.across)

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Let the stream have its full speed first, then spend half the time on each pair of Pods."""
        ways = {"same": network.across} | ({"other": network.other} if network.other else {})
        span_s = max(0.2, seconds / len(ways))
        figures: dict[str, float] = {}
        with saturating(network.across, _SETTLE_S + len(ways) * (span_s + 2)) as stream:
            time.sleep(_SETTLE_S)
            for where, way in ways.items():
                trips = udp_round_trips(way, span_s)
                if stream.poll() is not None:
                    raise MeasureFailed(f"the stream ended before its time: iperf3 status {stream.returncode}")
                if not trips.times_us:
                    raise MeasureFailed(f"none of {trips.lost} round trips came back, {where} Pods")
                found = {"p50": percentile(trips.times_us, 50), "p99": percentile(trips.times_us, 99)}
                found["max"] = max(trips.times_us)
                for figure, value_us in found.items():
                    figures[self._metrics[where, figure].key] = value_us / 1e3
                figures[self._metrics[where, "lost"].key] = trips.lost_percent
        return figures


def udp_round_trips(way: Way, seconds: float) -> Trips:
    """Return what came of a ping-pong of 64 bytes."""
    with way.server.inside(_udp_socket) as server, way.client.inside(_udp_socket) as client:
        server.bind((way.address, _PORT))
        client.connect((way.address, _PORT))
        echo = subprocess.Popen([sys.executable, _ECHO, str(server.fileno())], pass_fds=[server.fileno()])
        try:
            return _ping_pong(client, seconds, lambda number: struct.pack("!I60x", number), 0)
        finally:
            end(echo)


def icmp_round_trips(way: Way, seconds: float) -> Trips:
    """Return what came of echoes of 64 bytes."""
    with way.client.inside(_icmp_socket) as client:
        client.connect((way.address, 0))
        # What comes back has its IP header before it; the number follows the ICMP header.
        return _ping_pong(client, seconds, _echo_request, 28)


def _ping_pong(client: socket.socket, seconds: float, message: Callable[[int], bytes], number_at: int) -> Trips:
    # A receive timeout of the socket costs no system call a packet, as settimeout's poll would.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@qq", 0, int(_LOST_S * 1e6)))
    trips = Trips()
    number = 0
    deadline = math.inf
    while time.perf_counter() < deadline:
        number += 1
        warm = number > _WARM_UP
        if number == _WARM_UP:  # by then the echo process is up
            deadline = time.perf_counter() + seconds
        request = message(number)
        wanted = number.to_bytes(4, "big")
        start = time.perf_counter_ns()
        try:
            client.send(request)
            while client.recv(2048)[number_at : number_at + 4] != wanted:
                pass
        except (BlockingIOError, ConnectionRefusedError):
            trips.lost += warm
            continue
        if warm:
            trips.times_us.append((time.perf_counter_ns() - start) / 1e3)
    return trips


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
