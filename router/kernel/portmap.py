"""Ports of the node that lead to Pods, as nftables has them: maps looked up once a connection, however many there are.

    from outside, from Pods   prerouting  a local address and a mapped port? → dnat to the Pod
    from the node itself      output      the same
    towards podwire0          postrouting from the cluster or from 127.0.0.0/8? → masquerade: the router takes packets of the
                                          node from its own addresses and from outside the cluster only (decide.py), and
                                          the answer must come back this way
                                          (route_localnet, which uplink.py sets, lets 127.0.0.1 leave)

A table of our own beside masquerade.py's, which is replaced whole now and then. IPv6's ::1 cannot be reached: the kernel
lets no packet from ::1 leave by another interface (RFC 4291 section 2.5.3), and has no route_localnet for IPv6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from router.kernel import nft
from router.model import NODE_KEY, Address, PortMapping, Prefix, Protocol

_TABLE = "inet podwire_ports"
_WORDS = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
_WITHOUT = "map no ports"


@dataclass(frozen=True, slots=True)
class Forward:
    """One mapping for one IP version: where it leads."""

    mapping: PortMapping
    pod: Address

    @property
    def map_name(self) -> str:
        """The map it is in: by port, or by address and port."""
        return f"{'any' if self.mapping.host_address is None else 'at'}{self.pod.version}"

    @property
    def key(self) -> str:
        """Its key in that map."""
        where = f"{self.mapping.host_address} . " if self.mapping.host_address is not None else ""
        return f"{where}{self.mapping.protocol} . {self.mapping.host_port}"

    @property
    def element(self) -> str:
        """Its element in that map."""
        return f"{self.key} : {self.pod} . {self.mapping.container_port}"


def replace(forwards: Iterable[Forward], networks: tuple[Prefix, ...], egress: bool) -> None:
    """Put these forwards in force and no others. Raise Refusal(STATE)."""
    lines = [f"table {_TABLE}", f"delete table {_TABLE}", *_table(networks, egress)]
    nft.run("\n".join([*lines, *_elements("add", forwards), ""]), _WITHOUT)


def add(forwards: Collection[Forward]) -> None:
    """Put more forwards in force. Raise Refusal(STATE), and nothing has changed."""
    nft.run("\n".join([*_elements("add", forwards), ""]), _WITHOUT)


def remove(forwards: Collection[Forward]) -> None:
    """Take forwards away. Raise Refusal(STATE)."""
    lines = (f"delete element {_TABLE} {each.map_name} {{ {each.key} }}" for each in forwards)
    nft.run("\n".join([*lines, ""]), _WITHOUT)


def delete_table() -> None:
    """Take the last of it off the node. Raise Refusal(STATE)."""
    nft.delete(_TABLE, _WITHOUT)


def remove_all() -> None:
    """Take all of it off the node; no error where nftables is not installed."""
    nft.remove(_TABLE)


def forget_flows(forwards: Collection[Forward]) -> None:
    """Make UDP flows that know a port by what it led to before be looked up anew. Raise Refusal(STATE).

    A client that keeps sending keeps its conntrack entry alive for ever, and with it a Pod that is gone. TCP needs
    nothing: its peer resets what it does not know.
    """
    wanted: set[tuple[int, int]] = {
        (each.mapping.host_port, each.pod.version) for each in forwards if each.mapping.protocol is Protocol.UDP
    }
    if wanted:
        from router.kernel import conntrack  # late: see tun.py

        conntrack.forget_udp(wanted, _WITHOUT)


def _elements(verb: str, forwards: Iterable[Forward]) -> list[str]:
    by_map: dict[str, list[str]] = {}
    for each in forwards:
        by_map.setdefault(each.map_name, []).append(each.element)
    return [f"{verb} element {_TABLE} {name} {{ {', '.join(elements)} }}" for name, elements in by_map.items()]


def _table(networks: tuple[Prefix, ...], egress: bool) -> list[str]:
    maps, lookups, sources = [], [], []
    for version, (word, kind) in _WORDS.items():
        port = "inet_proto . inet_service"
        maps += [
            f"  map at{version} {{ type {kind} . {port} : {kind} . inet_service; }}",
            f"  map any{version} {{ type {port} : {kind} . inet_service; }}",
        ]
        lookups += [
            f"    dnat {word} to {word} daddr . meta l4proto . th dport map @at{version}",
            f"    meta nfproto ipv{version} dnat {word} to meta l4proto . th dport map @any{version}",
        ]
        inside = [str(network) for network in networks if network.version == version]
        inside += ["127.0.0.0/8"] if version == 4 else []
        if inside:
            # Without egress Pods may not answer who is outside the cluster: then all of it comes from the node.
            saddr = f"{word} saddr {{ {', '.join(inside)} }} " if egress else f"meta nfproto ipv{version} "
            sources.append(f'    oifname "{NODE_KEY.if_name}" ct status dnat {saddr}masquerade')
    return [
        f"table {_TABLE} {{",
        *maps,
        "  chain mapped {",
        *lookups,
        "  }",
        "  chain prerouting {",
        "    type nat hook prerouting priority dstnat; policy accept;",
        "    fib daddr type local jump mapped",
        "  }",
        "  chain output {",
        "    type nat hook output priority -100; policy accept;",
        "    fib daddr type local jump mapped",
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        *sources,
        "  }",
        "}",
    ]
