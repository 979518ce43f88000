"""One engine among 1, 10 and 100 peers, in one thread and without root: what it costs to have many.

    frames to all peers in turn → engine ─ UDP over 127.0.0.1 → a socket a peer, drained and counted
    the same datagrams, inner addresses exchanged, from those sockets → engine → the Pod, counted

Each packet goes to another peer than the one before it: no train is longer than what one frame brings. That is the worst
case, and with one peer the best, so small packets show what trains are worth.
"""

from __future__ import annotations

import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from itertools import cycle, islice

from benchmarks.figures import Figures, Metric
from benchmarks.frames import TRAFFIC, Traffic
from benchmarks.measures import MeasureFailed
from benchmarks.rig import NETWORK, NO_BUDGET, Host, PodEnd, timed
from router.engine.choose import choose
from router.engine.interface import EngineSettings
from router.kernel.underlay import open_underlay
from router.model import Endpoint, Node, Offloads, SubnetTable
from router.routes import snapshot

SIZES = (1, 10, 100)
KINDS = tuple(traffic for traffic in TRAFFIC if traffic.name in ("udp64", "tso"))
_LOOPBACK = IPv4Address("127.0.0.1")
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104  # linux/udp.h
_IP_SOURCE, _IP_DESTINATION, _IP_ADDRESSES_END = 12, 16, 20  # RFC 791 section 3.1
_GENEVE_BYTES = 8


@dataclass(frozen=True, slots=True)
class _Train:
    """What one peer got at once: datagrams of equal length, and the last one perhaps shorter."""

    peer: int
    datagrams: bytes
    segment_bytes: int

    def returned(self) -> _Train:
        """Return the same from the peer to us. Exchanging addresses changes no checksum: the sum is the same."""
        back = bytearray(self.datagrams)
        for at in range(0, len(back), self.segment_bytes):
            ip = at + _GENEVE_BYTES + 4 * (back[at] & 0x3F)  # RFC 8926 section 3.4: option length in words
            source = back[ip + _IP_SOURCE : ip + _IP_DESTINATION]
            back[ip + _IP_SOURCE : ip + _IP_DESTINATION] = back[ip + _IP_DESTINATION : ip + _IP_ADDRESSES_END]
            back[ip + _IP_DESTINATION : ip + _IP_ADDRESSES_END] = source
        return _Train(self.peer, bytes(back), self.segment_bytes)


class _Rig:
    """An engine with one Pod, and sockets that stand for its peers."""

    def __init__(self, stack: ExitStack, engine: str, peers: int) -> None:
        own, *self._peers = (
            stack.enter_context(open_underlay(Endpoint(_LOOPBACK, 0), Offloads())) for _ in range(1 + peers)
        )
        self._own_address = own.getsockname()
        nodes = tuple(
            Node(f"n{index}", Endpoint(_LOOPBACK, underlay.getsockname()[1]), (ip_network(f"10.244.{index}.0/24"),))
            for index, underlay in enumerate((own, *self._peers))
        )
        _, factory = choose(engine)
        settings = EngineSettings()
        self._engine = factory(settings, snapshot(SubnetTable(1, nodes), "n0", (NETWORK,), False), own, Host())
        stack.callback(self._engine.close)
        self._pod = PodEnd(stack, self._engine, "10.244.0.10")

    def measure(self, traffic: Traffic, seconds: float) -> dict[str, float]:
        """Return packets a second out and in, each for half the time."""
        destinations = [IPv4Address(f"10.244.{1 + index}.10") for index in range(len(self._peers))]
        frames = cycle([traffic.frame(self._pod.address, destination) for destination in destinations])
        batches = []
        out_s, packets = 0.0, 0
        deadline = time.perf_counter() + seconds / 2
        turn = -(-len(destinations) // traffic.batch)
        while time.perf_counter() < deadline or len(batches) < turn:
            for frame in islice(frames, traffic.batch):
                self._pod.inject(frame)
            out_s += timed(lambda: self._engine.forward(traffic.batch))
            trains = self._drain()
            came = sum(-(-len(train.datagrams) // train.segment_bytes) for train in trains)
            if came != traffic.batch * traffic.packets:
                raise MeasureFailed(f"{traffic.title}: {came} of {traffic.batch * traffic.packets} came to the peers")
            packets += came
            if len(batches) < turn:
                batches.append([train.returned() for train in trains])
        rates = {"out": packets / out_s}
        in_s, packets = 0.0, 0
        deadline = time.perf_counter() + seconds / 2
        for batch in cycle(batches):
            for train in batch:
                self._send(train)
            in_s += timed(lambda: self._engine.forward(NO_BUDGET))
            packets += self._pod.expect(traffic)
            if time.perf_counter() > deadline:
                break
        return rates | {"in": packets / in_s}

    def _drain(self) -> list[_Train]:
        trains = []
        for index, peer in enumerate(self._peers):
            while True:
                try:
                    datagrams, control, _, _ = peer.recvmsg(1 << 18, 64)
                except BlockingIOError:
                    break
                sizes = [
                    struct.unpack("=i", value)[0]
                    for level, kind, value in control
                    if (level, kind) == (_SOL_UDP, _UDP_GRO)
                ]
                trains.append(_Train(index, datagrams, *(sizes or [len(datagrams)])))
        return trains

    def _send(self, train: _Train) -> None:
        control = []
        if len(train.datagrams) > train.segment_bytes:
            control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", train.segment_bytes))]
        self._peers[train.peer].sendmsg([train.datagrams], control, 0, self._own_address)


def metrics(engine: str) -> dict[tuple[str, str], Metric]:
    """Return the metrics of an engine by traffic and direction."""
    return {
        (traffic.name, leg): Metric(
            f"peers_{engine}_{traffic.name}_{leg}", f"{traffic.title}, {title}", "kpps",
            f"Scaling with peers, engine {engine} alone in one thread", base=f"peers:{SIZES[0]}",
        )
        for traffic in KINDS
        for leg, title in (("out", "Pod → wire"), ("in", "wire → Pod"))
    }  # fmt: skip


def measure(figures: Figures, engine: str, peers: int, seconds: float) -> None:
    """Add one round of one engine and one number of peers."""
    name = f"peers:{peers}"
    figures.titles[name] = f"{peers} peer{'s' * (peers > 1)}"
    of = metrics(engine)
    for traffic in KINDS:
        with ExitStack() as stack:
            rates = _Rig(stack, engine, peers).measure(traffic, seconds / len(KINDS))
        for leg, packets_per_s in rates.items():
            figures.add(of[traffic.name, leg], name, packets_per_s / 1e3)
