"""How the overlay fits the node's own addresses, routes and interfaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from shim.doctor.finding import Finding, fail, ok, warn
from shim.doctor.site import Answers, Site
from shim.install import cni
from shim.install.root import InstallError

_OWN = "podwire0"
_OVERHEAD_BYTES = {4: 48, 6: 68}
"""What the tunnel adds on an underlay of that IP version (docs/architecture.md)."""
_MAIN_TABLE, _UNICAST = 254, 1  # linux/rtnetlink.h
_MOST_PEERS = 64
_STRICT = 1

_Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class _Links:
    mtu_bytes: dict[str, int]
    addresses: tuple[tuple[str, IPv4Interface | IPv6Interface], ...]
    routes: tuple[tuple[str, _Prefix], ...]

    def with_address(self, address: str) -> str:
        """Return the interface that has an address; empty when none has."""
        wanted = ip_address(address)
        return next((name for name, interface in self.addresses if interface.ip == wanted), "")


def mtu(site: Site) -> Iterator[Finding]:
    """Look whether a packet of a Pod fits into one of the underlay, tunnel headers and all."""
    if site.answers is None:
        return
    status, links = site.answers.status, _links()
    underlay = links.with_address(status.endpoint.address)
    if not underlay:
        what = f"the underlay address {status.endpoint.address} is on no interface of this node: nothing is tunnelled"
        yield fail("mtu", what, "give the address back, or restart the router with another --underlay")
        return
    most = links.mtu_bytes[underlay] - _OVERHEAD_BYTES[ip_address(status.endpoint.address).version]
    well = True
    if status.mtu_bytes > most:
        well = False
        what = f"the overlay MTU is {status.mtu_bytes}, but {underlay} ({links.mtu_bytes[underlay]}) carries no more than {most}"
        remedy = (
            f"ip link set {underlay} mtu {links.mtu_bytes[underlay] + status.mtu_bytes - most}, or restart the router"
        )
        yield fail("mtu", f"{what}: large packets are lost", remedy)
    own = links.mtu_bytes.get(_OWN, status.mtu_bytes)
    if own != status.mtu_bytes:
        well = False
        what = f"{_OWN} has an MTU of {own}, and the overlay one of {status.mtu_bytes}"
        yield warn("mtu", what, f"ip link set {_OWN} mtu {status.mtu_bytes}, or restart the router")
    for each in site.answers.attachments:
        if each.mtu_bytes > status.mtu_bytes:
            well = False
            what = (
                f"{each.key} was attached with an MTU of {each.mtu_bytes}, and the overlay has {status.mtu_bytes} now"
            )
            yield warn("mtu", what, "make that Pod anew")
    if well:
        yield ok("mtu", f"overlay {status.mtu_bytes} fits into {underlay} ({links.mtu_bytes[underlay]})")


def overlap(site: Site) -> Iterator[Finding]:
    """Look whether the cluster range is used for something else on this node."""
    if site.answers is None:
        return
    ranges = [ip_network(text) for text in site.answers.status.networks]
    links = _links()
    found: dict[str, Finding] = {}
    for name, interface in links.addresses:
        if name not in (_OWN, "lo") and (range_ := _overlapping(interface.network, ranges)):
            what = f"the cluster range {range_} overlaps {interface.network} of interface {name}"
            remedy = f"move {name} to other addresses, or give the cluster another --network on all nodes"
            found[f"{name} {interface.network}"] = fail("overlap", what, remedy)
    for name, route in links.routes:
        if name not in (_OWN, "lo") and f"{name} {route}" not in found and (range_ := _overlapping(route, ranges)):
            what = f"the route {route} by {name} overlaps the cluster range {range_}"
            wider = "it is the wider one, so that only what is outside the cluster goes there"
            if route.prefixlen > range_.prefixlen:
                remedy = f"ip route del {route} dev {name}, or give the cluster another --network on all nodes"
                found[f"{name} {route}"] = fail("overlap", f"{what}: Pods there are not reached", remedy)
            else:
                remedy = f"make sure nothing that is reached by {name} has an address of {range_}"
                found[f"{name} {route}"] = warn("overlap", f"{what}; {wider}", remedy)
    for path, subnet in _other_networks(site):
        if range_ := _overlapping(subnet, ranges):
            what = f"{path} gives out addresses of {subnet}, which overlaps the cluster range {range_}"
            found[path] = warn("overlap", what, f"remove {path}, or give it another range")
    yield from found.values()
    if not found:
        yield ok("overlap", f"{', '.join(map(str, ranges))} is used for nothing else here")


def return_paths(site: Site) -> Iterator[Finding]:
    """Look whether reverse-path filtering lets in what other nodes send."""
    if site.answers is None:
        return
    status, links = site.answers.status, _links()
    underlay = links.with_address(status.endpoint.address)
    if not underlay or ip_address(status.endpoint.address).version == 6:
        return
    settings = [site.number(f"/proc/sys/net/ipv4/conf/{name}/rp_filter") or 0 for name in ("all", underlay)]
    crooked = _crooked(site.answers, underlay) if max(settings) == _STRICT else []
    if crooked:
        what = (
            f"{underlay} drops what node {crooked[0]} sends (rp_filter 1): the way back to it is by another interface"
        )
        remedy = f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{underlay}.rp_filter=2, or mend the route"
        yield fail("return paths", what, remedy)
    else:
        yield ok("return paths", f"rp_filter of {underlay} stops no other node")


def _crooked(answers: Answers, underlay: str) -> list[str]:
    """Return other nodes that are reached by another interface than the underlay's."""
    found = []
    with IPRoute() as ip:
        (index,) = ip.link_lookup(ifname=underlay)
        for node in [node for node in answers.nodes if node.name != answers.status.node][:_MOST_PEERS]:
            try:
                (route,) = ip.route("get", dst=node.endpoint.address)
            except NetlinkError:
                continue  # no way there at all: `peers` tells
            if route.get_attr("RTA_OIF") != index:
                found.append(node.name)
    return found


def _links() -> _Links:
    with IPRoute() as ip:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        sizes = {link.get_attr("IFLA_IFNAME"): int(link.get_attr("IFLA_MTU")) for link in ip.get_links()}
        addresses = []
        for entry in ip.get_addr():
            address = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
            addresses.append((names.get(entry["index"], "?"), ip_interface(f"{address}/{entry['prefixlen']}")))
        routes = []
        for entry in ip.get_routes(table=_MAIN_TABLE):
            destination = entry.get_attr("RTA_DST")
            if destination is not None and entry["type"] == _UNICAST:
                name = names.get(entry.get_attr("RTA_OIF"), "?")
                routes.append((name, ip_network(f"{destination}/{entry['dst_len']}")))
    return _Links(sizes, tuple(addresses), tuple(routes))


def _overlapping(prefix: _Prefix, ranges: list[_Prefix]) -> _Prefix | None:
    for each in ranges:
        if each.version == prefix.version and not prefix.is_link_local and each.overlaps(prefix):
            return each
    return None


def _other_networks(site: Site) -> Iterator[tuple[str, _Prefix]]:
    """Yield what other CNI networks of this node give out."""
    for name in cni.files(site.root, cni.CONF_DIR):
        path = f"{cni.CONF_DIR}/{name}"
        try:
            plugins = cni.plugins(cni.read(site.root, path))
        except InstallError:
            continue
        for ipam in (plugin.get("ipam") for plugin in plugins):
            if isinstance(ipam, dict):
                yield from ((path, subnet) for subnet in _subnets(ipam))


def _subnets(value: object) -> Iterator[_Prefix]:
    if isinstance(value, dict):
        if isinstance(text := value.get("subnet"), str):
            try:
                yield ip_network(text, strict=False)
            except ValueError:
                return
        for inner in value.values():
            yield from _subnets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _subnets(inner)
