"""The packet that a trace is about, as bytes. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum, unique

from router.model import Address
from router.wire.packet import ICMP, ICMPV6, IPV4_BYTES, IPV6_BYTES, TCP, UDP, checksum, parse_ip, pseudo_sum

HOP_LIMIT = 64
MOST_BYTES = 0xFFFF
_SRC_PORT = 40000
"""Of the packet that routers are asked about; they do not look at it."""
_DONT_FRAGMENT = 0x4000
_SYN = 2


@unique
class Transport(StrEnum):
    """What the packet carries."""

    ICMP = "icmp"
    TCP = "tcp"
    UDP = "udp"


DEFAULT_PORT = {Transport.ICMP: 0, Transport.TCP: 80, Transport.UDP: 33434}
"""Of UDP the first that traceroute uses."""
_HEADER_BYTES = {Transport.ICMP: 8, Transport.TCP: 20, Transport.UDP: 8}


@dataclass(frozen=True, slots=True)
class Asked:
    """The packet, checked."""

    src: Address
    dst: Address
    transport: Transport = Transport.ICMP
    dst_port: int = 0
    packet_bytes: int = 0
    """From the IP header on; at least `least_bytes`."""
    dont_fragment: bool = False

    @property
    def ip_bytes(self) -> int:
        """Size of its IP header."""
        return IPV4_BYTES if self.dst.version == 4 else IPV6_BYTES

    @property
    def what(self) -> str:
        """Say it in a word or two: "TCP port 80"."""
        word = self.transport.value.upper()
        return word if self.transport is Transport.ICMP else f"{word} port {self.dst_port}"


def least_bytes(version: int, transport: Transport) -> int:
    """Return how long a packet is that carries nothing."""
    return (IPV4_BYTES if version == 4 else IPV6_BYTES) + _HEADER_BYTES[transport]


def build(asked: Asked, hop_limit: int = HOP_LIMIT) -> bytes:
    """Return the whole packet: an echo request, a SYN or a datagram of zeros, with true checksums."""
    size = max(asked.packet_bytes, least_bytes(asked.dst.version, asked.transport))
    protocol = _protocol(asked)
    payload = bytearray(size - asked.ip_bytes)
    if asked.transport is Transport.TCP:
        struct.pack_into(">HHIIBBH", payload, 0, _SRC_PORT, asked.dst_port, 1, 0, 5 << 4, _SYN, 0xFFFF)
        at = 16
    elif asked.transport is Transport.UDP:
        struct.pack_into(">HHH", payload, 0, _SRC_PORT, asked.dst_port, len(payload))
        at = 6
    else:
        payload[0] = 8 if asked.dst.version == 4 else 128  # echo request
        at = 2
    addresses = asked.src.packed + asked.dst.packed
    pseudo = 0 if protocol == ICMP else pseudo_sum(addresses, protocol, len(payload))
    struct.pack_into(">H", payload, at, checksum(payload, pseudo) or 0xFFFF)
    if asked.dst.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, hop_limit) + addresses + payload
    fragment = _DONT_FRAGMENT if asked.dont_fragment else 0
    return _ipv4(struct.pack(">BBHHHBBH", 0x45, 0, size, 1, fragment, hop_limit, protocol, 0) + addresses) + payload


def resized(packet: bytes, packet_bytes: int) -> bytes:
    """Return a packet with the same header that is as long as that, and may not be fragmented."""
    whole = bytearray(packet[:packet_bytes].ljust(packet_bytes, b"\0"))
    if whole[0] >> 4 == 6:
        struct.pack_into(">H", whole, 4, packet_bytes - IPV6_BYTES)
        return bytes(whole)
    header_bytes = (whole[0] & 15) << 2
    struct.pack_into(">H", whole, 2, packet_bytes)
    struct.pack_into(">H", whole, 6, _DONT_FRAGMENT)
    return _ipv4(bytes(whole[:header_bytes])) + whole[header_bytes:]


def one_hop_less(packet: bytes) -> bytes:
    """Return the packet as the next router sees it."""
    header = parse_ip(packet, 0, len(packet))
    if header is None or header.hop_limit == 0:
        return packet
    whole = bytearray(packet)
    if header.version == 6:
        whole[7] -= 1
        return bytes(whole)
    whole[8] -= 1
    return _ipv4(bytes(whole[: header.header_bytes])) + packet[header.header_bytes :]


def answer_to(packet: bytes) -> bytes:
    """Return a packet the other way: what an answer's header would say."""
    at = 12 if packet[0] >> 4 == 4 else 8
    each = 4 if at == 12 else 16
    src, dst = packet[at : at + each], packet[at + each : at + 2 * each]
    return packet[:at] + dst + src + packet[at + 2 * each :]  # no sum changes by an exchange


def _protocol(asked: Asked) -> int:
    if asked.transport is Transport.ICMP:
        return ICMP if asked.dst.version == 4 else ICMPV6
    return TCP if asked.transport is Transport.TCP else UDP


def _ipv4(header: bytes) -> bytes:
    """Return an IPv4 header with its checksum."""
    bare = header[:10] + b"\0\0" + header[12:]
    return bare[:10] + struct.pack(">H", checksum(bare)) + bare[12:]
