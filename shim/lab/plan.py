"""What a lab consists of: every name, address and link of it, worked out before anything is made. Pure.

    pwlab-NAME-underlay   bridge br0 with a port n1, n2 … for every node: the wire between the nodes
    pwlab-NAME-n1         a node: eth0 on that bridge, and a router
    pwlab-NAME-n1p1       a Pod of it: a bare namespace, which the router gives an eth0
    pwlab-NAME-outside    on demand: a host beyond the cluster, the nodes' default gateway

Devices are in the lab's own namespaces, so only the namespaces' names have to differ between labs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from shim.lab.errors import LabError

CLUSTER_V4 = IPv4Network("10.42.0.0/16")
CLUSTER_V6 = IPv6Network("fd42::/48")
UNDERLAY_V4 = IPv4Network("192.168.64.0/24")
UNDERLAY_V6 = IPv6Network("fd64::/64")
OUTSIDE_V4 = IPv4Address("198.51.100.1")
OUTSIDE_V6 = IPv6Address("2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): the outside host answers at them, beyond the underlay."""

MAX_NODES = 16
MAX_PODS_PER_NODE = 200
MAX_MTU_BYTES = 65535
_OVERHEAD_BYTES = {4: 48, 6: 68}  # IP + UDP + Geneve with its option
_MIN_IPV6_MTU_BYTES = 1280  # RFC 8200 section 5
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: what it is called, where it is on the underlay, which Pod ranges it owns."""

    index: int
    """From 1."""
    name: str
    netns: str
    underlay: tuple[IPv4Interface, IPv6Interface]
    endpoint: str
    """Underlay address at which its router receives, as the subnet table says it."""
    subnets: tuple[IPv4Network, IPv6Network]

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """The node's own overlay addresses: the first of each subnet."""
        v4, v6 = self.subnets
        return v4[1], v6[1]


@dataclass(frozen=True, slots=True)
class LabPlan:
    """A lab as it was asked for. LabError when that cannot be."""

    name: str
    node_count: int = 2
    pods_per_node: int = 1
    underlay_mtu_bytes: int = 1500
    underlay_family: int = 4
    with_outside: bool = False
    router_args: tuple[str, ...] = ()
    """More flags for every `podwire router run`."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LabError(f"lab name {self.name!r} must be 1 to 24 of a-z, 0-9 and '-', and not begin or end with '-'")
        if not 1 <= self.node_count <= MAX_NODES:
            raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {self.node_count}")
        if not 0 <= self.pods_per_node <= MAX_PODS_PER_NODE:
            raise LabError(f"a node has 0 to {MAX_PODS_PER_NODE} Pods, not {self.pods_per_node}")
        if self.underlay_family not in _OVERHEAD_BYTES:
            raise LabError(f"the underlay family is 4 or 6, not {self.underlay_family}")
        least = _MIN_IPV6_MTU_BYTES + _OVERHEAD_BYTES[self.underlay_family]
        if not least <= self.underlay_mtu_bytes <= MAX_MTU_BYTES:
            raise LabError(
                f"underlay MTU {self.underlay_mtu_bytes} is not in {least} to {MAX_MTU_BYTES}: "
                f"below that the Pods' IPv6 does not get its {_MIN_IPV6_MTU_BYTES} bytes"
            )

    @property
    def underlay_netns(self) -> str:
        """Namespace of the bridge."""
        return self._netns("underlay")

    @property
    def outside_netns(self) -> str:
        """Namespace of the host beyond the cluster, if there is one."""
        return self._netns("outside")

    @property
    def gateway(self) -> tuple[IPv4Interface, IPv6Interface]:
        """Where the outside host is on the underlay: the last address of it."""
        return _on_underlay(254)

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        """All nodes."""
        return tuple(self._node(index) for index in range(1, self.node_count + 1))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace but those of Pods."""
        outside = (self.outside_netns,) if self.with_outside else ()
        return (self.underlay_netns, *outside, *(node.netns for node in self.nodes))

    def pod_netns(self, pod: str) -> str:
        """Return the namespace of the Pod of that name."""
        return self._netns(pod)

    def _netns(self, part: str) -> str:
        return f"pwlab-{self.name}-{part}"  # a part has no '-', so no two labs can make the same name

    def _node(self, index: int) -> NodePlan:
        name = f"n{index}"
        underlay = _on_underlay(index)
        address = underlay[0 if self.underlay_family == 4 else 1].ip
        subnets = (
            IPv4Network((int(CLUSTER_V4.network_address) + (index << 8), 24)),
            IPv6Network((int(CLUSTER_V6.network_address) + (index << 64), 64)),
        )
        return NodePlan(index, name, self._netns(name), underlay, str(address), subnets)


def underlay_links(plan: LabPlan) -> list[str]:
    """Return the lines of ip(8) that make the underlay, to be run in its namespace."""
    mtu = plan.underlay_mtu_bytes
    # No snooping: there is no querier here, and IPv6 neighbour discovery is multicast.
    lines = [f"link add br0 mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up"]
    ends = [(node.name, node.netns) for node in plan.nodes]
    if plan.with_outside:
        ends.append(("outside", plan.outside_netns))
    for port, netns in ends:
        lines.append(f"link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}")
        lines.append(f"link set {port} master br0 up")
    return lines


def node_links(plan: LabPlan, node: NodePlan) -> list[str]:
    """Return the lines of ip(8) that set a node's eth0 up, to be run in its namespace."""
    lines = _eth0(node.underlay)
    if plan.with_outside:
        lines += [f"route add default via {gateway.ip}" for gateway in plan.gateway]
    return lines


def outside_links(plan: LabPlan) -> list[str]:
    """Return the lines of ip(8) for the outside host.

    It knows no way to the cluster range: only what a node masqueraded gets an answer.
    """
    return [*_eth0(plan.gateway), f"addr add {OUTSIDE_V4}/32 dev lo", f"addr add {OUTSIDE_V6}/128 dev lo nodad"]


_BOTH_FAMILIES = (
    # Stated, as a new namespace may inherit the host's settings (net.core.devconf_inherit_init_net).
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/lo/disable_ipv6", "0"),
    # Addresses here are unique: no second of waiting for duplicates at each.
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
)

POD_SYSCTLS = (
    *_BOTH_FAMILIES,
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
)

NODE_SYSCTLS = (
    *_BOTH_FAMILIES,
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    # Strict, as hardened hosts have it: every address is reached by the interface it comes in by, Pods by podwire0.
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
)

UNDERLAY_SYSCTLS = (
    # A bridge and nothing else: it has no addresses and answers to nobody.
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
)


def _on_underlay(host: int) -> tuple[IPv4Interface, IPv6Interface]:
    v4, v6 = UNDERLAY_V4, UNDERLAY_V6
    return IPv4Interface((v4[host], v4.prefixlen)), IPv6Interface((v6[host], v6.prefixlen))


def _eth0(addresses: tuple[IPv4Interface, IPv6Interface]) -> list[str]:
    v4, v6 = addresses
    # Without nodad a router that starts at once could not bind to it: it is tentative for a moment, whatever accept_dad.
    return [f"addr add {v4} dev eth0", f"addr add {v6} dev eth0 nodad", "link set eth0 up"]
