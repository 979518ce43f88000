"""Which flow a packet belongs to. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from router.model import Flow
from router.wire.packet import ICMP, ICMPV6, TCP, UDP, Buffer

SCTP: Final = 132
_PORTS: Final = frozenset((TCP, UDP, SCTP))
_ICMP: Final = frozenset((ICMP, ICMPV6))


def flow_of(packet: Buffer) -> Flow | None:
    """Return the flow of a packet given from its IP header on, which may be cut short; None when it is no IP packet.

    Ports are read where they are there: not in fragments but the first, and not behind IPv6 extension headers.
    """
    size = len(packet)
    if size >= 20 and packet[0] >> 4 == 4:
        header_bytes = (packet[0] & 15) << 2
        if header_bytes < 20:
            return None
        src, dst = IPv4Address(bytes(packet[12:16])), IPv4Address(bytes(packet[16:20]))
        first = (packet[6] << 8 | packet[7]) & 0x1FFF == 0
        return Flow(src, dst, packet[9], *(_ports(packet, header_bytes, packet[9]) if first else (0, 0)))
    if size >= 40 and packet[0] >> 4 == 6:
        src6, dst6 = IPv6Address(bytes(packet[8:24])), IPv6Address(bytes(packet[24:40]))
        return Flow(src6, dst6, packet[6], *_ports(packet, 40, packet[6]))
    return None


def _ports(packet: Buffer, at: int, protocol: int) -> tuple[int, int]:
    if protocol in _PORTS and len(packet) >= at + 4:
        return packet[at] << 8 | packet[at + 1], packet[at + 2] << 8 | packet[at + 3]
    if protocol in _ICMP and len(packet) >= at + 2:
        return packet[at], packet[at + 1]
    return 0, 0
