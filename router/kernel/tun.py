"""Make, open, dress and remove TUN devices with a virtio header, in any network namespace.

The device is persistent: it outlives the router with its addresses and routes, and is opened again by name.
A TUN fd belongs to the namespace in which /dev/net/tun was opened, so every open happens inside the target.
pyroute2, a fifth of a second to import, is imported when something is dressed: packets do not wait for it after a crash.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytun

from router.errors import Kind, Refusal
from router.kernel import netns
from router.model import Address, Interface, Offloads, Prefix
from router.wire.geneve import HEADER_BYTES
from router.wire.segment import MAX_TRAIN_BYTES

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_TUNSETOFFLOAD = 0x400454D0  # linux/if_tun.h
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN, _TUN_F_USO4, _TUN_F_USO6 = 1, 2, 4, 8, 0x20, 0x40
_ADDR_GEN_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
_IFF_MULTICAST = 0x1000  # linux/if.h
_TUNSETPERSIST, _TUNGETIFF, _TUNGETDEVNETNS = 0x400454CB, 0x800454D2, 0x54E3
_LARGEST_HEADERS_BYTES = 72
"""IPv6 + TCP with timestamps: what an MTU loses to headers in a segment."""

TX_QUEUE_FRAMES = 1000


@dataclass(frozen=True, slots=True)
class Dress:
    """What a TUN wears in its namespace: addresses, routes into it, sizes."""

    addresses: tuple[Interface, ...]
    """Set as host addresses (/32, /128)."""
    gateways: tuple[Address, ...]
    """Default routes through these; empty for none."""
    prefixes: tuple[Prefix, ...]
    """Routed into the device directly."""
    mtu_bytes: int
    max_segments: int = 128


def create(netns_path: str, if_name: str, dress: Dress, offloads: Offloads) -> int:
    """Make a TUN in a namespace, dress it, and return its non-blocking fd, which the caller closes.

    Nothing is left when it fails. Raise Refusal: EXISTS when the interface name is taken, STATE when the kernel or its
    rights do not allow it, INVALID when the namespace is none.
    """
    return netns.inside(netns_path, lambda: _create(netns_path, if_name, dress, offloads))


def reopen(netns_path: str, if_name: str, offloads: Offloads) -> int:
    """Open the TUN an earlier router left in a namespace as it is, and return its fd. Raise Refusal(NOT_FOUND) when it is gone."""

    def work() -> int:
        try:
            socket.if_nametoindex(if_name)
        except OSError:
            raise Refusal(Kind.NOT_FOUND, f"interface {if_name} in {netns_path} is gone") from None
        with _explained(f"interface {if_name} in {netns_path}"):
            return _open(if_name, offloads, exclusive=False)

    return netns.inside(netns_path, work)


def mend(netns_path: str, if_name: str, dress: Dress) -> None:
    """Make good what a TUN that was there already lacks. Raise Refusal(STATE)."""

    def work() -> None:
        with _explained(f"interface {if_name} in {netns_path}"):
            _put_on(if_name, dress)

    netns.inside(netns_path, work)


def redress(netns_path: str, if_name: str, dress: Dress) -> None:
    """Change what a TUN wears: other addresses are taken off, the rest is put on. Raise Refusal(STATE)."""
    from pyroute2 import IPRoute

    def work() -> None:
        with _explained(f"interface {if_name} in {netns_path}"):
            _put_on(if_name, dress)
            wanted = {str(interface.ip) for interface in dress.addresses}
            with IPRoute() as ip:
                for entry in ip.get_addr(index=_index_of(ip, if_name)):
                    address = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
                    if address not in wanted:
                        ip.addr("del", index=entry["index"], address=address, prefixlen=entry["prefixlen"])

    netns.inside(netns_path, work)


def discard(fd: int, shared: bool = False) -> None:
    """Delete the TUN behind an fd by closing it, wherever its namespace is; one that is gone already is no error.

    `shared` says that another process has the fd too: then closing it would not do.
    """
    with suppress(OSError):
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
    if shared:
        with suppress(OSError, Refusal), _namespace_of(fd) as netns_path:
            remove(netns_path, _name_of(fd))
    with suppress(OSError):
        os.close(fd)


def is_at(fd: int, namespace: netns.Identity, if_name: str) -> bool:
    """Tell whether an fd somebody handed over is the TUN of that name in that namespace."""
    try:
        with _namespace_of(fd) as found:
            return _name_of(fd) == if_name and netns.identity(found) == namespace
    except OSError:
        return False


def _name_of(fd: int) -> str:
    """Return the present name of the TUN behind an fd. Raise OSError when the fd is none, or its device is gone."""
    return fcntl.ioctl(fd, _TUNGETIFF, bytes(40))[:16].partition(b"\0")[0].decode(errors="replace")


@contextmanager
def _namespace_of(fd: int) -> Iterator[str]:
    """Yield a path to the namespace a TUN is in now. Raise OSError as `_name_of`."""
    namespace_fd = fcntl.ioctl(fd, _TUNGETDEVNETNS)
    try:
        yield f"/proc/self/fd/{namespace_fd}"
    finally:
        os.close(namespace_fd)


def remove(netns_path: str, if_name: str) -> None:
    """Delete the TUN; no error when it, or its namespace, is gone already."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def work() -> None:
        with IPRoute() as ip:
            # Only a TUN: the path may have come to lead to somebody else's namespace since.
            for index in ip.link_lookup(ifname=if_name, kind="tun"):
                ip.link("del", index=index)

    try:
        netns.inside(netns_path, work)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise Refusal(Kind.STATE, f"cannot delete {if_name} in {netns_path}: {os.strerror(error.code)}") from None
    except Refusal as refusal:
        if refusal.kind is not Kind.INVALID:  # no namespace, no device
            raise


def ring_drops(places: Sequence[tuple[str, str]]) -> list[int]:
    """Return how many packets the kernel dropped because a TUN's ring was full, for each (namespace path, name).

    That is `TX drop` of its statistics; 0 when the device or its namespace is gone.
    """

    def read(which: int) -> int:
        with Path("/proc/thread-self/net/dev").open() as file:
            for line in file:
                name, _, numbers = line.partition(":")
                if name.strip() == places[which][1]:
                    return int(numbers.split()[11])
        return 0

    return [drops or 0 for drops in netns.inside_each([path for path, _ in places], read)]


def offload_bits(offloads: Offloads) -> int:
    """Return the TUNSETOFFLOAD argument for these switches; nothing works without checksums."""
    if not offloads.tun_checksum:
        return 0
    bits = _TUN_F_CSUM
    if offloads.tun_tso:
        bits |= _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
    if offloads.tun_uso:
        bits |= _TUN_F_USO4 | _TUN_F_USO6
    return bits


def set_offload(fd: int, offloads: Offloads) -> None:
    """Tell the kernel what it may leave undone on packets read from the TUN. Raise OSError(EINVAL) if it cannot."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, offload_bits(offloads))


def _create(netns_path: str, if_name: str, dress: Dress, offloads: Offloads) -> int:
    with _explained(f"interface {if_name} in {netns_path}"):
        fd = _open(if_name, offloads, exclusive=True)
        try:
            _put_on(if_name, dress)
        except BaseException:
            discard(fd)
            raise
        return fd


def _open(if_name: str, offloads: Offloads, exclusive: bool) -> int:
    """Open the TUN in the namespace this thread is in."""
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR | (pytun.IFF_TUN_EXCL if exclusive else 0)
    try:
        device = pytun.TunTapDevice(name=if_name, flags=flags)
    except (pytun.Error, OSError) as error:
        raise _no_tun(if_name, error) from None
    try:
        if exclusive:
            device.persist(True)
        fd = os.dup(device.fileno())
    finally:
        device.close()
    try:
        os.set_blocking(fd, False)
        set_offload(fd, offloads)
    except BaseException:
        if exclusive:
            discard(fd)
        else:
            os.close(fd)
        raise
    return fd


def _no_tun(if_name: str, error: Exception) -> Refusal:
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    if code == errno.EBUSY:
        return Refusal(Kind.EXISTS, f"interface {if_name} is there already; choose another name or remove it")
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return Refusal(
            Kind.STATE, "/dev/net/tun is missing: load the module (modprobe tun), or give the container the device"
        )
    if code in (errno.EPERM, errno.EACCES):
        return Refusal(Kind.STATE, "may not use /dev/net/tun: run the router as root (it needs CAP_NET_ADMIN)")
    return Refusal(Kind.STATE, f"cannot make TUN {if_name}: {error}")


def _put_on(if_name: str, dress: Dress) -> None:
    """Set link, addresses and routes, all of which may be there already."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        index = _index_of(ip, if_name)
        # Without a link-local address the kernel sends no router solicitations, which nobody here answers.
        ip.link(
            "set",
            index=index,
            IFLA_AF_SPEC={"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE)]})]},
        )
        # Nor does it report multicast groups over a link that carries none.
        ip.link("set", index=index, flags=0, change=_IFF_MULTICAST)
        gso_bytes = gso_max_bytes(dress.mtu_bytes)
        ip.link(
            "set", index=index, mtu=dress.mtu_bytes, state="up", txqlen=TX_QUEUE_FRAMES,
            gso_max_size=gso_bytes, gso_ipv4_max_size=gso_bytes, gso_max_segs=dress.max_segments,
        )  # fmt: skip
        for interface in dress.addresses:
            host = interface.max_prefixlen
            ip.addr("replace", index=index, address=str(interface.ip), prefixlen=host, flags=_flags(interface))
        sources = {interface.version: str(interface.ip) for interface in dress.addresses}
        for prefix in dress.prefixes:
            if prefix.version in sources:
                ip.route("replace", dst=str(prefix), oif=index, prefsrc=sources[prefix.version])
        for gateway in dress.gateways:
            if gateway.version in sources:
                family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
                # The first interface of a sandbox is its way out: a second one takes nothing from it.
                with _already_there():
                    ip.route("add", dst=f"{gateway}/{gateway.max_prefixlen}", oif=index, scope="link")
                    ip.route("add", family=family, dst="default", gateway=str(gateway), oif=index)


def _index_of(ip: IPRoute, if_name: str) -> int:
    for index in ip.link_lookup(ifname=if_name):
        return int(index)
    raise Refusal(Kind.NOT_FOUND, f"interface {if_name} is gone")


@contextmanager
def _already_there() -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _flags(interface: Interface) -> int:
    return 0x02 if interface.version == 6 else 0  # IFA_F_NODAD: nobody else is on the link


def gso_max_bytes(mtu_bytes: int) -> int:
    """Return the largest super-packet whose segments fit one UDP send with their tunnel headers."""
    segments = max(1, MAX_TRAIN_BYTES // (mtu_bytes + HEADER_BYTES))
    return min(65536, segments * max(1, mtu_bytes - _LARGEST_HEADERS_BYTES) + _LARGEST_HEADERS_BYTES)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the kernel's refusals into ours."""
    try:
        yield
    except OSError as error:
        raise Refusal(Kind.STATE, f"cannot set up {what}: {error.strerror}") from None
    except Exception as error:
        from pyroute2.netlink.exceptions import NetlinkError

        if not isinstance(error, NetlinkError):
            raise
        raise Refusal(Kind.STATE, f"cannot set up {what}: {os.strerror(error.code)}") from None
