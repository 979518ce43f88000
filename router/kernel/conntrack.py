"""The kernel's memory of UDP flows, and how to make it forget some."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_UDP
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from router.errors import Kind, Refusal
from router.kernel import netns
from router.model import Address

_MOST_FILTERS = 32


def forget_udp(wanted: set[tuple[int, int]], remedy: str) -> None:
    """Forget the flows towards this node's own addresses at any of (port, IP version). Raise Refusal(STATE); `remedy` says how to do without."""
    # In a thread of its own: closing a conntrack socket ends the event loop that pyroute2 keeps for the thread.
    try:
        netns.inside(netns.OWN, lambda: _forget(wanted))
    except (NetlinkError, OSError) as error:
        raise Refusal(
            Kind.STATE,
            f"the node's UDP flows cannot be listed ({error}), and would lead to Pods that are gone: "
            f"is nf_conntrack_netlink there? Else {remedy}",
        ) from None


def _forget(wanted: set[tuple[int, int]]) -> None:
    """Delete the conntrack entries of UDP towards this node's own addresses at any of (port, IP version)."""
    own = _own_addresses()
    for family in {AF_INET if version == 4 else AF_INET6 for _, version in wanted}:
        ports = {port for port, version in wanted if (version == 4) == (family == AF_INET)}
        with NFCTSocket(family) as conntrack:
            for asked in _filters(ports):
                # Listed first: a deletion ends the dump it falls into.
                for flow in [_original(entry, family) for entry in conntrack.dump(tuple_orig=asked)]:
                    destination = ip_address(flow.daddr)
                    local = destination in own or destination.is_loopback
                    # Linux before 5.8 knows no filter, and lists everything.
                    if flow.proto == IPPROTO_UDP and local and flow.dport in ports:
                        with suppress(NetlinkError):  # it ended meanwhile
                            conntrack.entry("del", tuple_orig=flow)


def _filters(ports: set[int]) -> list[Any]:
    """Return what to ask the kernel for: it passes over a flow in 0.2 us, and Python takes 200 us for one."""
    if len(ports) > _MOST_FILTERS:
        return [NFCTAttrTuple(proto=IPPROTO_UDP)]
    return [NFCTAttrTuple(proto=IPPROTO_UDP, dport=port) for port in ports]


def _original(entry: Any, family: int) -> Any:
    """Return the direction in which a conntrack entry's first packet went."""
    return NFCTAttrTuple.from_netlink(family, entry.get_attr("CTA_TUPLE_ORIG"))


def _own_addresses() -> set[Address]:
    with IPRoute() as ip:
        held = (entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS") for entry in ip.get_addr())
        return {ip_address(text) for text in held}
