"""Find out at start-up what this kernel's offloads are worth, in a namespace made for the test, and switch off the rest.

Kernels differ and have bugs: 6.6.44 refused super-packets on a TUN write, some 7.x corrupt trains whose last segment is
full. So every feature is used once, and what arrives is compared.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_interface, ip_network

from router.errors import Kind, Refusal
from router.kernel import netns, tun
from router.model import Offloads
from router.wire.packet import (
    GSO_NONE,
    GSO_TCPV4,
    GSO_UDP_L4,
    NEEDS_CSUM,
    TCP,
    TCP_CSUM_OFFSET,
    UDP,
    UDP_CSUM_OFFSET,
    VnetHeader,
    checksum,
    pseudo_sum,
)

_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104  # linux/udp.h
_HOST, _STRANGER = "192.0.2.1", "192.0.2.2"  # TEST-NET-1 (RFC 5737), in a namespace of our own
_TIMEOUT_S = 1.0
_CHUNK_BYTES = 400
_PORT = 9  # discard (RFC 863)
_TCP = struct.Struct(">HHIIBBHHH")


def probe(wanted: Offloads) -> tuple[Offloads, tuple[str, ...]]:
    """Return what of the wanted offloads works here, and a note for each that does not.

    Raise Refusal(STATE) when there is no TUN at all.
    """
    try:
        return netns.inside_new(lambda: _probe(wanted))
    except OSError as error:
        note = f"offloads were not tested: no namespace for it ({error.strerror}); taken for working"
        return wanted, (note,)


def _probe(wanted: Offloads) -> tuple[Offloads, tuple[str, ...]]:
    notes: list[str] = []
    found = wanted
    checks: tuple[tuple[str, Callable[[Offloads], None]], ...] = (
        ("tun_checksum", _check_checksum),
        ("tun_tso", _check_tso),
        ("tun_uso", _check_uso),
        ("udp_gro", _check_gro),
        ("udp_segment", _check_segment),
    )
    _loopback_up()
    for name, check in checks:
        if not getattr(found, name):
            notes.append(f"{name} is switched off")
            continue
        if name.startswith("tun_") and name != "tun_checksum" and not found.tun_checksum:
            found = replace(found, **{name: False})
            notes.append(f"{name} is off: it needs tun_checksum")
            continue
        only = Offloads(**{other: other in (name, "tun_checksum") for other, _ in checks})
        try:
            check(only)
        except (OSError, Refusal) as error:
            if isinstance(error, Refusal) and error.kind is Kind.STATE and "/dev/net/tun" in error.message:
                raise
            found = replace(found, **{name: False})
            why = error.message if isinstance(error, Refusal) else error.strerror or str(error)
            notes.append(f"{name} is off: this kernel's self-test failed ({why})")
    if found.udp_segment:
        most = _most_segments(found.max_segments)
        if most < found.max_segments:
            notes.append(f"trains of at most {most} datagrams: the kernel refuses longer ones")
            found = replace(found, max_segments=most)
    return found, tuple(notes)


def _loopback_up() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", index=1, state="up")


def _check_checksum(offloads: Offloads) -> None:
    """Write one UDP packet whose checksum is partial, and expect its bytes."""
    with _probe_tun(offloads) as fd, _receiver(_HOST) as receiver:
        payload = os.urandom(_CHUNK_BYTES)
        os.write(fd, _udp_frame(payload, receiver.getsockname()[1], GSO_NONE, 0))
        _expect(receiver, [payload])


def _check_uso(offloads: Offloads) -> None:
    """Write one UDP super-packet, and expect two datagrams with their bytes."""
    with _probe_tun(offloads) as fd, _receiver(_HOST) as receiver:
        payload = os.urandom(2 * _CHUNK_BYTES)
        os.write(fd, _udp_frame(payload, receiver.getsockname()[1], GSO_UDP_L4, _CHUNK_BYTES))
        _expect(receiver, [payload[:_CHUNK_BYTES], payload[_CHUNK_BYTES:]])


def _check_tso(offloads: Offloads) -> None:
    """Write one TCP super-packet to a port where nobody listens, and expect its reset (RFC 9293 section 3.10.7.1)."""
    source, destination = socket.inet_aton(_STRANGER), socket.inet_aton(_HOST)
    size = _TCP.size + 2 * _CHUNK_BYTES
    tcp = _TCP.pack(_PORT, _PORT, 1, 1, 0x50, 0x10, 1000, pseudo_sum(source + destination, TCP, size), 0)
    vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 20 + _TCP.size, _CHUNK_BYTES, 20, TCP_CSUM_OFFSET)
    with _probe_tun(offloads) as fd:
        os.write(fd, _frame(vnet, TCP, source, destination, tcp + bytes(2 * _CHUNK_BYTES)))
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        while waiting.poll(_TIMEOUT_S * 1000):
            answer = os.read(fd, 65536)[10:]
            if answer[9] == TCP and answer[33] & 0x04:
                return
        raise OSError(0, "a TCP super-packet was not answered")


@contextmanager
def _probe_tun(offloads: Offloads) -> Iterator[int]:
    dress = tun.Dress((ip_interface(f"{_HOST}/24"),), (), (ip_network(f"{_STRANGER}/32"),), 1500)
    fd = tun.create(netns.OWN_THREAD, "probe0", dress, offloads)
    try:
        yield fd
    finally:
        tun.discard(fd)


def _udp_frame(payload: bytes, port: int, gso_type: int, gso_size: int) -> bytes:
    source, destination = socket.inet_aton(_STRANGER), socket.inet_aton(_HOST)
    size = 8 + len(payload)
    udp = struct.pack(">HHHH", _PORT, port, size, pseudo_sum(source + destination, UDP, size))
    vnet = VnetHeader(NEEDS_CSUM, gso_type, 28, gso_size, 20, UDP_CSUM_OFFSET)
    return _frame(vnet, UDP, source, destination, udp + payload)


def _frame(vnet: VnetHeader, protocol: int, source: bytes, destination: bytes, body: bytes) -> bytes:
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0, source, destination)
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    header = bytearray(10)
    vnet.write(header, 0)
    return bytes(header) + ip + body


def _check_segment(_: Offloads) -> None:
    """Send trains with a short and with a full last segment; the same bytes must come out."""
    for size in (3 * _CHUNK_BYTES, 2 * _CHUNK_BYTES + 7):
        payload = os.urandom(size)
        with _receiver("127.0.0.1") as receiver:
            _send_train(receiver.getsockname(), payload, _CHUNK_BYTES)
            _expect(receiver, [payload[at : at + _CHUNK_BYTES] for at in range(0, size, _CHUNK_BYTES)])


def _check_gro(_: Offloads) -> None:
    """Receive with UDP_GRO; whether joined or not, the same bytes must come out."""
    payload = os.urandom(4 * _CHUNK_BYTES)
    with _receiver("127.0.0.1") as receiver:
        receiver.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for at in range(0, len(payload), _CHUNK_BYTES):
                sender.sendto(payload[at : at + _CHUNK_BYTES], receiver.getsockname())
        got = b""
        while len(got) < len(payload):
            got += receiver.recv(65536)
        if got != payload:
            raise OSError(0, "other bytes were received than sent")


def _most_segments(limit: int) -> int:
    """Return how many datagrams one send takes: 128, or 64 before Linux 6.9 (UDP_MAX_SEGMENTS)."""
    for most in (limit, min(limit, 64)):
        with _receiver("127.0.0.1") as receiver:
            try:
                _send_train(receiver.getsockname(), bytes(most * 8), 8)
            except OSError:
                continue
            return most
    return 1


def _receiver(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.settimeout(_TIMEOUT_S)
    receiver.bind((address, 0))
    return receiver


def _send_train(to: tuple[str, int], payload: bytes, segment_bytes: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendmsg([payload], [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", segment_bytes))], 0, to)


def _expect(receiver: socket.socket, datagrams: list[bytes]) -> None:
    for expected in datagrams:
        if receiver.recv(65536) != expected:
            raise OSError(0, "other bytes were received than sent")
