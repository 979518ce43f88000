"""Whose packet a frame of the underlay carries: the inner addresses of a Geneve datagram (RFC 8926). Pure.

Of a datagram cut into fragments only the first says so; the others are nobody's.
"""

from __future__ import annotations

from typing import Final

GENEVE_PORT: Final = 6081
_ETHERNET_BYTES: Final = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_UDP: Final = 17
_CONTROL: Final = 0x80
"""The O bit: a packet of the routers' own, as a probe (RFC 8926 section 3.4)."""

_ADDRESSES: Final = {_IPV4: (12, 20), _IPV6: (8, 40)}
"""Where source and destination stand side by side in an IP header."""


def inner_ends(frame: bytes, at: int = 0) -> bytes | None:
    """Return source and destination, side by side, of the packet inside the Ethernet frame at that offset.

    8 bytes of IPv4, 32 of IPv6; None for whatever is no Geneve datagram with a packet of Pods.
    """
    udp_at = _udp_at(frame, at)
    if udp_at is None or frame[udp_at + 2 : udp_at + 4] != GENEVE_PORT.to_bytes(2, "big"):
        return None
    geneve_at = udp_at + 8
    if len(frame) < geneve_at + 8 or frame[geneve_at] >> 6 or frame[geneve_at + 1] & _CONTROL:
        return None
    inner_at = geneve_at + 8 + (frame[geneve_at] & 0x3F) * 4
    where = _ADDRESSES.get(int.from_bytes(frame[geneve_at + 2 : geneve_at + 4], "big"))
    if where is None or len(frame) < inner_at + where[1]:
        return None
    return frame[inner_at + where[0] : inner_at + (20 if where[1] == 20 else 40)]


def _udp_at(frame: bytes, at: int) -> int | None:
    """Return where the UDP header of the frame begins; None when it has none."""
    kind, ip_at = int.from_bytes(frame[at + 12 : at + 14], "big"), at + _ETHERNET_BYTES
    if kind == _IPV4 and len(frame) >= ip_at + 20:
        fragment = int.from_bytes(frame[ip_at + 6 : ip_at + 8], "big") & 0x1FFF
        udp = frame[ip_at + 9] == _UDP and not fragment
        return ip_at + (frame[ip_at] & 0xF) * 4 if udp else None
    if kind == _IPV6 and len(frame) >= ip_at + 40:  # routers send no extension headers
        return ip_at + 40 if frame[ip_at + 6] == _UDP else None
    return None
