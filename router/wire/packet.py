"""Checked views of IPv4, IPv6 and virtio-net headers, and Internet checksums. Pure.

Whatever is not a packet comes back as None, never as an exception: the bytes are a stranger's.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

_IPV4 = struct.Struct(">BBHHHBB")
_IPV6 = struct.Struct(">IHBB")
_VNET = struct.Struct("=BBHHHH")

VNET_BYTES = _VNET.size
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
GSO_ECN = 0x80

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
TCP_CSUM_OFFSET, UDP_CSUM_OFFSET = 16, 6
IPV4_BYTES, IPV6_BYTES = 20, 40


class IpHeader(NamedTuple):
    """What routing needs of an IP header. Offsets count from the packet's first byte."""

    version: int
    header_bytes: int
    """IPv4 with options; IPv6 without extension headers."""
    hop_limit: int
    protocol: int
    """IPv6: the first next header, which may be an extension."""
    may_fragment: bool
    """IPv4 without the DF bit."""
    fragment: int
    """IPv4 flags MF and fragment offset; non-zero in any fragment."""
    addresses: bytes
    """Source then destination: 8 bytes, or 32."""


class VnetHeader(NamedTuple):
    """struct virtio_net_hdr, linux/virtio_net.h. 10 bytes, host order."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @classmethod
    def read(cls, buffer: Buffer, offset: int) -> VnetHeader:
        """Unpack 10 bytes at offset."""
        return cls(*_VNET.unpack_from(buffer, offset))

    def write(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Pack 10 bytes at offset."""
        _VNET.pack_into(buffer, offset, *self)


write_vnet = _VNET.pack_into
"""Pack (buffer, offset, flags, gso_type, hdr_len, gso_size, csum_start, csum_offset): `VnetHeader.write` in one call."""


NO_OFFLOAD = bytes(VNET_BYTES)
"""The virtio header of a plain packet."""


def parse_ip(buffer: Buffer, start: int, end: int) -> IpHeader | None:
    """Check the IP header of the packet in buffer[start:end]; None when it is no IP packet of exactly that length.

    Checks version, lengths and the IPv4 header checksum (RFC 1812 section 5.2.2, RFC 8200 section 3).
    """
    size = end - start
    if size < IPV4_BYTES:
        return None
    first = buffer[start]
    if first >> 4 == 4:
        _, _, total_bytes, _, fragment, ttl, protocol = _IPV4.unpack_from(buffer, start)
        header_bytes = (first & 15) << 2
        if total_bytes != size or header_bytes < IPV4_BYTES or header_bytes > size:
            return None
        if int.from_bytes(buffer[start : start + header_bytes], "big") % 0xFFFF:
            return None
        addresses = bytes(buffer[start + 12 : start + 20])
        return IpHeader(4, header_bytes, ttl, protocol, not fragment & 0x4000, fragment & 0x3FFF, addresses)
    if first >> 4 == 6 and size >= IPV6_BYTES:
        _, payload_bytes, next_header, hop_limit = _IPV6.unpack_from(buffer, start)
        if payload_bytes + IPV6_BYTES != size:
            return None
        return IpHeader(6, IPV6_BYTES, hop_limit, next_header, False, 0, bytes(buffer[start + 8 : start + 40]))
    return None


def decrement_hop_limit(buffer: bytearray | memoryview, start: int) -> None:
    """Take one from the TTL or hop limit in place, and mend the IPv4 header checksum (RFC 1624, equation 3)."""
    if buffer[start] >> 4 == 6:
        buffer[start + 7] -= 1
        return
    buffer[start + 8] -= 1
    # One less in the high byte of a word that is summed: 0x0100 more in the complement, the carry going round. 0xFFFF
    # goes round too: it would be the zero that no header sums to (ip_decrease_ttl, include/net/ip.h).
    checksum = (buffer[start + 10] << 8 | buffer[start + 11]) + 0x0100
    checksum += checksum >= 0xFFFF
    checksum &= 0xFFFF
    buffer[start + 10] = checksum >> 8
    buffer[start + 11] = checksum & 0xFF


def ones_sum(data: Buffer, initial: int = 0) -> int:
    """Return the 16-bit ones' complement sum of the data (RFC 1071), odd lengths padded with a zero byte.

    Ones' complement addition is addition modulo 0xFFFF, so one big-integer remainder does it. A sum that is zero
    modulo 0xFFFF reads 0xFFFF unless everything summed was zero, as the end-around carry gives it.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    total = value + initial
    return (total % 0xFFFF or 0xFFFF) if total else 0


def checksum(data: Buffer, initial: int = 0) -> int:
    """Return the Internet checksum of the data (RFC 1071): the complement of its ones' complement sum."""
    return ~ones_sum(data, initial) & 0xFFFF


def pseudo_sum(addresses: bytes, protocol: int, length_bytes: int) -> int:
    """Return the ones' complement sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    return ones_sum(addresses, protocol + length_bytes)


def finish_checksum(packet: bytearray | memoryview, csum_start: int, csum_offset: int) -> bool:
    """Complete a partial L4 checksum in place, as a NIC would; False when the offsets lie outside the packet, or in its IP header.

    The field holds the pseudo-header's sum (linux/skbuff.h, CHECKSUM_PARTIAL). A UDP sum of zero is sent as 0xFFFF
    (RFC 768).
    """
    where = csum_start + csum_offset
    if where + 2 > len(packet):
        return False
    if csum_start < ((packet[0] & 15) << 2 if packet[0] >> 4 == 4 else IPV6_BYTES):
        return False  # it would change addresses that were checked
    value = checksum(packet[csum_start:])
    if not value and csum_offset == UDP_CSUM_OFFSET:
        value = 0xFFFF
    packet[where] = value >> 8
    packet[where + 1] = value & 0xFF
    return True
