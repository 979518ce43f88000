"""Subnet table to routing snapshot: which prefix leads where, seen from one node. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from router.engine.interface import Snapshot
from router.ipam import node_address
from router.model import NextHop, Prefix, SubnetTable, Zone
from router.table import ForwardingTable

NEVER_CARRIED: tuple[Prefix, ...] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # "this network", RFC 1122 section 3.2.1.3
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, RFC 3927
            "224.0.0.0/4",  # multicast
            "255.255.255.255/32",  # limited broadcast
            "::/128",  # unspecified
            "::1/128",  # loopback
            "fe80::/10",  # link-local, RFC 4291 section 2.5.6
            "ff00::/8",  # multicast
        ),
    )
)
"""What no router forwards: meant for one link, one host or many receivers."""


def snapshot(table: SubnetTable, self_name: str, networks: tuple[Prefix, ...], egress: bool) -> Snapshot:
    """Build what an engine needs to know from a table that passed `subnets.check`. Takes 0.2 to 0.4 s for 100,000 nodes."""
    own = tuple(subnet for node in table.nodes if node.name == self_name for subnet in node.subnets)
    addresses = tuple(node_address(subnet).ip for subnet in own)
    peers = tuple(NextHop(node.name, node.endpoint, node.offload) for node in table.nodes if node.name != self_name)
    return Snapshot(
        table.version, ForwardingTable(_entries(table, self_name, networks, peers)), peers, egress, addresses
    )


def _entries(
    table: SubnetTable, self_name: str, networks: tuple[Prefix, ...], peers: tuple[NextHop, ...]
) -> Iterator[tuple[Prefix, NextHop | Zone]]:
    # A node may own a whole cluster range: then the range is its subnet's route, and has none of its own.
    ranges = set(networks)
    others = iter(peers)
    for node in table.nodes:
        hop = Zone.OWN_SUBNET if node.name == self_name else next(others)
        for subnet in node.subnets:
            ranges.discard(subnet)
            yield subnet, hop
    for network in networks:
        if network in ranges:
            yield network, Zone.CLUSTER
    for prefix in NEVER_CARRIED:
        yield prefix, Zone.NEVER
