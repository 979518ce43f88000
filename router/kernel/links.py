"""What this machine's interfaces say: whose address is where, how much they carry.

By getifaddrs(3) and netdevice(7), not by pyroute2: a router that starts again carries packets before that is imported.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface

from router.errors import Kind, Refusal
from router.model import Address, Prefix

_IFF_UP, _IFF_LOWER_UP = 1, 0x10000  # linux/if.h
_EVERYBODY = b"\xff\xff\xff\xff"
_SIOCGIFMTU = 0x8921  # linux/sockios.h
_IN_SOCKADDR = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Where in a struct sockaddr_in or sockaddr_in6 the address is, and how long."""


class _Ifaddrs(ctypes.Structure):
    """struct ifaddrs, ifaddrs.h; the pointers to struct sockaddr stay numbers."""


_Ifaddrs._fields_ = [  # afterwards: it holds a pointer to its like
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("destination", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Held:
    """An address of an interface."""

    if_name: str
    flags: int
    address: Address
    prefix: Prefix
    """Of the far end, where the link has but one."""


def local_prefixes(besides: str) -> list[tuple[str, Prefix]]:
    """Return (interface name, prefix) of every address of this machine, but for one interface of our own."""
    return [(held.if_name, held.prefix) for held in _held() if held.if_name not in (besides, "lo")]


def mtu_of(address: Address) -> int:
    """Return the MTU in bytes of the interface that has an address. Raise Refusal(STATE) when none has."""
    held = _holder(address)
    if held is None:
        raise Refusal(
            Kind.STATE, f"underlay address {address} is on no interface of this node: give one that is (--underlay)"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16s24x", held.if_name.encode())
        return int(struct.unpack_from("=i", fcntl.ioctl(any_socket, _SIOCGIFMTU, request), 16)[0])


def link_down(address: Address) -> str:
    """Return why the interface that has an address carries nothing now, as "eth0 has no carrier"; empty when it does."""
    held = _holder(address)
    if held is None:
        return f"{address} is on no interface any more"
    if not held.flags & _IFF_UP:
        return f"{held.if_name} is down"
    return "" if held.flags & _IFF_LOWER_UP else f"{held.if_name} has no carrier"


def _holder(address: Address) -> _Held | None:
    return next((held for held in _held() if held.address == address), None)


def _held() -> Iterator[_Held]:
    """Yield every address of this network namespace."""
    first = ctypes.POINTER(_Ifaddrs)()
    if _libc.getifaddrs(ctypes.byref(first)):
        raise Refusal(Kind.STATE, f"the node's addresses cannot be read: {os.strerror(ctypes.get_errno())}")
    try:
        entry = first
        while bool(entry):  # not NULL
            found = entry.contents
            if (address := _bytes(found.address)) is not None and (mask := _bytes(found.netmask)) is not None:
                bits = sum(byte.bit_count() for byte in mask)
                # The far end, or where there is none the broadcast address, which is in the same prefix as ours.
                far = _bytes(found.destination)
                yield _Held(
                    # An alias of an address, as eth0:1, is no interface of its own.
                    found.name.decode(errors="replace").partition(":")[0],
                    found.flags,
                    _address(address),
                    ip_interface(f"{_address(address if far in (None, _EVERYBODY) else far)}/{bits}").network,
                )
            entry = found.next
    finally:
        _libc.freeifaddrs(first)


def _bytes(sockaddr: int | None) -> bytes | None:
    """Return the address in a struct sockaddr; None when it is none of IP."""
    if not sockaddr:
        return None
    (family,) = struct.unpack("=H", ctypes.string_at(sockaddr, 2))
    where = _IN_SOCKADDR.get(family)
    return None if where is None else ctypes.string_at(sockaddr + where[0], where[1])


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
