"""A real packet from inside a Pod, with so many hops to live, and what it met: as traceroute does it, with no program of the Pod.

ICMP by a raw socket, UDP by a connected one, TCP by a connect that does not wait. What routers say about it comes by the
socket's error queue (IP_RECVERR, ip(7)); for TCP too, while its SYN is under way (tcp_v4_err, net/ipv4/tcp_ipv4.c).
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto, unique
from ipaddress import IPv4Address, IPv6Address

from router.model import Address
from router.observe.trace.packet import Asked, Transport
from router.wire.packet import checksum

OpenSocket = Callable[[int, int, int], socket.socket]
"""Family, kind, protocol → a socket that lives inside the Pod."""

# linux/in.h, linux/in6.h, linux/icmp.h, linux/icmpv6.h, linux/errqueue.h
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_IP_MTU_DISCOVER, _IP_RECVERR, _IPV6_MTU_DISCOVER, _IPV6_RECVERR, _IPV6_DONTFRAG = 10, 11, 23, 25, 62
_DISCOVER_NOT, _DISCOVER_BY_PROBE = 0, 3
_ORIGIN_LOCAL, _ORIGIN_ICMP, _ORIGIN_ICMP6 = 1, 2, 3
_EXTENDED = struct.Struct("=IBBBBII")
_ECHO = struct.Struct(">BBHHH")
_MOST_BYTES = 0xFFFF


@unique
class Met(Enum):
    """What a probe met."""

    HOP = auto()
    """A router at which its hops were used up."""
    ANSWER = auto()
    """The destination, which answered."""
    REFUSED = auto()
    """The destination, which said that nothing listens."""
    UNREACHABLE = auto()
    """Somebody who said that it goes no further."""
    TOO_BIG = auto()
    """A router whose next link does not carry it."""
    SILENCE = auto()
    FAILED = auto()
    """It did not leave the Pod."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one probe."""

    hop: int
    """Its hops to live."""
    met: Met
    address: Address | None = None
    """Who said so."""
    rtt_s: float | None = None
    code: int = 0
    """Of ICMP, when unreachable."""
    mtu_bytes: int = 0
    """What the next link carries, when it was too big."""
    errno: int = 0
    """Why it did not leave."""

    @property
    def last(self) -> bool:
        """Whether more hops would bring nothing new."""
        return self.met not in (Met.HOP, Met.SILENCE)


def fire(asked: Asked, hop: int, timeout_s: float, open_socket: OpenSocket, again_s: float = 0.0) -> Outcome:
    """Send one probe and wait for what becomes of it; of UDP, one more after each `again_s`, unless that is 0.

    Linux tells of a closed port once a second, and whoever asks first (icmpv4_xrlim_allow, net/ipv4/icmp.c).
    """
    kind = {Transport.ICMP: socket.SOCK_RAW, Transport.UDP: socket.SOCK_DGRAM, Transport.TCP: socket.SOCK_STREAM}
    v6 = asked.dst.version == 6
    icmp = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    protocol = icmp if asked.transport is Transport.ICMP else 0
    with open_socket(socket.AF_INET6 if v6 else socket.AF_INET, kind[asked.transport], protocol) as sock:
        began_s = time.perf_counter()
        try:
            _prepare(sock, asked, hop)
            sock.bind((str(asked.src), 0))
            began_s = time.perf_counter()
            expected = _send(sock, asked, hop)
        except OSError as error:
            mtu_bytes = next((told.mtu_bytes for told in [_told(sock, hop, 0.0)] if told is not None), 0)
            return Outcome(hop, Met.FAILED, mtu_bytes=mtu_bytes, errno=error.errno or errno.EIO)
        while True:
            left_s = began_s + timeout_s - time.perf_counter()
            if left_s <= 0:
                return Outcome(hop, Met.SILENCE)
            if not _ready(sock, asked, min(left_s, again_s or left_s)):
                if again_s:
                    with suppress(OSError):  # what came meanwhile is read next
                        sock.send(b"")
                continue
            rtt_s = time.perf_counter() - began_s
            outcome = _told(sock, hop, rtt_s) or _answered(sock, asked, hop, rtt_s, expected)
            if outcome is not None:
                return outcome


def _prepare(sock: socket.socket, asked: Asked, hop: int) -> None:
    sock.setblocking(False)
    discover = _DISCOVER_BY_PROBE if asked.dont_fragment else _DISCOVER_NOT
    if asked.dst.version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hop)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        if asked.dont_fragment:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
        if asked.transport is Transport.ICMP:  # a bit set blocks; only echo replies, type 129, come in
            blocked = bytearray(b"\xff" * 32)
            struct.pack_into("=I", blocked, 16, 0xFFFFFFFF & ~(1 << 1))
            sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        if asked.transport is Transport.ICMP:  # likewise: only type 0
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFE))
    if asked.transport is not Transport.TCP and asked.packet_bytes > 4096:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MOST_BYTES)
    if asked.transport is Transport.TCP:  # leave no connection behind: close with a reset
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _send(sock: socket.socket, asked: Asked, hop: int) -> bytes:
    """Send the probe; return how an answer begins, behind its IP header."""
    destination = (str(asked.dst), asked.dst_port)
    if asked.transport is Transport.TCP:
        code = sock.connect_ex(destination)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        return b""
    sock.connect(destination)
    payload_bytes = asked.packet_bytes - asked.ip_bytes - 8
    if asked.transport is Transport.UDP:
        sock.send(bytes(payload_bytes))
        return b""
    ident = secrets.randbits(16)
    v4 = asked.dst.version == 4
    rest = bytes(payload_bytes)
    header = _ECHO.pack(8 if v4 else 128, 0, 0, ident, hop)
    if v4:  # the kernel fills in ICMPv6's checksum, and no ICMP's
        header = _ECHO.pack(8, 0, checksum(header + rest), ident, hop)
    sock.send(header + rest)
    return struct.pack(">HH", ident, hop)


def _ready(sock: socket.socket, asked: Asked, timeout_s: float) -> bool:
    waiter = select.poll()
    waiter.register(sock, select.POLLOUT if asked.transport is Transport.TCP else select.POLLIN)
    return bool(waiter.poll(max(1, int(timeout_s * 1000))))


def _told(sock: socket.socket, hop: int, rtt_s: float) -> Outcome | None:
    """Read what somebody on the way said about the probe."""
    try:
        _, control, _, _ = sock.recvmsg(64, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError:
        return None
    for level, kind, value in control:
        if (level, kind) not in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
            continue
        code, origin, icmp_type, icmp_code, _, info, _ = _EXTENDED.unpack_from(value)
        if origin == _ORIGIN_LOCAL:
            return Outcome(hop, Met.FAILED, mtu_bytes=info, errno=code)
        if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6):
            who = _offender(value[_EXTENDED.size :])
            return _icmp(hop, who, rtt_s, origin == _ORIGIN_ICMP6, icmp_type, icmp_code, info)
    return None


def _icmp(
    hop: int, who: Address | None, rtt_s: float, v6: bool, icmp_type: int, icmp_code: int, mtu_bytes: int
) -> Outcome:
    """Read an ICMP error (RFC 792, RFC 4443 section 3)."""
    if icmp_type == (3 if v6 else 11):
        return Outcome(hop, Met.HOP, who, rtt_s)
    if (icmp_type == 2 and v6) or (icmp_type == 3 and icmp_code == 4 and not v6):
        return Outcome(hop, Met.TOO_BIG, who, rtt_s, mtu_bytes=mtu_bytes)
    port = 4 if v6 else 3
    if icmp_code == port and icmp_type == (1 if v6 else 3):
        return Outcome(hop, Met.REFUSED, who, rtt_s)
    return Outcome(hop, Met.UNREACHABLE, who, rtt_s, code=icmp_code)


def _answered(sock: socket.socket, asked: Asked, hop: int, rtt_s: float, expected: bytes) -> Outcome | None:
    """Read the destination's answer; None when it is to somebody else's probe."""
    if asked.transport is Transport.TCP:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            return Outcome(hop, Met.ANSWER, asked.dst, rtt_s) if _connected(sock) else None
        if code == errno.ECONNREFUSED:
            return Outcome(hop, Met.REFUSED, asked.dst, rtt_s)
        return Outcome(hop, Met.FAILED, errno=code)
    try:
        received = sock.recv(_MOST_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        return Outcome(hop, Met.FAILED, errno=error.errno or errno.EIO)
    if asked.transport is Transport.ICMP:
        at = (received[0] & 15) << 2 if asked.dst.version == 4 and received else 0
        if received[at + 4 : at + 8] != expected:
            return None
    return Outcome(hop, Met.ANSWER, asked.dst, rtt_s)


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _offender(sockaddr: bytes) -> Address | None:

    with suppress(struct.error, ValueError):
        family = struct.unpack_from("=H", sockaddr)[0]
        if family == socket.AF_INET:
            return IPv4Address(sockaddr[4:8])
        if family == socket.AF_INET6:
            return IPv6Address(sockaddr[8:24])
    return None
