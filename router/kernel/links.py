"""What this machine's interfaces say: whose address is where, how much they carry."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

from pyroute2 import IPRoute

from router.errors import Kind, Refusal
from router.model import Address, Prefix

_IFF_UP, _IFF_LOWER_UP = 1, 0x10000  # linux/if.h


def local_prefixes(besides: str) -> list[tuple[str, Prefix]]:
    """Return (interface name, prefix) of every address of this machine, but for one interface of our own."""
    with IPRoute() as ip:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        found: list[tuple[str, Prefix]] = []
        for entry in ip.get_addr():
            name = names.get(entry["index"], "?")
            if name not in (besides, "lo"):
                address = entry.get_attr("IFA_ADDRESS")
                found.append((name, ip_interface(f"{address}/{entry['prefixlen']}").network))
        return found


def mtu_of(address: Address) -> int:
    """Return the MTU in bytes of the interface that has an address. Raise Refusal(STATE) when none has."""
    with IPRoute() as ip:
        link = _link_with(ip, address)
        if link is not None:
            return int(link.get_attr("IFLA_MTU"))
    raise Refusal(
        Kind.STATE, f"underlay address {address} is on no interface of this node: give one that is (--underlay)"
    )


def link_down(address: Address) -> str:
    """Return why the interface that has an address carries nothing now, as "eth0 has no carrier"; empty when it does."""
    with IPRoute() as ip:
        link = _link_with(ip, address)
        if link is None:
            return f"{address} is on no interface any more"
        name, flags = link.get_attr("IFLA_IFNAME"), link["flags"]
        if not flags & _IFF_UP:
            return f"{name} is down"
        return "" if flags & _IFF_LOWER_UP else f"{name} has no carrier"


def _link_with(ip: IPRoute, address: Address) -> Any:
    for entry in ip.get_addr():
        held = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
        if held == str(address):
            (link,) = ip.get_links(entry["index"])
            return link
    return None
