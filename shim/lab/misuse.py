"""Packets that a Pod makes up: also such as must go nowhere."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from shim.lab import netns
from shim.lab.pod import LabPod

PORT = 7008
_HEARD_TIMEOUT_S = 0.3


def send_as(claimed: LabPod, sender: LabPod, target: LabPod, family: int) -> bool:
    """Send a UDP datagram from one Pod to `target` with the source address of `claimed`; return whether it arrived."""
    index = 0 if family == 4 else 1
    source, destination = claimed.addresses[index], target.addresses[index]
    version = socket.AF_INET if family == 4 else socket.AF_INET6
    with netns.open_socket(target.netns_path, version, socket.SOCK_DGRAM) as listener:
        listener.bind((str(destination), PORT))
        listener.settimeout(_HEARD_TIMEOUT_S)
        with netns.open_socket(sender.netns_path, version, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(datagram(source, destination), (str(destination), 0))
        with suppress(TimeoutError):
            listener.recv(64)
            return True
    return False


def datagram(source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address) -> bytes:
    """Return an IP packet with a UDP datagram whose checksum is right."""
    payload = b"not me"
    ends = source.packed + destination.packed
    length = 8 + len(payload)
    pseudo = ends + struct.pack("!II", length, socket.IPPROTO_UDP)
    udp = struct.pack("!HHHH", PORT, PORT, length, 0) + payload
    udp = udp[:6] + struct.pack("!H", _checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + ends + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0) + ends
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + udp


def _checksum(octets: bytes) -> int:
    """RFC 1071; of an even number of octets."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
