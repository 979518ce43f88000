"""The whole truth table of `decide`: every origin, every destination, both families."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

import pytest

from router.decide import MALFORMED, TOO_BIG, TTL_EXPIRED, Origin, Place, decide_addresses, decide_transit
from router.model import NODE_KEY, AttachmentKey, DropReason, Endpoint, NextHop, Verdict, VerdictKind, Zone
from router.routes import NEVER_CARRIED
from router.table import ForwardingTable
from router.wire.packet import IpHeader

ENDPOINT = Endpoint(ip_address("192.0.2.2"))
PEER = NextHop("two", ENDPOINT)
THIRD = NextHop("three", Endpoint(ip_address("192.0.2.3")))
POD, OTHER = AttachmentKey("pod", "eth0"), AttachmentKey("other", "eth0")

WHERE = {
    "pod": ("10.42.1.2", "fd42:1::2"),
    "other": ("10.42.1.3", "fd42:1::3"),
    "node": ("10.42.1.1", "fd42:1::1"),
    "nobody": ("10.42.1.99", "fd42:1::99"),
    "peer": ("10.42.2.9", "fd42:2::9"),
    "third": ("10.42.3.9", "fd42:3::9"),
    "unowned": ("10.42.200.9", "fd42:200::9"),
    "outside": ("9.9.9.9", "2001:db8::9"),
    "never": ("224.0.0.1", "ff02::1"),
}
"""Who or what is where, in both families."""


def packed(name: str, family: int) -> bytes:
    return ip_address(WHERE[name][family]).packed


def place(egress: bool = True) -> Place:
    entries: list[tuple[object, NextHop | Zone]] = [
        (ip_network("10.42.0.0/16"), Zone.CLUSTER), (ip_network("fd42::/16"), Zone.CLUSTER),
        (ip_network("10.42.1.0/24"), Zone.OWN_SUBNET), (ip_network("fd42:1::/64"), Zone.OWN_SUBNET),
        (ip_network("10.42.2.0/24"), PEER), (ip_network("fd42:2::/64"), PEER),
        (ip_network("10.42.3.0/24"), THIRD), (ip_network("fd42:3::/64"), THIRD),
        *((prefix, Zone.NEVER) for prefix in NEVER_CARRIED),
    ]  # fmt: skip
    keys = {"pod": POD, "other": OTHER, "node": NODE_KEY}
    holders = {packed(name, family): key for name, key in keys.items() for family in (0, 1)}
    return Place(ForwardingTable(entries), holders, egress)  # type: ignore[arg-type]


def addresses_of(name: str) -> frozenset[bytes]:
    return frozenset(packed(name, family) for family in (0, 1))


ORIGINS = {
    "pod": Origin(POD, addresses_of("pod")),
    "node": Origin(NODE_KEY, addresses_of("node")),
    "peer": Origin(peer=PEER),
    "router": Origin(addresses=addresses_of("node")),
}
HELD = {
    "pod": {"pod"},
    "node": {"node", "outside"},
    "peer": {"peer"},
    "router": {"node"},
}
"""Which sources each may use."""


def refusal(kind: VerdictKind, reason: DropReason) -> Verdict:
    return Verdict(kind, None, reason)


def expected(origin: str, source: str, destination: str, egress: bool) -> Verdict:
    """State the rules the other way round: a row of the table for each destination."""
    if destination == "never":
        return refusal(VerdictKind.DROP, DropReason.NOT_ROUTABLE)
    if source not in HELD[origin]:
        return refusal(VerdictKind.DROP, DropReason.SPOOFED_SOURCE)
    no_route = refusal(VerdictKind.REJECT, DropReason.NO_ROUTE)
    outside = (
        Verdict(VerdictKind.LOCAL, NODE_KEY) if egress else refusal(VerdictKind.REJECT, DropReason.EGRESS_DISABLED)
    )
    hops = {"peer": PEER, "third": THIRD}
    if destination in hops:
        if origin == "peer":
            return refusal(VerdictKind.REJECT, DropReason.WRONG_NODE)
        if origin == "node" and source == "outside":
            return refusal(VerdictKind.DROP, DropReason.SPOOFED_SOURCE)
        return Verdict(VerdictKind.TUNNEL, hops[destination])
    return {
        "pod": Verdict(VerdictKind.LOCAL, POD),
        "other": Verdict(VerdictKind.LOCAL, OTHER),
        "node": Verdict(VerdictKind.LOCAL, NODE_KEY),
        "nobody": refusal(VerdictKind.REJECT, DropReason.NO_ATTACHMENT),
        "unowned": no_route,
        "outside": no_route if origin in {"peer", "node"} else outside,
    }[destination]


@pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
@pytest.mark.parametrize("egress", [True, False], ids=["egress", "closed"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_every_row(origin: str, egress: bool, family: int) -> None:
    here = place(egress)
    for source, destination in product(WHERE, WHERE):
        addresses = packed(source, family) + packed(destination, family)
        said = decide_addresses(addresses, ORIGINS[origin], here)
        assert said == expected(origin, source, destination, egress), f"{origin}: {source} → {destination}"


def test_every_verdict_is_whole() -> None:
    """LOCAL and TUNNEL have a target and no reason, the others a reason and no target."""
    for origin, family, egress in product(ORIGINS.values(), (0, 1), (True, False)):
        for source, destination in product(WHERE, WHERE):
            said = decide_addresses(packed(source, family) + packed(destination, family), origin, place(egress))
            goes_on = said.kind in {VerdictKind.LOCAL, VerdictKind.TUNNEL}
            assert goes_on == (said.target is not None) == (said.reason is None)


@pytest.mark.parametrize("prefix", NEVER_CARRIED, ids=str)
def test_never_carried_is_never_carried(prefix: object) -> None:
    for edge in (prefix[0], prefix[-1]):  # type: ignore[index]
        family = 0 if edge.version == 4 else 1
        for origin in ORIGINS.values():
            said = decide_addresses(packed("pod", family) + edge.packed, origin, place())
            assert said.reason is DropReason.NOT_ROUTABLE
        said = decide_addresses(edge.packed + packed("other", family), ORIGINS["node"], place())
        assert said.reason is DropReason.SPOOFED_SOURCE


@pytest.mark.parametrize("changed", [{"node": "other"}, {"endpoint": THIRD.endpoint}])
def test_a_peer_of_another_name_or_endpoint_is_another(changed: dict[str, Any]) -> None:
    """A table that moved a subnet makes its old owner a liar."""
    moved = Origin(peer=replace(PEER, **changed))
    said = decide_addresses(packed("peer", 0) + packed("pod", 0), moved, place())
    assert said.reason is DropReason.SPOOFED_SOURCE


@pytest.mark.parametrize("changed", [{"offload": False}, {"epoch": 7}, {"up": False}, {"mtu_bytes": 1300}])
def test_a_peer_of_which_something_else_is_known_is_the_same(changed: dict[str, Any]) -> None:
    known = Origin(peer=replace(PEER, **changed))
    said = decide_addresses(packed("peer", 0) + packed("pod", 0), known, place())
    assert said == Verdict(VerdictKind.LOCAL, POD)


@pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_peer_that_is_down_rejects_what_it_would_be_sent(origin: str, family: int) -> None:
    """Nothing else changes: neither what others get, nor what it may send itself."""
    up, down = place(), place()
    down = replace(down, table=down_in(down.table))
    for source, destination in product(WHERE, WHERE):
        addresses = packed(source, family) + packed(destination, family)
        was = decide_addresses(addresses, ORIGINS[origin], up)
        said = decide_addresses(addresses, ORIGINS[origin], down)
        if was.target == PEER:
            assert said == refusal(VerdictKind.REJECT, DropReason.PEER_DOWN)
        else:
            assert said == was


def down_in(table: ForwardingTable[NextHop | Zone]) -> ForwardingTable[NextHop | Zone]:
    """Return the table with PEER flagged down."""
    return ForwardingTable((prefix, replace(PEER, up=False) if to == PEER else to) for prefix, to in table.items())


@pytest.mark.parametrize("may_fragment", [True, False])
@pytest.mark.parametrize("hop", [True, False])
def test_transit(may_fragment: bool, hop: bool) -> None:
    for hop_limit, size in product((0, 1, 2, 64, 255), (20, 999, 1000, 1001, 65535)):
        header = IpHeader(4, 20, hop_limit, 17, may_fragment, 0, bytes(8))
        said = decide_transit(header, size, 1000, hop)
        if hop and hop_limit < 2:
            assert said is TTL_EXPIRED
        elif size > 1000 and not may_fragment:
            assert said is TOO_BIG
        else:
            assert said is None


def test_the_constants_say_what_they_are_called() -> None:
    assert (MALFORMED.kind, MALFORMED.reason) == (VerdictKind.DROP, DropReason.MALFORMED)
    assert (TTL_EXPIRED.kind, TTL_EXPIRED.reason) == (VerdictKind.REJECT, DropReason.TTL_EXPIRED)
    assert (TOO_BIG.kind, TOO_BIG.reason) == (VerdictKind.REJECT, DropReason.TOO_BIG)
