"""Give up what a router does not need, before it has a thread, reads a table or carries a packet; none of it comes back.

    capabilities   NEEDED and no more, in every set, so that neither a bug nor a program that is run has others
    privileges     nothing that is run gains any (no_new_privs)
    system calls   filtered by seccomp.py

What is in force is read from /proc for every thread, not remembered. docs/decisions/0028-confinement.md tells how each
capability was found to be needed.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator
from typing import Final

from router.errors import Kind, Refusal
from router.kernel import capabilities, seccomp
from router.values import Switch

NEEDED: Final = {
    "dac_read_search": "reach namespaces below /run/user/UID, which is the user's alone",
    "net_admin": "make TUN devices, set addresses and routes, hand nftables its rules, enlarge socket buffers",
    "net_raw": "send a trace's probes from a Pod",
    "sys_ptrace": "open /proc/PID/ns/net of a process that is another user's or has more capabilities",
    "sys_admin": "enter a Pod's network namespace",
}
"""Capability, and what for."""
FOR_LOW_PORTS: Final = {"net_bind_service": "listen at a port below 1024"}
FOR_PODMAN: Final = {
    "dac_override": "run podman, which tests after a boot whether overlayfs works, and notes it for all"
}
_PODMAN: Final = "podman"
LOWEST_FREE_PORT: Final = 1024
"""Below, a port takes CAP_NET_BIND_SERVICE (net.ipv4.ip_unprivileged_port_start)."""


def confine(switch: Switch, *, low_ports: bool = False, runtimes: Collection[str] = ()) -> tuple[str, ...]:
    """Give it up, and return in words what could not be; with ON that is a Refusal(STATE), with OFF nothing is given up.

    `low_ports`: it listens at one below 1024; `runtimes`: those it asks, as settings name them.
    """
    if switch is Switch.OFF:
        return ("confinement is switched off: the router keeps all rights that it was started with",)
    wanted = {*NEEDED, *(FOR_LOW_PORTS if low_ports else ()), *(FOR_PODMAN if _PODMAN in runtimes else ())}
    failures = tuple(_give_up(capabilities.bits(wanted), mounts=bool(runtimes)))
    if failures and switch is Switch.ON:
        raise Refusal(
            Kind.STATE, f"the router cannot be confined here: {'; '.join(failures)}. Run with --confine auto to go on"
        )
    return failures


def _give_up(wanted: int, *, mounts: bool) -> Iterator[str]:
    try:
        # Before CAP_SETPCAP goes; and each of the three for its own sake, whatever becomes of the others.
        capabilities.keep_only(wanted)
    except OSError as error:
        yield f"capabilities are not all given up: {error.strerror}"
    try:
        capabilities.gain_nothing()
    except OSError as error:
        yield f"programs that are run may gain privileges: {error.strerror}"
    if not seccomp.is_known():
        yield f"system calls are not filtered: there is no table of them for {platform.machine()}"
        return
    try:
        seccomp.put_in_force(mounts=mounts)
    except OSError as error:
        yield f"system calls are not filtered: the kernel refuses it ({error.strerror})"


def in_force() -> str:
    """Say in one line what every thread of this process is confined to; it is as weak as its weakest thread."""
    held = tuple(capabilities.held_by_threads())
    every = 0
    for each in held:
        every |= each.any
    known = capabilities.bits({*NEEDED, *FOR_LOW_PORTS, *FOR_PODMAN})
    may = f"capabilities {', '.join(capabilities.names(every))}" if not every & ~known else "capabilities not cut"
    return "; ".join(
        (
            may,
            "system calls filtered" if all(each.filters for each in held) else "system calls not filtered",
            "no new privileges" if all(each.no_new_privileges for each in held) else "new privileges possible",
        )
    )
