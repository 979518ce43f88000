"""Limits that a node meets with many Pods, and its clocks."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from shim.doctor.finding import Finding, fail, ok, warn
from shim.doctor.site import Site
from shim.install import cni, manifest

_FDS_PER_POD = 2
_FDS_ASIDE = 64
_PIDS_PER_POD = 64
"""A shim has a dozen threads, and a Pod some processes."""
_INOTIFY_INSTANCES = 64
_BUFFER_BYTES = 8 << 20
"""What the router asks for on its underlay socket."""
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_SLACK_S = 60


def open_files(site: Site) -> Iterator[Finding]:
    """Look whether the router may open what so many Pods need."""
    pid = site.router_pid if site.router_pid > 0 else None
    limits = site.read(f"/proc/{pid or 'self'}/limits")
    match = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
    if match is None:
        return
    most, needed = int(match[1]), site.pods * _FDS_PER_POD + _FDS_ASIDE
    whose = f"the router (process {pid})" if pid else "a router started from here"
    if most < needed:
        what = f"{whose} may open {most} files, and {site.pods} Pods need about {needed}"
        yield warn("open files", what, f"start it with LimitNOFILE={max(65536, needed)} (systemd), or ulimit -n")
    else:
        yield ok("open files", f"{whose} may open {most}, enough for {site.pods} Pods")


def processes(site: Site) -> Iterator[Finding]:
    """Look whether the node may have as many processes as so many Pods are."""
    most, needed = site.number("/proc/sys/kernel/pid_max"), site.pods * _PIDS_PER_POD
    if most is not None and most < needed:
        what = f"the node may have {most} processes and threads, and {site.pods} Pods have up to {needed}"
        yield warn("processes", what, "sysctl -w kernel.pid_max=4194304")
    elif most is not None:
        yield ok("processes", f"pid_max {most} is enough for {site.pods} Pods")


def watches(site: Site) -> Iterator[Finding]:
    """Look whether runtimes may watch their CNI directory."""
    most = site.number("/proc/sys/fs/inotify/max_user_instances")
    if most is not None and most < _INOTIFY_INSTANCES:
        what = f"a user may have {most} inotify instances: a runtime that gets none does not see its CNI network change"
        yield warn("watches", what, "sysctl -w fs.inotify.max_user_instances=512")
    elif most is not None:
        yield ok("watches", f"{most} inotify instances a user")


def receive_buffer(site: Site) -> Iterator[Finding]:
    """Look whether the underlay socket gets the buffer that bursts of several peers need."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except OSError:
            most = site.number("/proc/sys/net/core/rmem_max") or 0
            if most < _BUFFER_BYTES:
                what = f"the underlay socket gets {most >> 10} KiB to receive into, not {_BUFFER_BYTES >> 10}: bursts are lost"
                yield warn(
                    "receive buffer", what, f"run the router as root, or sysctl -w net.core.rmem_max={_BUFFER_BYTES}"
                )
                return
    yield ok("receive buffer", f"{_BUFFER_BYTES >> 20} MiB")


def clock(site: Site) -> Iterator[Finding]:
    """Look whether the clocks by which late requests are known, and addresses rest, are sane."""
    well = True
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", site.read("/proc/sys/kernel/random/boot_id")):
        well = False
        what = "the kernel has no boot id: after a restart of the node, what is left of Pods is not known to be old"
        yield warn("clock", what, "make /proc/sys/kernel/random/boot_id readable to the router")
    uptime = site.read("/proc/uptime").partition(" ")[0]
    try:
        apart = abs(time.clock_gettime(time.CLOCK_BOOTTIME) - float(uptime))
    except ValueError:
        apart = 0.0
    if apart > _SLACK_S:
        well = False
        what = f"CLOCK_BOOTTIME and /proc/uptime are {apart:.0f} s apart: late requests cannot be told from early ones"
        yield fail("clock", what, "run routers and runtimes in one time namespace, the node's own")
    now = time.time()
    for path in ("/var/lib/podwire/router.db", manifest.PATH, f"{cni.CONF_DIR}/{cni.FILE}"):
        if (written := _mtime(site.root.at(path))) > now + _SLACK_S:
            well = False
            what = f"{path} was written {written - now:.0f} s in the future: the node's clock was set back"
            yield warn(
                "clock", what, "set the clock (chronyc makestep), else freed addresses rest longer than they should"
            )
    if well:
        yield ok("clock", "boot id, boot time and wall clock agree")


def _mtime(path: Path) -> float:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 - 0 when it is not there
    except OSError:
        return 0.0
