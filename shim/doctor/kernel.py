"""What the router needs of the kernel, and may do there: rights, TUN devices, forwarding, offloads, nftables."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

from shim.doctor.finding import Finding, fail, ok, warn
from shim.doctor.site import Site, own_environment

_NEEDED = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}  # linux/capability.h: make TUNs, enter namespaces
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_SOL_UDP, _UDP_SEGMENT = 17, 103  # linux/udp.h
_USO_SINCE = (6, 2)
_TIMEOUT_S = 10
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def rights(_: Site) -> Iterator[Finding]:
    """Look whether whoever runs this may do what a router does."""
    effective = 0
    with open("/proc/self/status") as file:  # noqa: PTH123 - this process's, whatever the tree
        for line in file:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    missing = [name for bit, name in _NEEDED.items() if not effective >> bit & 1]
    if missing:
        yield fail("rights", f"this process lacks {' and '.join(missing)}", "run the router, and this, as root")
    else:
        yield ok("rights", "CAP_NET_ADMIN and CAP_SYS_ADMIN are there")


def tun(site: Site) -> Iterator[Finding]:
    """Make a TUN in a namespace of its own, and let it go."""
    device = str(site.kernel("/dev/net/tun"))
    trouble: list[OSError] = []

    def work() -> None:
        try:
            _make_tun(device)
        except OSError as error:
            trouble.append(error)

    thread = threading.Thread(target=work, name="tun")
    thread.start()
    thread.join()
    if not trouble:
        yield ok("tun", "a TUN device can be made")
        return
    (error,) = trouble
    remedy = "load the module (modprobe tun), or pass the device into the container (--device /dev/net/tun)"
    if error.errno in (errno.EPERM, errno.EACCES):
        remedy = "run the router, and this, as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN and /dev/net/tun allowed"
    yield fail("tun", f"no TUN device can be made with {device}: {error.strerror}", remedy)


def _make_tun(device: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), f"no namespace for the trial: {os.strerror(ctypes.get_errno())}")
    # Opened after unshare: a TUN belongs to the namespace in which the device was opened.
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"podwire-doctor", _IFF_TUN | _IFF_NO_PI))
    finally:
        os.close(fd)


def forwarding(site: Site) -> Iterator[Finding]:
    """Look whether the node passes on what Pods send out of the cluster, and what comes for its ports."""
    if site.answers is None:
        yield ok("forwarding", "not looked at: the router switches it on when it starts")
        return
    versions = sorted({6 if ":" in subnet else 4 for subnet in site.answers.status.subnets})
    if 6 in versions and site.read("/proc/sys/net/ipv6/conf/all/disable_ipv6") == "1":
        what = "IPv6 is switched off on this node, but the cluster has IPv6 subnets: no node or Pod of it is reached by IPv6"
        yield fail("forwarding", what, "sysctl -w net.ipv6.conf.all.disable_ipv6=0, and restart the router")
    told = own_environment(site.router_pid)
    if "--no-egress" in told.split("\0") or re.search(r"(^|\0)PODWIRE_EGRESS=(false|no|0|off)", told, re.IGNORECASE):
        yield ok("forwarding", "not needed: the router runs without egress")
        return
    off = [version for version in versions if site.read(f"/proc/sys/{_FORWARDING[version]}") == "0"]
    for version in off:
        key = _FORWARDING[version].replace("/", ".")
        what = (
            f"IPv{version} forwarding is off: Pods reach nothing outside the cluster, and published ports lead nowhere"
        )
        keep = "sysctl.d says otherwise after the router started" if version == 4 else "something switched it off"
        yield warn("forwarding", what, f"sysctl -w {key}=1, and look which {keep}; or run the router with --no-egress")
    if not off:
        yield ok("forwarding", f"on for {' and '.join(f'IPv{version}' for version in versions) or 'no subnet yet'}")


def offloads(site: Site) -> Iterator[Finding]:
    """Look what this kernel saves the router."""
    release = site.read("/proc/sys/kernel/osrelease")
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) < _USO_SINCE:
        what = f"Linux {release} has no UDP super-packets on TUNs: UDP is carried a packet at a time"
        yield warn("offloads", what, "use Linux 6.2 or newer, if UDP throughput matters")
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(_SOL_UDP, _UDP_SEGMENT, 1000)
    except OSError as error:
        what = f"this kernel sends no trains of datagrams (UDP_SEGMENT: {error.strerror}): the tunnel is slow"
        yield warn(
            "offloads", what, "use Linux 4.18 or newer, without anything that hides UDP_SEGMENT (gVisor, old LXC)"
        )
        return
    yield ok("offloads", f"Linux {release}: UDP super-packets on TUNs and trains on the underlay are known")


def nftables(_: Site) -> Iterator[Finding]:
    """Look whether nftables, which does egress and published ports, works here."""
    try:
        done = subprocess.run(
            ["nft", "list", "tables"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        what = "nft is not installed: no masquerading, no published ports"
        yield warn("nftables", what, "install nftables; or run the router with --no-masquerade")
    except subprocess.TimeoutExpired:
        yield warn("nftables", f"nft does not answer within {_TIMEOUT_S} s", "end the program that holds its lock")
    else:
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            yield warn("nftables", f"nft fails: {why}", "load nf_tables (modprobe nf_tables), and run this as root")
        else:
            yield ok("nftables", "nft works")
