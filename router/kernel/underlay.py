"""The UDP socket towards other routers, and what the underlay tells about its size."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from router.errors import Kind, Refusal
from router.model import OVERHEAD_BYTES, Endpoint, Offloads

_SOL_UDP, _UDP_GRO = 17, 104  # linux/udp.h
_IP_MTU_DISCOVER, _IP_MTU, _PMTUDISC_DO = 10, 14, 2  # linux/in.h
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24  # linux/in6.h
_BUFFER_BYTES = 8 << 20
"""Room for the bursts of several peers: 7 MB and more brought others a third (wireguard-go, nebula)."""


def open_underlay(endpoint: Endpoint, offloads: Offloads) -> socket.socket:
    """Bind the non-blocking socket that carries all tunnels. Raise Refusal(STATE) when the address cannot be bound.

    Datagrams carry the don't-fragment bit, so that the path MTU shows (RFC 8899 section 3), and a checksum.
    """
    v6 = endpoint.address.version == 6
    underlay = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        underlay.setblocking(False)
        if v6:
            underlay.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            underlay.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        else:
            underlay.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        _enlarge(underlay)
        if offloads.udp_gro:
            set_gro(underlay, on=True)
        underlay.bind((str(endpoint.address), endpoint.port))
    except OSError as error:
        underlay.close()
        raise Refusal(Kind.STATE, _explain(endpoint, error)) from None
    return underlay


def is_bound(found: socket.socket, endpoint: Endpoint) -> bool:
    """Tell whether a socket that somebody handed over is one of `open_underlay` for that endpoint."""
    v6 = endpoint.address.version == 6
    try:
        kind = (found.family, found.type)
        address, port = found.getsockname()[:2]
        return kind == (socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) and (
            ip_address(address) == endpoint.address and port == endpoint.port
        )
    except (OSError, ValueError):
        return False


def set_gro(underlay: socket.socket, on: bool) -> None:
    """Let trains of datagrams be received whole, or not."""
    underlay.setsockopt(_SOL_UDP, _UDP_GRO, int(on))


def _enlarge(underlay: socket.socket) -> None:
    for force, plain in ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF)):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
        try:
            underlay.setsockopt(socket.SOL_SOCKET, force, _BUFFER_BYTES)
        except PermissionError:  # without CAP_NET_ADMIN the sysctl's limit holds
            underlay.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)


def _explain(endpoint: Endpoint, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"underlay {endpoint} is in use: is another router, or another Geneve endpoint, running on this node?"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"underlay address {endpoint.address} is on no interface of this node: give one that is (--underlay)"
    return f"cannot bind underlay {endpoint}: {error.strerror}"


def path_mtu(own: Endpoint, peer: Endpoint) -> int:
    """Return the kernel's present path MTU from one endpoint's address to another's, in bytes. Raise OSError."""
    v6 = peer.address.version == 6
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        probe.bind((str(own.address), 0))
        probe.connect((str(peer.address), peer.port))
        if v6:
            return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)


def overhead_bytes(endpoint: Endpoint) -> int:
    """Return what the tunnel adds to a packet on this underlay."""
    return OVERHEAD_BYTES[endpoint.address.version]
