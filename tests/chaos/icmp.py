"""Packets made by hand: echo requests, and what nobody should be able to send."""

from __future__ import annotations

import struct

from tests.packets import UDP, finished, ip, udp, word_sum

ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_HEADER = struct.Struct("!BBHHH")
GENEVE_PORT = 6081
VNI = 1


def echo_request(family: int, ident: int, number: int, payload: bytes) -> bytes:
    """Make an ICMP message; the kernel fills in the checksum of ICMPv6 (RFC 3542 section 3.1)."""
    message = _HEADER.pack(ECHO_REQUEST[family], 0, 0, ident, number & 0xFFFF) + payload
    if family == 6:
        return message
    return message[:2] + (~word_sum(message) & 0xFFFF).to_bytes(2, "big") + message[4:]


def echo_reply(family: int, received: bytes, ident: int) -> bytes | None:
    """Return the payload of an answer to us, from what a raw socket got: IPv4's has the IP header before it."""
    at = (received[0] & 15) * 4 if family == 4 and received else 0
    if len(received) < at + _HEADER.size:
        return None
    kind, _, _, whose, _ = _HEADER.unpack_from(received, at)
    return received[at + _HEADER.size :] if (kind, whose) == (_ECHO_REPLY[family], ident) else None


def datagram(src: str, dst: str, port: int, payload: bytes) -> bytes:
    """Make a whole IP packet with any source address."""
    return finished(ip(src, dst, UDP, udp(payload, (port, port))), UDP)


def encapsulated(outer_src: str, outer_dst: str, packet: bytes) -> bytes:
    """Make the whole datagram of a router that sends what its Pods do not hold."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    geneve = struct.pack("!BBHI", 0, 0, kind, VNI << 8) + packet
    return finished(ip(outer_src, outer_dst, UDP, udp(geneve, (GENEVE_PORT, GENEVE_PORT))), UDP)
