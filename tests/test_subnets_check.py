"""Subnet tables that could not work are refused, with both offenders named."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import Kind, Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.check import Checked, check, overlap_with_local
from router.subnets.difference import difference

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


# Rows of a small pool, so that they are often in conflict: eight names, few hosts, subnets inside one another.
_SUBNETS = st.builds(
    lambda low, length: IPv4Network((int(IPv4Address("10.32.0.0")) | low << 4, length), strict=False),
    st.integers(0, 63),
    st.integers(22, 30),
) | st.builds(lambda low: IPv6Network(((0xFD000032 << 96) + (low << 64), 64)), st.integers(0, 31))
_ODD = st.sampled_from([ip_network("10.48.0.0/24"), ip_network("10.32.9.9/32"), ip_network("10.0.0.0/8")])
_ROWS = st.builds(
    lambda number, host, subnets: Node(f"n{number}", Endpoint(ip_address(host)), tuple(subnets)),
    st.integers(0, 15),
    st.integers(1, 40).map(lambda host: f"192.0.2.{host}") | st.sampled_from(["10.32.9.9", "2001:db8::1"]),
    st.lists(_SUBNETS, min_size=1, max_size=2) | st.lists(_SUBNETS | _ODD, max_size=2),
)


def verdict(checked: Checked, nodes: tuple[Node, ...]) -> str:
    """Return the refusal, or accept the table."""
    try:
        checked.accept(nodes, checked.check(nodes))
    except Refusal as refusal:
        return refusal.message
    return ""


def full_verdict(nodes: tuple[Node, ...]) -> str:
    try:
        check(nodes, NETWORKS, "a", SELF)
    except Refusal as refusal:
        return refusal.message
    return ""


def clashes(nodes: tuple[Node, ...]) -> int:
    """Count what could be refused: rows that cannot stand alone, and pairs that cannot stand together."""
    held = [(subnet, node) for node in nodes for subnet in node.subnets]
    pairs: list[tuple[Prefix, Prefix]] = [
        (one, two) for at, (one, _) in enumerate(held) for two, _ in held[:at] if one.version == two.version and one.overlaps(two)
    ]  # fmt: skip
    names, endpoints = [node.name for node in nodes], [node.endpoint for node in nodes]
    twice = sum(each in held[:at] for held in (names, endpoints) for at, each in enumerate(held))
    return len(pairs) + twice + sum(bool(full_verdict((node,))) for node in nodes)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_table_gets_the_verdict_of_a_full_check(data: st.DataObject) -> None:
    """Changes of one to three rows, on top of whatever passed last."""
    checked = Checked(NETWORKS, "a", SELF)
    base = tuple(node(f"b{i}", f"198.51.100.{i}", f"10.33.{i}.0/24") for i in range(40))
    assert verdict(checked, base) == ""
    accepted = base
    for _ in range(data.draw(st.integers(1, 6))):
        rows = list(accepted)
        if data.draw(st.integers(0, 3)) == 0:  # many at once: another way
            rows = [row for at, row in enumerate(rows) if at % 4]
        for _ in range(data.draw(st.integers(1, 3))):
            if data.draw(st.integers(0, 3)) == 0 and rows:
                del rows[data.draw(st.integers(0, len(rows) - 1))]
            else:
                row = data.draw(st.sampled_from(rows) | _ROWS if rows else _ROWS)
                places = [at for at, other in enumerate(rows) if other.name == row.name]
                if places and data.draw(st.booleans()):
                    rows[places[0]] = row
                else:
                    rows.insert(data.draw(st.integers(0, len(rows))), row)
        nodes = tuple(rows)
        said, wanted = verdict(checked, nodes), full_verdict(nodes)
        assert bool(said) == bool(wanted), (said, wanted)
        if said != wanted:
            assert clashes(nodes) > 1, (said, wanted)
        if not said:
            accepted = nodes


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (node("b7", "192.0.2.3", "10.32.3.0/24"), "node name b7 is there twice, at 198.51.100.7:6081 and at 192.0.2.3"),
        (node("c", "198.51.100.7", "10.32.3.0/24"), "nodes b7 and c both have endpoint 198.51.100.7:6081"),
        (node("c", "192.0.2.3", "10.33.7.128/25"), "subnet 10.33.7.0/24 of b7 overlaps 10.33.7.128/25 of c"),
        (node("c", "192.0.2.3", "10.33.6.0/23"), "subnet 10.33.6.0/24 of b6 overlaps 10.33.6.0/23 of c"),
        (node("c", "192.0.2.3", "10.33.7.0/24"), "subnet 10.33.7.0/24 is there twice, for b7 and c"),
        (node("c", "192.0.2.3"), "node c has no subnet"),
        (node("c", "10.32.9.9", "10.32.3.0/24"), "contains the endpoint 10.32.9.9:6081 of node c"),
        (node("a", "192.0.2.3", "10.32.3.0/24"), "says that a is at 192.0.2.3:6081, but its router's underlay is"),
    ],
)
def test_one_row_too_many_is_refused_by_name(other: Node, words: str) -> None:
    checked = Checked(NETWORKS, "a", SELF)
    base = tuple(node(f"b{i}", f"198.51.100.{i}", f"10.33.{i}.0/24") for i in range(20))
    before = tuple(node(f"d{i}", f"198.51.100.{i}", f"10.33.{i}.0/25") for i in range(20))
    for nodes in (before, before[1:], base):  # one change, then another table altogether
        assert verdict(checked, nodes) == ""
    for _ in range(2):  # a refusal leaves what was accepted as it was
        said = verdict(checked, (*base, other))
        assert words in said
        assert said == full_verdict((*base, other))
    assert verdict(checked, (*base[:7], *base[8:])) == ""
    assert verdict(checked, (*base[:7], *base[8:], replace(base[7], name="c"))) == ""


@settings(deadline=None)
@given(st.lists(_ROWS, max_size=12, unique_by=lambda row: row.name), st.lists(_ROWS, max_size=4), st.randoms())
def test_a_difference_makes_one_table_of_the_other(
    old_rows: list[Node], entering: list[Node], random_: random.Random
) -> None:
    kept = [replace(row) if random_.random() < 0.5 else row for row in old_rows if random_.random() < 0.8]
    for row in entering:
        kept.insert(random_.randint(0, len(kept)), row)
    old, new = tuple(old_rows), tuple(kept)
    found = difference(old, new)
    assert old[: found.first] + new[found.first : found.new_end] + old[found.old_end :] == new
    left = Counter(old)
    left.subtract(found.removed)
    left.update(found.added)
    assert +left == Counter(new)
    assert not set(found.removed) & set(new)
    assert len(difference(new, new)) == 0 == len(difference((), ()))
