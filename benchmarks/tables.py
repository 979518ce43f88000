"""The subnet table at 10, 1,000 and 100,000 subnets: a look-up, a whole new table, one node more; and what engines make of it.

The table is Python's and the same for all engines; each makes of it what it looks things up in. `decide`, called from
Python a packet at a time, is a look-up and what surrounds it: for a compiled engine mostly the call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, ip_network

from benchmarks.figures import Figures, Metric, Promise
from benchmarks.frames import TRAFFIC
from benchmarks.rig import Host, PodEnd, timed
from router.engine.choose import choose
from router.engine.interface import EngineSettings, Snapshot
from router.kernel.underlay import open_underlay
from router.model import Endpoint, Node, Offloads, SubnetTable, VerdictKind
from router.routes import snapshot
from router.wire.packet import VNET_BYTES

SIZES = (10, 1_000, 100_000)
_BASE = f"subnets:{SIZES[0]}"
_GROUP, _GROUP_OF_ENGINES = "Subnet table", "Subnet table in an engine"
LOOKUP = Metric("table_lookup_ns", "Look-up", "ns", _GROUP, False, _BASE, (Promise(1.2, of=f"subnets:{SIZES[-1]}"),))
BUILD = Metric("table_build_ms", "New table built", "ms", _GROUP, False)
CHANGE = Metric("table_change_ms", "One node more", "ms", _GROUP, False)
_NETWORK = ip_network("10.0.0.0/7")
_ADDRESSES = 1024
_SEED = 6081


def subnet_table(subnets: int, version: int = 1, own: Endpoint | None = None) -> SubnetTable:
    """Return a cluster of that many nodes with one /24 each; the first is `own`."""
    first = int(IPv4Address("10.0.0.0"))
    underlay = int(IPv4Address("172.16.0.1"))
    nodes = (
        Node(f"node{index}", own if own and not index else Endpoint(IPv4Address(underlay + index)),
             (IPv4Network((first + (index << 8), 24)),))
        for index in range(subnets)
    )  # fmt: skip
    return SubnetTable(version, tuple(nodes))


def engine_metrics(engine: str) -> tuple[Metric, Metric]:
    """Return what `decide` of an engine costs, and what taking a table up."""
    return (
        Metric(f"table_decide_{engine}_ns", f"{engine}: decide", "ns", _GROUP_OF_ENGINES, False, _BASE),
        Metric(f"table_take_up_{engine}_ms", f"{engine}: taken up", "ms", _GROUP_OF_ENGINES, False),
    )


def measure(figures: Figures, subnets: int, engines: Sequence[str], seconds: float) -> None:
    """Add one round at one size; a third of the time is spent on look-ups, what a build takes comes on top."""
    name = f"subnets:{subnets}"
    figures.titles[name] = f"{subnets:,} subnets"
    table = subnet_table(subnets)
    start = time.perf_counter()
    routes = _snapshot(table)
    figures.add(BUILD, name, (time.perf_counter() - start) * 1e3)
    figures.add(LOOKUP, name, _lookup_ns(routes, subnets, seconds / 3))
    more = subnet_table(subnets + 1, 2)
    start = time.perf_counter()
    _snapshot(SubnetTable(3, (*table.nodes, more.nodes[-1])))
    figures.add(CHANGE, name, (time.perf_counter() - start) * 1e3)
    for engine in engines:
        decide, take_up = engine_metrics(engine)
        decide_ns, taken_up_ms = _engine_costs(engine, routes, subnets, seconds / 3)
        figures.add(decide, name, decide_ns)
        figures.add(take_up, name, taken_up_ms)


def _snapshot(table: SubnetTable) -> Snapshot:
    return snapshot(table, "node0", (_NETWORK,), False)


def _lookup_ns(routes: Snapshot, subnets: int, seconds: float) -> float:
    """Look addresses all over the table up, the same ones in turn, as flows come and go."""
    packed = [address.packed for address in _addresses(subnets)]
    lookup = routes.table.lookup
    if None in map(lookup, packed):
        raise AssertionError("a subnet of the table was not found in it")
    return _best_ns(lookup, packed, seconds)


def _engine_costs(engine: str, routes: Snapshot, subnets: int, seconds: float) -> tuple[float, float]:
    """Return ns to decide a packet, and ms to take the table up in the place of a small one."""
    small = _snapshot(subnet_table(2))
    _, factory = choose(engine)
    with ExitStack() as stack:
        underlay = stack.enter_context(open_underlay(Endpoint(IPv4Address("127.0.0.1"), 0), Offloads()))
        made = factory(EngineSettings(), small, underlay, Host())
        stack.callback(made.close)
        pod = PodEnd(stack, made, "10.0.0.10")
        take_up_s = timed(lambda: made.replace_routes(routes))
        # Not to the own subnet, which is a matter of attachments.
        packets = [
            TRAFFIC[0].frame(pod.address, address)[VNET_BYTES:]
            for address in _addresses(subnets)
            if address not in IPv4Network("10.0.0.0/24")
        ]
        if any(made.decide(packet, pod.key).kind is not VerdictKind.TUNNEL for packet in packets):
            raise AssertionError(f"engine {engine} does not tunnel to a subnet of the table")
        return _best_ns(lambda packet: made.decide(packet, pod.key), packets, seconds), take_up_s * 1e3


def _addresses(subnets: int) -> list[IPv4Address]:
    random_numbers = random.Random(_SEED)
    first = int(IPv4Address("10.0.0.0"))
    return [
        IPv4Address(first + (random_numbers.randrange(subnets) << 8) + random_numbers.randrange(1, 255))
        for _ in range(_ADDRESSES)
    ]


def _best_ns(action: Callable[[bytes], object], arguments: Sequence[bytes], seconds: float) -> float:
    """Return ns a call, of the fastest turn through the arguments."""
    best_s = float("inf")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or best_s == float("inf"):
        start = time.perf_counter()
        for argument in arguments:
            action(argument)
        best_s = min(best_s, time.perf_counter() - start)
    return best_s / len(arguments) * 1e9
