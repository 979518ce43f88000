"""Subnet tables that could not work are refused, with both offenders named."""

from __future__ import annotations

import random
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from router.errors import Kind, Refusal
from router.model import Endpoint, Node
from router.subnets.check import check, overlap_with_local

NETWORKS = (ip_network("10.32.0.0/12"), ip_network("fd00:32::/32"))
SELF = Endpoint(ip_address("192.0.2.1"))


def node(name: str, endpoint: str, *subnets: str, port: int = 6081) -> Node:
    return Node(name, Endpoint(ip_address(endpoint), port), tuple(map(ip_network, subnets)))


A = node("a", "192.0.2.1", "10.32.1.0/24", "fd00:32:0:1::/64")
B = node("b", "192.0.2.2", "10.32.2.0/24", "fd00:32:0:2::/64")


def test_a_good_table() -> None:
    check((A, B, node("c", "192.0.2.2", "10.33.0.0/16", "10.32.3.0/24", port=7000)), NETWORKS, "a", SELF)
    check((), NETWORKS, "a", SELF)
    check((B,), NETWORKS, "a", SELF)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (node("a", "192.0.2.3", "10.32.3.0/24"), "node name a is there twice, at 192.0.2.1:6081 and at 192.0.2.3:6081"),
        (node("c", "192.0.2.2", "10.32.3.0/24"), "nodes b and c both have endpoint 192.0.2.2:6081"),
        (node("c", "192.0.2.3", "10.32.2.0/24"), "subnet 10.32.2.0/24 is there twice, for b and c"),
        (node("c", "192.0.2.3", "10.32.2.128/25"), "subnet 10.32.2.0/24 of b overlaps 10.32.2.128/25 of c"),
        (node("c", "192.0.2.3", "10.32.0.0/16"), "subnet 10.32.0.0/16 of c overlaps 10.32.1.0/24 of a"),
        (node("c", "192.0.2.3", "fd00:32:0:2::/64"), "subnet fd00:32:0:2::/64 is there twice, for b and c"),
        (node("c", "192.0.2.3", "fd00:32::/48"), "subnet fd00:32::/48 of c overlaps fd00:32:0:1::/64 of a"),
        (node("c", "192.0.2.3", "10.32.3.0/24", "10.32.3.0/25"), "subnet 10.32.3.0/25 of c overlaps 10.32.3.0/24 of c"),
        (
            node("c", "192.0.2.3", "10.48.0.0/24"),
            "subnet 10.48.0.0/24 of node c is outside the cluster's networks (10.32",
        ),
        (node("c", "192.0.2.3", "10.0.0.0/8"), "subnet 10.0.0.0/8 of c overlaps 10.32.1.0/24 of a"),
        (node("c", "192.0.2.3", "10.32.3.1/32"), "subnet 10.32.3.1/32 of node c is a single address"),
        (node("c", "192.0.2.3"), "node c has no subnet"),
        (node("c", "10.32.9.9", "10.32.3.0/24"), "range 10.32.0.0/12 contains the endpoint 10.32.9.9:6081 of node c"),
        (
            node("c", "2001:db8::3", "10.32.3.0/24"),
            "node c has endpoint [2001:db8::3]:6081, but the underlay of a is IPv4",
        ),
        (node("c d", "192.0.2.3", "10.32.3.0/24"), "node name 'c d' must be"),
        (node("", "192.0.2.3", "10.32.3.0/24"), "node name '' must be"),
        (node("c\n", "192.0.2.3", "10.32.3.0/24"), "node name 'c\\n' must be"),
    ],
)
def test_both_offenders_are_named(other: Node, words: str) -> None:
    for nodes in ((A, B, other), (B, A, other)):
        with pytest.raises(Refusal) as refused:
            check(nodes, NETWORKS, "a", SELF)
        assert refused.value.kind is Kind.INVALID
        assert words in refused.value.message


def test_the_own_entry_must_be_where_the_router_is() -> None:
    with pytest.raises(
        Refusal, match=r"says that a is at 192\.0\.2\.1:6081, but its router's underlay is 192\.0\.2\.9"
    ):
        check((A, B), NETWORKS, "a", Endpoint(ip_address("192.0.2.9")))


def test_networks_are_checked_too() -> None:
    with pytest.raises(Refusal, match=r"10\.32\.0\.0/12 contains this node's underlay address 10\.32\.0\.1"):
        check((), NETWORKS, "a", Endpoint(ip_address("10.32.0.1")))
    with pytest.raises(Refusal, match="no cluster range is given"):
        check((), (), "a", SELF)


def test_local_interfaces() -> None:
    overlap_with_local(NETWORKS, [("eth0", ip_network("192.0.2.0/24")), ("lo", ip_network("::1/128"))])
    with pytest.raises(Refusal, match=r"cluster range 10\.32\.0\.0/12 overlaps 10\.0\.0\.0/8 of interface docker0"):
        overlap_with_local(NETWORKS, [("eth0", ip_network("192.0.2.0/24")), ("docker0", ip_network("10.0.0.0/8"))])


def test_random_tables_against_all_pairs() -> None:
    rng = random.Random(20)
    refused = 0
    for _ in range(300):
        prefixes = []
        for _ in range(rng.randint(2, 6)):
            length = rng.randint(25, 30)
            prefixes.append(
                IPv4Network((int(IPv4Address("10.32.0.0")) | rng.getrandbits(6) << 4, length), strict=False)
            )
        nodes = tuple(Node(f"n{i}", Endpoint(ip_address(f"192.0.2.{i}")), (p,)) for i, p in enumerate(prefixes, 10))
        overlap = any(one.overlaps(two) for i, one in enumerate(prefixes) for two in prefixes[:i])
        try:
            check(nodes, NETWORKS, "a", SELF)
        except Refusal:
            refused += 1
            assert overlap
        else:
            assert not overlap
    assert 20 < refused < 280


def test_a_hundred_thousand_subnets_are_quick() -> None:
    lowest4, lowest6, underlay = int(IPv4Address("10.0.0.0")), 0xFD000032 << 96, int(IPv4Address("172.16.0.0"))
    nodes = tuple(
        Node(
            f"n{i}",
            Endpoint(IPv4Address(underlay + i)),
            (IPv4Network((lowest4 + i * 64, 26)), IPv6Network((lowest6 + (i << 64), 64))),
        )
        for i in range(50_000)
    )
    networks = (ip_network("10.0.0.0/8"), ip_network("fd00:32::/32"))
    started_s = time.perf_counter()
    check(nodes, networks, "n1", nodes[1].endpoint)
    # 0.4 to 0.7 s on an idle machine; comparing all pairs would take an hour.
    assert time.perf_counter() - started_s < 10
