"""The ICMP and ICMPv6 errors a router sends about packets it cannot forward. The slow path: made with dpkt.

packet that was not forwarded
  → may an error be sent about it at all?     RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4 (e)
  → type, code and rest of header by reason   RFC 792, RFC 1191, RFC 4443 3
  → as much of the packet as fits, quoted     RFC 1812 4.3.2.3, RFC 4443 2.4 (c)
  → from the node's overlay address back to the packet's source
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import dpkt

from router.model import Address, DropReason
from router.wire.packet import ICMP, ICMPV6, IPV4_BYTES, IPV6_BYTES, IpHeader, parse_ip

_IPV4_ERRORS = {
    DropReason.NO_ROUTE: (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_NET),
    DropReason.WRONG_NODE: (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_NET),
    DropReason.NO_ATTACHMENT: (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_HOST),
    DropReason.PEER_DOWN: (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_HOST),
    DropReason.EGRESS_DISABLED: (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_FILTER_PROHIB),
    DropReason.TOO_BIG: (dpkt.icmp.ICMP_UNREACH, dpkt.icmp.ICMP_UNREACH_NEEDFRAG),
    DropReason.TTL_EXPIRED: (dpkt.icmp.ICMP_TIMEXCEED, dpkt.icmp.ICMP_TIMEXCEED_INTRANS),
}
_IPV6_ERRORS = {
    DropReason.NO_ROUTE: (dpkt.icmp6.ICMP6_DST_UNREACH, 0),
    DropReason.WRONG_NODE: (dpkt.icmp6.ICMP6_DST_UNREACH, 0),
    DropReason.EGRESS_DISABLED: (dpkt.icmp6.ICMP6_DST_UNREACH, 1),
    DropReason.NO_ATTACHMENT: (dpkt.icmp6.ICMP6_DST_UNREACH, 3),
    DropReason.PEER_DOWN: (dpkt.icmp6.ICMP6_DST_UNREACH, 3),
    DropReason.TOO_BIG: (dpkt.icmp6.ICMP6_PACKET_TOO_BIG, 0),
    DropReason.TTL_EXPIRED: (dpkt.icmp6.ICMP6_TIME_EXCEEDED, 0),
}

HOP_LIMIT = 64
_ICMP_BYTES = 8
_IPV4_MOST_BYTES = 576
"""An error is no longer than every IPv4 host must take (RFC 1812 section 4.3.2.3)."""
_IPV6_MOST_BYTES = 1280
"""An error is no longer than the smallest IPv6 MTU (RFC 4443 section 2.4 c)."""
_INTERNETWORK_CONTROL = 0xC0
"""Precedence of ICMP errors (RFC 1812 section 4.3.2.5)."""

# Whatever is not known to be a question may be an error, and errors about errors never end.
_IPV4_QUERIES = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43))
_REDIRECT = 137
_NO_HOSTS = tuple(IPv4Network(prefix) for prefix in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"))
"""Where no single host can be (RFC 1812 section 5.3.7)."""

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_IPV6_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION))


def make_error(packet: bytes, reason: DropReason, node_addresses: tuple[Address, ...], mtu_bytes: int) -> bytes | None:
    """Return the IP packet that tells the sender of `packet` why it went no further, or None where none is due.

    None when the reason has no ICMP error, when the RFCs forbid one about this packet, when it is no packet, or when
    the node has no address of that family. `mtu_bytes` is what TOO_BIG reports, and bounds an IPv4 error's length.
    """
    header = parse_ip(packet, 0, len(packet))
    if header is None:
        return None
    is_ipv4 = header.version == 4
    kind = (_IPV4_ERRORS if is_ipv4 else _IPV6_ERRORS).get(reason)
    node = next((address for address in node_addresses if address.version == header.version), None)
    if kind is None or node is None or not (_ipv4_due if is_ipv4 else _ipv6_due)(packet, header):
        return None
    return (_ipv4_error if is_ipv4 else _ipv6_error)(packet, header, kind, node, mtu_bytes)


def _ipv4_due(packet: bytes, header: IpHeader) -> bool:
    """Tell whether an error may be sent about an IPv4 packet."""
    source, destination = IPv4Address(header.addresses[:4]), IPv4Address(header.addresses[4:])
    if header.fragment & 0x1FFF or any(source in prefix for prefix in _NO_HOSTS):
        return False
    if destination.is_multicast or destination == IPv4Address("255.255.255.255"):
        return False
    if header.protocol != ICMP:
        return True
    return len(packet) > header.header_bytes and packet[header.header_bytes] in _IPV4_QUERIES


def _ipv6_due(packet: bytes, header: IpHeader) -> bool:
    """Tell whether an error may be sent about an IPv6 packet."""
    source, destination = IPv6Address(header.addresses[:16]), IPv6Address(header.addresses[16:])
    if source.is_unspecified or source.is_multicast or source.is_loopback or destination.is_multicast:
        return False
    protocol, at = header.protocol, IPV6_BYTES
    while protocol in _IPV6_EXTENSIONS:
        if at + 8 > len(packet):
            return False  # the header chain is cut off: this may be an error
        extension, protocol, units = protocol, packet[at], packet[at + 1]
        if extension == _FRAGMENT:
            if packet[at + 2] or packet[at + 3] & 0xF8:  # not the first
                return protocol != ICMPV6  # its type stands in another fragment
            at += 8
        else:
            at += (units + 2) << 2 if extension == _AUTHENTICATION else (units + 1) << 3
    if protocol != ICMPV6:
        return True
    # Errors have the high bit clear (RFC 4443 section 2.1).
    return at < len(packet) and packet[at] >= 128 and packet[at] != _REDIRECT


def _ipv4_error(packet: bytes, header: IpHeader, kind: tuple[int, int], node: Address, mtu_bytes: int) -> bytes:
    """Build an ICMP error: at least the packet's header and 8 bytes, however small the MTU (RFC 792)."""
    room = min(_IPV4_MOST_BYTES, mtu_bytes) - IPV4_BYTES - _ICMP_BYTES
    quote = packet[: max(room, header.header_bytes + 8)]
    # Zeros, but for "fragmentation needed", which tells the next link's MTU (RFC 1191 section 4).
    tells_mtu = kind == _IPV4_ERRORS[DropReason.TOO_BIG]
    rest = struct.pack(">HH", 0, min(mtu_bytes, 0xFFFF) if tells_mtu else 0)
    error = dpkt.ip.IP(
        src=node.packed,
        dst=header.addresses[:4],
        p=ICMP,
        ttl=HOP_LIMIT,
        tos=_INTERNETWORK_CONTROL,
        df=1,
        data=dpkt.icmp.ICMP(type=kind[0], code=kind[1], data=rest + quote),
    )
    return bytes(error)


def _ipv6_error(packet: bytes, header: IpHeader, kind: tuple[int, int], node: Address, mtu_bytes: int) -> bytes:
    """Build an ICMPv6 error; dpkt fills in its checksum, which covers the pseudo-header."""
    quote = packet[: _IPV6_MOST_BYTES - IPV6_BYTES - _ICMP_BYTES]
    tells_mtu = kind == _IPV6_ERRORS[DropReason.TOO_BIG]
    rest = struct.pack(">I", mtu_bytes if tells_mtu else 0)
    body = dpkt.icmp6.ICMP6(type=kind[0], code=kind[1], data=rest + quote)
    error = dpkt.ip6.IP6(
        src=node.packed, dst=header.addresses[:16], nxt=ICMPV6, hlim=HOP_LIMIT, plen=len(body), data=body
    )
    return bytes(error)
