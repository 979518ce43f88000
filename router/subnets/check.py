"""What a subnet table must satisfy before it comes into force. Pure; each Refusal names both offenders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from operator import itemgetter

from router.errors import Kind, Refusal
from router.model import Address, Endpoint, Node, Prefix
from router.routes import NEVER_CARRIED

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

_Span = tuple[int, int, int]
"""Version, first and last address as numbers."""


def check(nodes: tuple[Node, ...], networks: tuple[Prefix, ...], self_name: str, underlay: Endpoint) -> None:
    """Refuse a table that could not work, as seen from the node of that name which receives at `underlay`.

    Takes O(n log n) time: 0.3 to 0.6 s for 100,000 subnets.
    """
    check_networks(networks, underlay)
    _check_names(nodes)
    _check_endpoints(nodes, networks, self_name, underlay)
    _check_subnets(nodes, networks)


def check_name(name: str) -> None:
    """Refuse what is no node name: the label or host name that people call the machine by."""
    if not _NAME.fullmatch(name):
        raise Refusal(
            Kind.INVALID,
            f"node name {name!r} must be 1 to 253 letters, digits, '.', '_' or '-', and begin and end with the first two",
        )


def check_networks(networks: tuple[Prefix, ...], underlay: Endpoint) -> None:
    """Refuse cluster ranges that overlap each other, the underlay address, or what no router carries."""
    if not networks:
        raise Refusal(Kind.INVALID, "no cluster range is given: name at least one network, such as 10.32.0.0/12")
    for index, network in enumerate(networks):
        for other in networks[:index]:
            if _overlap(network, other):
                raise Refusal(Kind.INVALID, f"cluster ranges {other} and {network} overlap: give disjoint ones")
        for never in NEVER_CARRIED:
            if _overlap(network, never):
                raise Refusal(Kind.INVALID, f"cluster range {network} overlaps {never}, which is never routed")
        if underlay.address in network:
            raise Refusal(
                Kind.INVALID,
                f"cluster range {network} contains this node's underlay address {underlay.address}: "
                "choose a range that no machine of the underlay is in",
            )


def overlap_with_local(networks: Iterable[Prefix], local_prefixes: Iterable[tuple[str, Prefix]]) -> None:
    """Refuse a cluster range that overlaps a prefix (name of its interface, prefix) which this machine is part of."""
    ranges = tuple(networks)
    for interface, prefix in local_prefixes:
        for network in ranges:
            if _overlap(network, prefix):
                raise Refusal(
                    Kind.STATE,
                    f"cluster range {network} overlaps {prefix} of interface {interface}: "
                    "choose another --network, or move that interface to other addresses",
                )


def _check_names(nodes: tuple[Node, ...]) -> None:
    first: dict[str, Node] = {}
    for node in nodes:
        check_name(node.name)
        if (other := first.setdefault(node.name, node)) is not node:
            raise Refusal(
                Kind.INVALID,
                f"node name {node.name} is there twice, at {other.endpoint} and at {node.endpoint}: rename one",
            )


def _check_endpoints(nodes: tuple[Node, ...], networks: tuple[Prefix, ...], self_name: str, underlay: Endpoint) -> None:
    first: dict[Endpoint, Node] = {}
    spans = [(network, _span(network)) for network in networks]
    for node in nodes:
        endpoint = node.endpoint
        if (other := first.setdefault(endpoint, node)) is not node:
            raise Refusal(
                Kind.INVALID, f"nodes {other.name} and {node.name} both have endpoint {endpoint}: correct one"
            )
        if endpoint.address.version != underlay.address.version:
            raise Refusal(
                Kind.INVALID,
                f"node {node.name} has endpoint {endpoint}, but the underlay of {self_name} is IPv"
                f"{underlay.address.version} ({underlay}): all endpoints must be of one IP version",
            )
        if node.name == self_name and endpoint != underlay:
            raise Refusal(
                Kind.INVALID,
                f"the table says that {self_name} is at {endpoint}, but its router's underlay is {underlay}: correct one",
            )
        if network := _within(endpoint.address, spans):
            raise Refusal(
                Kind.INVALID,
                f"cluster range {network} contains the endpoint {endpoint} of node {node.name}: "
                "the underlay must lie outside the cluster's networks",
            )


def _check_subnets(nodes: tuple[Node, ...], networks: tuple[Prefix, ...]) -> None:
    spans = [_span(network) for network in networks]
    held: list[tuple[_Span, Prefix, Node]] = []
    for node in nodes:
        if not node.subnets:
            raise Refusal(Kind.INVALID, f"node {node.name} has no subnet: give it one, or take it out of the table")
        for subnet in node.subnets:
            if subnet.prefixlen == subnet.max_prefixlen:
                raise Refusal(
                    Kind.INVALID,
                    f"subnet {subnet} of node {node.name} is a single address, which leaves none for Pods: "
                    f"use /{subnet.max_prefixlen - 1} or shorter",
                )
            held.append((_span(subnet), subnet, node))
    held.sort(key=itemgetter(0))
    # By first address, any overlap at all shows between two neighbours: what lies between two that overlap does too.
    for (one, subnet, node), (two, inner, other) in pairwise(held):
        if one[0] == two[0] and two[1] <= one[2]:
            what = f"is there twice, for {node.name} and" if subnet == inner else f"of {node.name} overlaps {inner} of"
            raise Refusal(Kind.INVALID, f"subnet {subnet} {what} {other.name}: each address has one owner, correct one")
    for span, subnet, node in held:
        if not any(v == span[0] and first <= span[1] and span[2] <= last for v, first, last in spans):
            text = ", ".join(map(str, networks))
            raise Refusal(
                Kind.INVALID, f"subnet {subnet} of node {node.name} is outside the cluster's networks ({text})"
            )


def _span(prefix: Prefix) -> _Span:
    first = int(prefix.network_address)
    return prefix.version, first, first + (1 << (prefix.max_prefixlen - prefix.prefixlen)) - 1


def _overlap(one: Prefix, other: Prefix) -> bool:
    a, b = _span(one), _span(other)
    return a[0] == b[0] and a[1] <= b[2] and b[1] <= a[2]


def _within(address: Address, spans: list[tuple[Prefix, _Span]]) -> Prefix | None:
    number, version = int(address), address.version
    return next((prefix for prefix, (v, low, high) in spans if v == version and low <= number <= high), None)
