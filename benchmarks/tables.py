"""The subnet table: what a look-up, a whole new table and a check of one cost at 10, 1,000 and 100,000 subnets."""

from __future__ import annotations

import random
import time
from ipaddress import IPv4Address, IPv4Network, ip_network

from benchmarks.figures import Figures, Metric
from router.engine.interface import Snapshot
from router.model import Endpoint, Node, SubnetTable
from router.routes import snapshot

SIZES = (10, 1_000, 100_000)
_BASE = f"subnets:{SIZES[0]}"
_GROUP = "Subnet table"
LOOKUP = Metric("table_lookup_ns", "Look-up", "ns", _GROUP, False, _BASE, 1.2, f"subnets:{SIZES[-1]}")
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


def measure(figures: Figures, subnets: int, seconds: float) -> None:
    """Add one round at one size; at most half the time is spent on look-ups, a build takes what it takes."""
    name = f"subnets:{subnets}"
    figures.titles[name] = f"{subnets:,} subnets"
    table = subnet_table(subnets)
    start = time.perf_counter()
    routes = _snapshot(table)
    figures.add(BUILD, name, (time.perf_counter() - start) * 1e3)
    figures.add(LOOKUP, name, _lookup_ns(routes, subnets, seconds / 2))
    more = subnet_table(subnets + 1, 2)
    start = time.perf_counter()
    _snapshot(SubnetTable(3, (*table.nodes, more.nodes[-1])))
    figures.add(CHANGE, name, (time.perf_counter() - start) * 1e3)


def _snapshot(table: SubnetTable) -> Snapshot:
    return snapshot(table, "node0", (_NETWORK,), False)


def _lookup_ns(routes: Snapshot, subnets: int, seconds: float) -> float:
    """Look addresses all over the table up, the same ones in turn, as flows come and go."""
    random_numbers = random.Random(_SEED)
    first = int(IPv4Address("10.0.0.0"))
    packed = [
        IPv4Address(first + (random_numbers.randrange(subnets) << 8) + random_numbers.randrange(1, 255)).packed
        for _ in range(_ADDRESSES)
    ]
    lookup = routes.table.lookup
    if None in map(lookup, packed):
        raise AssertionError("a subnet of the table was not found in it")
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        for address in packed:
            lookup(address)
        best = min(best, time.perf_counter() - start)
    return best / _ADDRESSES * 1e9
