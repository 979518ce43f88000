"""Which flow a packet belongs to. Pure.

packet → key: its five-tuple as bytes, all that it takes to tell flows apart → Flow, once somebody asks
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from router.model import Flow
from router.wire.packet import ICMP, ICMPV6, IPV4_BYTES, IPV6_BYTES, TCP, UDP, Buffer

SCTP: Final = 132
_PORTS: Final = frozenset((TCP, UDP, SCTP))
_ICMP: Final = frozenset((ICMP, ICMPV6))
_NO_PORTS: Final = bytes(4)
_ENDS: Final = struct.Struct(">BHH")


def flow_of(packet: Buffer) -> Flow | None:
    """Return the flow of a packet given from its IP header on, which may be cut short; None when it is no IP packet.

    Ports are read where they are there: not in fragments but the first, and not behind IPv6 extension headers.
    """
    key = flow_key(packet)
    return None if key is None else flow_from(key)


def flow_key(packet: Buffer) -> bytes | None:
    """Return what stands for the flow of a packet, equal for equal flows: addresses, protocol and ports side by side."""
    size = len(packet)
    if size >= IPV4_BYTES and packet[0] >> 4 == 4:
        header_bytes = (packet[0] & 15) << 2
        if header_bytes < IPV4_BYTES:
            return None
        first = (packet[6] << 8 | packet[7]) & 0x1FFF == 0
        ports = _ports(packet, header_bytes, packet[9]) if first else _NO_PORTS
        return b"".join((packet[12:20], packet[9:10], ports))
    if size >= IPV6_BYTES and packet[0] >> 4 == 6:
        return b"".join((packet[8:40], packet[6:7], _ports(packet, IPV6_BYTES, packet[6])))
    return None


def _ports(packet: Buffer, at: int, protocol: int) -> Buffer:
    """Return both as they stand in the packet, or what takes their place."""
    if protocol in _PORTS and len(packet) >= at + 4:
        return packet[at : at + 4]
    if protocol in _ICMP and len(packet) >= at + 2:
        return bytes((0, packet[at], 0, packet[at + 1]))
    return _NO_PORTS


def flow_from(key: bytes) -> Flow:
    """Return the flow that a key of `flow_key` stands for."""
    half = (len(key) - _ENDS.size) >> 1
    src, dst = key[:half], key[half : 2 * half]
    ends = _ENDS.unpack_from(key, 2 * half)
    return (
        Flow(IPv4Address(src), IPv4Address(dst), *ends)
        if half == 4
        else Flow(IPv6Address(src), IPv6Address(dst), *ends)
    )
