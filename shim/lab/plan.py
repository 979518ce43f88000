"""What a lab consists of: every name, address and link of it, worked out before anything is made. Pure.

    pwlab-NAME-underlay   bridge br0 with a port n1, n2 … for every node: the wire between the nodes
    pwlab-NAME-n1         a node: eth0 on that bridge, and a router
    pwlab-NAME-n1p1       a Pod of it: a bare namespace, which the router gives an eth0
    pwlab-NAME-outside    on demand: a host beyond the cluster, the nodes' default gateway
    pwlab-NAME-store      on demand: etcd, of which the nodes lease their subnets

Devices are in the lab's own namespaces, so only the namespaces' names have to differ between labs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from shim.lab.errors import LabError

CLUSTER_V4 = IPv4Network("10.42.0.0/16")
CLUSTER_V6 = IPv6Network("fd42::/48")
UNDERLAY_V4 = IPv4Network("192.168.64.0/24")
UNDERLAY_V6 = IPv6Network("fd64::/64")
OUTSIDE_V4 = IPv4Address("198.51.100.1")
OUTSIDE_V6 = IPv6Address("2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): the outside host answers at them, beyond the underlay."""

MAX_NODES = 64
MAX_PODS_PER_NODE = 200
MAX_MTU_BYTES = 65535
_OVERHEAD_BYTES = {4: 48, 6: 68}  # IP + UDP + Geneve with its option
_MIN_IPV6_MTU_BYTES = 1280  # RFC 8200 section 5
MIN_TTL_S, MAX_TTL_S = 3, 86400
"""What a router takes for a lease."""
STORES = ("file", "etcd")
STORE_PORT = 2379
_STORE_HOST, _GATEWAY_HOST = 253, 254
"""On the underlay, behind all nodes."""
_DYNAMIC_NEIGHBOURS_NODES = 8
"""A kernel keeps 1024 neighbours for all its namespaces (net.ipv4.neigh.default.gc_thresh3): larger labs write them down."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Station:
    """Whoever is on the underlay: its name is that of its port on the bridge."""

    name: str
    netns: str
    host: int
    """Number of its address on the underlay."""

    @property
    def mac(self) -> str:
        """Hardware address of its eth0: locally administered, and the same in every lab."""
        return f"02:70:77:00:00:{self.host:02x}"


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
    """With a table in a file; a node that leases gets others."""

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
    store: str = "file"
    """Where routers have their subnets from: "file", one table for all, or "etcd", of which they lease them."""
    etcd_ttl_s: int = 10
    """How long a lease outlives its router."""
    members: tuple[int, ...] = ()
    """Numbers of the nodes there are; empty: 1 to node_count, as at the start."""
    networks: tuple[str, ...] = (str(CLUSTER_V4), str(CLUSTER_V6))
    """The cluster ranges; others than these only where subnets are leased."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LabError(f"lab name {self.name!r} must be 1 to 24 of a-z, 0-9 and '-', and not begin or end with '-'")
        if not 1 <= self.node_count <= MAX_NODES:
            raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {self.node_count}")
        if self.members and not set(self.members) <= set(range(1, MAX_NODES + 1)):
            raise LabError(f"nodes are numbered 1 to {MAX_NODES}, not {self.members}")
        if self.store not in STORES:
            raise LabError(f"the store is one of {', '.join(STORES)}, not {self.store!r}")
        if self.networks != (str(CLUSTER_V4), str(CLUSTER_V6)) and self.store == "file":
            raise LabError(f"with its subnets in a file, the ranges of a lab are {CLUSTER_V4} and {CLUSTER_V6}")
        if not MIN_TTL_S <= self.etcd_ttl_s <= MAX_TTL_S:
            raise LabError(f"etcd_ttl_s is {MIN_TTL_S} to {MAX_TTL_S} s, not {self.etcd_ttl_s}")
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
    def store_netns(self) -> str:
        """Namespace of etcd, if there is one."""
        return self._netns("store")

    @property
    def store_addresses(self) -> tuple[IPv4Interface, IPv6Interface]:
        """Where etcd is on the underlay."""
        return _on_underlay(_STORE_HOST)

    @property
    def store_url(self) -> str:
        """Where routers find etcd."""
        v4, v6 = self.store_addresses
        host = str(v4.ip) if self.underlay_family == 4 else f"[{v6.ip}]"
        return f"http://{host}:{STORE_PORT}"

    @property
    def gateway(self) -> tuple[IPv4Interface, IPv6Interface]:
        """Where the outside host is on the underlay: the last address of it."""
        return _on_underlay(_GATEWAY_HOST)

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        """All nodes."""
        return tuple(self._node(index) for index in self.members or range(1, self.node_count + 1))

    @property
    def stations(self) -> tuple[Station, ...]:
        """Everybody on the underlay."""
        found = [Station(node.name, node.netns, node.index) for node in self.nodes]
        if self.store == "etcd":
            found.append(Station("store", self.store_netns, _STORE_HOST))
        if self.with_outside:
            found.append(Station("outside", self.outside_netns, _GATEWAY_HOST))
        return tuple(found)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace but those of Pods."""
        return (self.underlay_netns, *(station.netns for station in self.stations))

    def with_one_more(self) -> LabPlan:
        """Return the plan with one more node, of the lowest number that is free."""
        taken = [node.index for node in self.nodes]
        free = next((index for index in range(1, MAX_NODES + 1) if index not in taken), None)
        if free is None:
            raise LabError(f"lab {self.name} has {MAX_NODES} nodes, and no lab can have more")
        return replace(self, members=(*taken, free))

    def without(self, name: str) -> LabPlan:
        """Return the plan without that node."""
        left = tuple(node.index for node in self.nodes if node.name != name)
        if not left:
            raise LabError(f"{name} is the last node of lab {self.name}: take the lab down instead")
        return replace(self, members=left)

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
    return [*lines, *(line for station in plan.stations for line in port_links(plan, station))]


def port_links(plan: LabPlan, station: Station) -> list[str]:
    """Return the lines of ip(8) that wire a station to the bridge, to be run in the bridge's namespace."""
    mtu, port = plan.underlay_mtu_bytes, station.name
    there = f"peer name eth0 mtu {mtu} address {station.mac} netns {station.netns}"
    return [f"link add {port} mtu {mtu} type veth {there}", f"link set {port} master br0 up"]


def node_links(plan: LabPlan, node: NodePlan) -> list[str]:
    """Return the lines of ip(8) that set a node's eth0 up, to be run in its namespace."""
    lines = [*_eth0(node.underlay), *_neighbours(plan, node.index)]
    if plan.with_outside:
        lines += [f"route add default via {gateway.ip}" for gateway in plan.gateway]
    return lines


def store_links(plan: LabPlan) -> list[str]:
    """Return the lines of ip(8) for the namespace of etcd."""
    return [*_eth0(plan.store_addresses), *_neighbours(plan, _STORE_HOST)]


def outside_links(plan: LabPlan) -> list[str]:
    """Return the lines of ip(8) for the outside host.

    It knows no way to the cluster range: only what a node masqueraded gets an answer.
    """
    return [
        *_eth0(plan.gateway),
        *_neighbours(plan, _GATEWAY_HOST),
        f"addr add {OUTSIDE_V4}/32 dev lo",
        f"addr add {OUTSIDE_V6}/128 dev lo nodad",
    ]


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


def _neighbours(plan: LabPlan, own_host: int) -> list[str]:
    """Say who has which hardware address, whoever may ever be there: permanent ones count towards no limit.

    net/core/neighbour.c neigh_alloc(): exempt_from_gc.
    """
    if len(plan.nodes) <= _DYNAMIC_NEIGHBOURS_NODES:
        return []  # as in real life
    return [
        f"neigh add {interface.ip} lladdr {Station('', '', host).mac} dev eth0 nud permanent"
        for host in (*range(1, MAX_NODES + 1), _STORE_HOST, _GATEWAY_HOST)
        for interface in _on_underlay(host)
        if host != own_host
    ]
