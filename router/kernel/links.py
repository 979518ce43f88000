"""What this machine's interfaces say: whose address is where, how much they carry."""

from __future__ import annotations

from ipaddress import ip_interface

from pyroute2 import IPRoute

from router.errors import Kind, Refusal
from router.model import Address, Prefix


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
        for entry in ip.get_addr():
            held = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
            if held == str(address):
                (link,) = ip.get_links(entry["index"])
                return int(link.get_attr("IFLA_MTU"))
    raise Refusal(
        Kind.STATE, f"underlay address {address} is on no interface of this node: give one that is (--underlay)"
    )
