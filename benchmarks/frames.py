"""Frames as a Pod's kernel hands them to a TUN: virtio header, IPv4, UDP or TCP with its checksum left partial."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from router.wire.packet import (
    GSO_NONE,
    GSO_TCPV4,
    GSO_UDP_L4,
    IPV4_BYTES,
    NEEDS_CSUM,
    TCP,
    TCP_CSUM_OFFSET,
    UDP,
    UDP_CSUM_OFFSET,
    VNET_BYTES,
    VnetHeader,
    checksum,
    pseudo_sum,
)

MSS_BYTES = 1400
_TCP_BYTES, _UDP_BYTES = 32, 8  # TCP as Linux sends it, with timestamps
_ACK, _DONT_FRAGMENT = 0x10, 0x4000


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of frame."""

    name: str
    title: str
    payload_bytes: int
    protocol: int = UDP
    batch: int = 64
    """How many fit into the sockets' buffers without root."""

    @property
    def packets(self) -> int:
        """How many packets on the wire a frame stands for."""
        return max(1, -(-self.payload_bytes // MSS_BYTES))

    def frame(self, source: IPv4Address, destination: IPv4Address) -> bytes:
        """Return the frame, virtio header first."""
        l4_bytes = _TCP_BYTES if self.protocol == TCP else _UDP_BYTES
        size = IPV4_BYTES + l4_bytes + self.payload_bytes
        addresses = source.packed + destination.packed
        ip = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, size, 0, _DONT_FRAGMENT, 64, self.protocol, 0) + addresses)
        struct.pack_into(">H", ip, 10, checksum(ip))
        partial = pseudo_sum(addresses, self.protocol, size - IPV4_BYTES)
        if self.protocol == TCP:
            offset, gso_type = TCP_CSUM_OFFSET, GSO_TCPV4
            timestamps = struct.pack(">BBBBII", 1, 1, 8, 10, 1, 1)
            l4 = struct.pack(">HHIIBBHHH", 40000, 5201, 1, 1, _TCP_BYTES << 2, _ACK, 512, partial, 0) + timestamps
        else:
            offset, gso_type = UDP_CSUM_OFFSET, GSO_UDP_L4
            l4 = struct.pack(">HHHH", 40000, 5301, size - IPV4_BYTES, partial)
        many = self.packets > 1
        vnet = bytearray(VNET_BYTES)
        VnetHeader(
            NEEDS_CSUM, gso_type if many else GSO_NONE, IPV4_BYTES + l4_bytes if many else 0,
            MSS_BYTES if many else 0, IPV4_BYTES, offset,
        ).write(vnet, 0)  # fmt: skip
        return bytes(vnet + ip) + l4 + bytes(self.payload_bytes)


TRAFFIC = (
    Traffic("udp64", "UDP 64 B", 64),
    Traffic("udp512", "UDP 512 B", 512),
    Traffic("udp1400", "UDP 1400 B", 1400),
    Traffic("tso", "TCP super-packet", 44 * MSS_BYTES, TCP, 2),
    Traffic("uso", "UDP super-packet", 44 * MSS_BYTES, UDP, 2),
)
