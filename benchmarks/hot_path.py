"""The hot path alone, without root: two engines joined by loopback UDP, Unix sockets in place of TUN devices.

    frame → SEQPACKET socketpair → engine A ─ UDP over 127.0.0.1 ─ engine B → SEQPACKET socketpair → counted

Each leg is timed by itself, around `forward` only; what is lost on the way makes the figure void.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address, ip_network

from benchmarks.figures import Figures, Metric
from benchmarks.frames import MSS_BYTES, TRAFFIC, Traffic
from benchmarks.measures import MeasureFailed
from benchmarks.rig import NETWORK, NO_BUDGET, Host, PodEnd, timed
from router.engine.choose import choose
from router.engine.interface import Engine, EngineSettings
from router.kernel.underlay import open_underlay
from router.model import Endpoint, Node, Offloads, SubnetTable
from router.routes import snapshot
from router.wire.packet import VNET_BYTES, VnetHeader, parse_ip

_LEGS = {"out": "Pod → wire", "in": "wire → Pod", "beside": "Pod → Pod"}
METRICS = {
    (leg, unit): Metric(f"hot_{leg}_{unit}", title, word, f"Hot path in one thread, {word}; super-packets: 44 × 1400 B")
    for unit, word in (("kpps", "kpps"), ("gbps", "Gbit/s"))
    for leg, title in _LEGS.items()
}


class _Rig:
    """Engines of two nodes; two Pods on the first, one on the second."""

    def __init__(self, stack: ExitStack, engine: str) -> None:
        _, factory = choose(engine)
        sockets = [
            stack.enter_context(open_underlay(Endpoint(IPv4Address("127.0.0.1"), 0), Offloads())) for _ in range(2)
        ]
        nodes = tuple(
            Node(f"n{index}", Endpoint(IPv4Address("127.0.0.1"), underlay.getsockname()[1]),
                 (ip_network(f"10.244.{index}.0/24"),))
            for index, underlay in enumerate(sockets)
        )  # fmt: skip
        table = SubnetTable(1, nodes)
        settings = EngineSettings()
        self.engines: list[Engine] = []
        for node, underlay in zip(nodes, sockets, strict=True):
            made = factory(settings, snapshot(table, node.name, (NETWORK,), False), underlay, Host())
            stack.callback(made.close)
            self.engines.append(made)
        self.client = PodEnd(stack, self.engines[0], "10.244.0.10")
        self.neighbour = PodEnd(stack, self.engines[0], "10.244.0.11")
        self.server = PodEnd(stack, self.engines[1], "10.244.1.10")

    def across(self, traffic: Traffic, seconds: float) -> dict[str, float]:
        """Return packets a second of one engine sending and of the other receiving."""
        frame = traffic.frame(self.client.address, self.server.address)
        first, second = self.engines
        out_s = in_s = 0.0
        packets = 0
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            self.client.inject(frame, traffic.batch)
            out_s += timed(lambda: first.forward(traffic.batch))
            in_s += timed(lambda: second.forward(NO_BUDGET))
            packets += self.server.expect(traffic)
        return {"out": packets / out_s, "in": packets / in_s}

    def beside(self, traffic: Traffic, seconds: float) -> dict[str, float]:
        """Return packets a second between two Pods of one node."""
        frame = traffic.frame(self.client.address, self.neighbour.address)
        spent_s, packets = 0.0, 0
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            self.client.inject(frame, traffic.batch)
            spent_s += timed(lambda: self.engines[0].forward(traffic.batch))
            packets += self.neighbour.expect(traffic)
        return {"beside": packets / spent_s}


def measure(figures: Figures, engine: str, traffic: Traffic, seconds: float) -> None:
    """Add one round of one engine and one kind of traffic, each of the two ways getting half the time."""
    name = f"{engine}:{traffic.name}"
    figures.titles[name] = f"{engine}: {traffic.title}"
    with ExitStack() as stack:
        rig = _Rig(stack, engine)
        rates = rig.across(traffic, seconds / 2) | rig.beside(traffic, seconds / 2)
    _add(figures, name, traffic, rates)


def measure_segments(figures: Figures, traffic: Traffic, seconds: float) -> None:
    """Add one round of cutting and joining super-packets in memory, without any system call."""
    from router.wire import geneve
    from router.wire.merge import Merger
    from router.wire.segment import gso_shape
    from router.wire.split import Splitter

    frame = memoryview(traffic.frame(IPv4Address("10.244.0.10"), IPv4Address("10.244.1.10")))
    packet, vnet = frame[VNET_BYTES:], VnetHeader.read(frame, 0)
    header = parse_ip(packet, 0, len(packet))
    shape = header and gso_shape(packet, header, vnet)
    if header is None or shape is None:
        raise MeasureFailed(f"the router takes no {traffic.title} for a super-packet")
    splitter, merger = Splitter(1), Merger()
    (train,) = splitter.split(packet, header, vnet, shape)
    encap = geneve.decode(train.datagrams, 0, train.segment_bytes, 1)
    first = parse_ip(train.datagrams, geneve.HEADER_BYTES, train.segment_bytes)
    assert isinstance(encap, geneve.Encapsulation)
    assert first is not None
    if merger.run(train, 0, encap, first, shape) != traffic.packets:
        raise MeasureFailed(f"the router does not join {traffic.title} again")

    def join() -> None:
        merger.merge(train, 0, merger.run(train, 0, encap, first, shape), encap, first, shape)

    name = f"segment:{traffic.name}"
    figures.titles[name] = f"cut, join: {traffic.title}"
    rates = {
        "out": traffic.packets * _rate(lambda: splitter.split(packet, header, vnet, shape), seconds / 2),
        "in": traffic.packets * _rate(join, seconds / 2),
    }
    _add(figures, name, traffic, rates)


def _add(figures: Figures, name: str, traffic: Traffic, rates: dict[str, float]) -> None:
    packet_bytes = min(traffic.payload_bytes, MSS_BYTES)
    for leg, packets_per_s in rates.items():
        figures.add(METRICS[leg, "kpps"], name, packets_per_s / 1e3)
        figures.add(METRICS[leg, "gbps"], name, packets_per_s * packet_bytes * 8 / 1e9)


def _rate(action: Callable[[], object], seconds: float) -> float:
    """Return how often a second the action can be done."""
    count, spent_s = 0, 0.0
    while spent_s < seconds:
        start = time.perf_counter()
        for _ in range(20):
            action()
        spent_s += time.perf_counter() - start
        count += 20
    return count / spent_s


__all__ = ["METRICS", "TRAFFIC", "measure", "measure_segments"]
