"""Look whether an interface in a namespace is as it was made; changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6

from router.kernel import netns
from router.model import Address, Prefix

_IFF_UP = 1  # linux/if.h


def missing(
    netns_path: str, if_name: str, addresses: Collection[Address], routes: Collection[Prefix]
) -> tuple[str, ...]:
    """Return what an interface lacks, a few words each: itself, being up, addresses, routes through it.

    Raise Refusal when its namespace cannot be entered.
    """
    return netns.inside(netns_path, lambda: tuple(_missing(if_name, addresses, routes)))


def _missing(if_name: str, addresses: Collection[Address], routes: Collection[Prefix]) -> Iterator[str]:
    from pyroute2 import IPRoute  # late: see tun.py

    with IPRoute() as ip:
        found = ip.link_lookup(ifname=if_name, kind="tun")
        if not found:
            yield f"interface {if_name}"
            return
        (link,) = ip.get_links(found[0])
        if not link["flags"] & _IFF_UP:
            yield f"interface {if_name} is down, and was up"
        held = {entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS") for entry in ip.get_addr(index=found[0])}
        yield from (f"address {address}" for address in addresses if str(address) not in held)
        versions = {route.version for route in routes}
        present: set[Prefix] = set()
        for version in versions:
            for entry in ip.get_routes(family=AF_INET if version == 4 else AF_INET6, oif=found[0]):
                dst = entry.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")
                present.add(ip_network(f"{dst}/{entry['dst_len']}"))
        yield from (f"route to {route} through {if_name}" for route in routes if route not in present)


def inhabited(namespaces: Collection[netns.Identity]) -> set[netns.Identity]:
    """Return those of the namespaces in which any process lives, whatever path leads there. Reads all of /proc."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status = (entry / "ns/net").stat()
            except OSError:  # it ended meanwhile
                continue
            if (status.st_dev, status.st_ino) in namespaces:
                found.add((status.st_dev, status.st_ino))
    return found
