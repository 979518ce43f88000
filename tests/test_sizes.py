"""Packet sizes dense around the MTU, over three underlays, every byte compared."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from itertools import product

import pytest

from router.engine.choose import available
from shim.lab import Lab, netns
from shim.lab.pod import LabPod
from tests.accounts import assert_balanced
from tests.echo import FAMILIES, Echo, ask_tcp, ask_udp, connect, enlarge

pytestmark = pytest.mark.netns

_OVERHEAD_BYTES = 48
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
_DONT, _DO = 0, 2
_MOST_PAYLOAD_BYTES = {4: 65535 - 28, 6: 65535 - 8}
_IP_BYTES = {4: 20, 6: 40}
_ECHO = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
_UDP_SEGMENT = 103  # linux/udp.h
_MTUS = pytest.mark.parametrize(
    ("engine", "underlay_mtu"), [*product(available(), (1500,)), *product(available()[:1], (9000, 1360))]
)
_WAYS = pytest.mark.parametrize(("family", "far"), [(4, True), (6, True), (4, False), (6, False)])
_DF = pytest.mark.parametrize("discover", [_DO, _DONT], ids=["df", "no-df"])


@pytest.fixture
def pods(make_lab: Callable[..., Lab], engine: str, underlay_mtu: int, far: bool) -> tuple[LabPod, LabPod, int]:
    lab = make_lab(nodes=2, pods=2, underlay_mtu=underlay_mtu, router_args=("--engine", engine))
    assert_balanced(lab)
    return lab.pods[0], lab.pods[2 if far else 1], underlay_mtu - _OVERHEAD_BYTES


def packet_sizes(mtu_bytes: int, header_bytes: int) -> list[int]:
    """Payload sizes: those around the MTU, around twice it, and the least."""
    around = [*range(mtu_bytes - 3, mtu_bytes + 4), *range(2 * mtu_bytes - 3, 2 * mtu_bytes + 4)]
    return [0, 1, 2, 3, *(size - header_bytes for size in around)]


def discovering(sock: socket.socket, version: int, discover: int) -> None:
    sock.setsockopt(*_MTU_DISCOVER[version], discover)


@_MTUS
@_WAYS
@_DF
def test_udp(pods: tuple[LabPod, LabPod, int], family: int, discover: int) -> None:
    source, target, mtu_bytes = pods
    header_bytes = _IP_BYTES[family] + 8
    random_bytes = random.Random(family)
    with Echo([target]), connect(source, target.addresses[family == 6], socket.SOCK_DGRAM) as asker:
        discovering(asker, family, discover)
        for size in [*packet_sizes(mtu_bytes, header_bytes), _MOST_PAYLOAD_BYTES[family]]:
            payload = random_bytes.randbytes(size)
            if discover == _DO and size + header_bytes > mtu_bytes:
                with pytest.raises(OSError, match="Message too long"):
                    asker.send(payload)
            else:
                assert ask_udp(asker, payload) == payload, size


@_MTUS
@_WAYS
@_DF
def test_icmp(pods: tuple[LabPod, LabPod, int], family: int, discover: int) -> None:
    source, target, mtu_bytes = pods
    protocol, request, reply = _ECHO[family]
    header_bytes = _IP_BYTES[family] + 8
    random_bytes = random.Random(family)
    with netns.open_socket(source.netns_path, FAMILIES[family], socket.SOCK_RAW, protocol) as asker:
        asker.settimeout(5)
        enlarge(asker)
        discovering(asker, family, discover)
        asker.connect((str(target.addresses[family == 6]), 0))
        for sequence, size in enumerate([*packet_sizes(mtu_bytes, header_bytes), _MOST_PAYLOAD_BYTES[family]]):
            payload = random_bytes.randbytes(size)
            packet = bytearray(struct.pack("!BBHHH", request, 0, 0, 4711, sequence) + payload)
            if family == 4:  # ICMPv6's is the kernel's work
                struct.pack_into("!H", packet, 2, checksum(packet))
            if discover == _DO and size + header_bytes > mtu_bytes:
                with pytest.raises(OSError, match="Message too long"):
                    asker.send(packet)
                continue
            asker.send(packet)
            while True:
                answer = asker.recv(1 << 16)[20 if family == 4 else 0 :]
                if answer[0] == reply and answer[4:8] == packet[4:8]:
                    break
            assert answer[8:] == payload, size


@_MTUS
@_WAYS
@_DF
def test_tcp(pods: tuple[LabPod, LabPod, int], family: int, discover: int) -> None:
    """Writes of each size, pushed at once, so that segments of these sizes and super-packets of them are on the way."""
    source, target, mtu_bytes = pods
    header_bytes = _IP_BYTES[family] + 32  # with timestamps
    random_bytes = random.Random(family)
    with Echo([target]), connect(source, target.addresses[family == 6], socket.SOCK_STREAM) as asker:
        discovering(asker, family, discover)
        asker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in [*packet_sizes(mtu_bytes, header_bytes)[1:], 1 << 16, (1 << 20) + 7]:
            payload = random_bytes.randbytes(size)
            assert ask_tcp(asker, payload) == payload, size


@_MTUS
@_WAYS
def test_udp_trains(pods: tuple[LabPod, LabPod, int], family: int) -> None:
    """One send of many datagrams (UDP_SEGMENT): a super-packet on the TUN, the same datagrams at the other end."""
    source, target, mtu_bytes = pods
    most = mtu_bytes - _IP_BYTES[family] - 8
    random_bytes = random.Random(family)
    with Echo([target]), connect(source, target.addresses[family == 6], socket.SOCK_DGRAM) as asker:
        for size in (1, 2, 7, most - 3, most - 2, most - 1, most):
            count = min(40, 60000 // size)
            for last in (1, max(1, size - 1), size):
                payload = random_bytes.randbytes((count - 1) * size + last)
                asker.sendmsg([payload], [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", size))])
                found = sorted(asker.recv(1 << 16) for _ in range(count))
                wanted = sorted(payload[at : at + size] for at in range(0, len(payload), size))
                assert found == wanted, (size, count, last)


def checksum(octets: bytes) -> int:
    """RFC 1071."""
    padded = bytes(octets) + b"\0" * (len(octets) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
