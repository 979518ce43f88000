"""A captured packet in a few words: its flow, and what of its headers people look for first."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from shim.observe.answers import FiveTuple

_TCP, _UDP, _SCTP, _ICMP, _ICMPV6 = 6, 17, 132, 1, 58
_FLAGS = ((0x02, "S"), (0x10, "."), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"), (0x40, "E"), (0x80, "W"))
"""As tcpdump writes them."""


def flow(packet: bytes) -> FiveTuple | None:
    """Return the flow of a packet given from its IP header on, which may be cut short; None when it is no IP packet."""
    found = _layers(packet)
    if found is None:
        return None
    src, dst, protocol, at = found
    if at is not None and protocol in (_TCP, _UDP, _SCTP) and len(packet) >= at + 4:
        ports = int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")
    elif at is not None and protocol in (_ICMP, _ICMPV6) and len(packet) >= at + 2:
        ports = packet[at], packet[at + 1]
    else:
        ports = 0, 0
    return FiveTuple(src, dst, protocol, *ports)


def details(packet: bytes) -> str:
    """Return TCP's flags as "[S.]", or that it is a later fragment; empty when there is nothing to say."""
    found = _layers(packet)
    if found is None:
        return ""
    _, _, protocol, at = found
    if at is None:
        return "fragment"
    if protocol == _TCP and len(packet) >= at + 14:
        flags = packet[at + 13]
        return f"[{''.join(letter for bit, letter in _FLAGS if flags & bit)}]"
    return ""


def _layers(packet: bytes) -> tuple[str, str, int, int | None] | None:
    """Return source, destination, protocol and where its header begins; None for that of a fragment but the first."""
    if len(packet) >= 20 and packet[0] >> 4 == 4 and packet[0] & 15 >= 5:
        later = int.from_bytes(packet[6:8], "big") & 0x1FFF
        at = None if later else (packet[0] & 15) * 4
        return str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20])), packet[9], at
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return str(IPv6Address(packet[8:24])), str(IPv6Address(packet[24:40])), packet[6], 40
    return None
