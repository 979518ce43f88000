"""What the router says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shim.doctor.finding import Finding, fail, ok, warn
from shim.doctor.site import Site

_FEW = 16
"""Free addresses below which a subnet is nearly full; a kubelet asks for some a second."""


def answers(site: Site) -> Iterator[Finding]:
    """Look whether a router answers, and whether it is the one that is installed."""
    if site.answers is None:
        if site.router_pid > 0:
            what = f"process {site.router_pid} listens at {site.socket_path}, but does not answer: {site.unreachable}"
            yield fail("router", what, "look into its log, and restart it if it is the router")
        else:
            yield fail("router", site.unreachable, "start it (podwire router run), or name its socket with --socket")
        return
    status = site.answers.status
    try:
        installed = version("podwire")
    except PackageNotFoundError:
        installed = status.version
    if status.version != installed:
        what = f"podwire {status.version} runs, and {installed} is installed"
        yield warn("router", what, "restart the router: Pods keep their interfaces and addresses")
    else:
        yield ok("router", f"podwire {status.version} answers for node {status.node}, {status.attachments} Pods")
    if site.router_pid > 0 and _time_namespace("self") != _time_namespace(str(site.router_pid)):
        what = "the router and this are in different time namespaces: it takes their requests for late ones, or never for late"
        yield fail("router", what, "start the router outside of unshare --time, where the runtimes are")


def addresses(site: Site) -> Iterator[Finding]:
    """Look whether Pods can still get an address."""
    if site.answers is None:
        return
    status = site.answers.status
    if not status.subnets:
        what = f"node {status.node} has no subnet in the table: no Pod gets an address"
        yield fail("addresses", what, f"add {status.node} to the subnet table (podwire subnets set, or its file)")
    for free in status.free_addresses:
        if free.free == 0:
            what = f"{free.subnet} has no free address: no Pod gets one"
            yield fail("addresses", what, "remove Pods (podwire pods), or give the node another subnet as well")
        elif free.free < _FEW:
            what = f"{free.subnet} has {free.free} free addresses left"
            yield warn("addresses", what, "remove Pods (podwire pods), or give the node another subnet as well")
        else:
            yield ok("addresses", f"{free.subnet} has free addresses")


def subnet_table(site: Site) -> Iterator[Finding]:
    """Look whether the newest subnet table is in force, and whether other nodes are reached."""
    if site.answers is None:
        return
    status = site.answers.status
    if status.table_error:
        what = f"the newest subnet table is not in force: {status.table_error}"
        yield warn("subnet table", what, "correct it; until then the last one that was right stays in force")
    else:
        yield ok("subnet table", f"version {status.table_version} is in force, with {status.peers} other nodes")
    if status.peers_unreachable:
        some = "; ".join(status.unreachable)
        what = f"{status.peers_unreachable} of {status.peers} other nodes cannot be reached: {some}"
        remedy = "look at the underlay: ip route get ADDRESS, interface, cable, firewall"
        all_of_them = status.peers_unreachable >= status.peers
        yield fail("peers", what, remedy) if all_of_them else warn("peers", what, remedy)


def notes(site: Site) -> Iterator[Finding]:
    """Pass on what the router noted: lost attachments, offloads that do not work."""
    for note in site.answers.status.notes if site.answers else ():
        if "lost its device" in note:
            yield warn(
                "attachments", note, "let the runtime make that Pod anew, or: podwire detach --id ID --ifname NAME"
            )
        elif "podwire0 is gone" in note:
            yield fail("attachments", note, "restart the router, and look who removed the interface")
        elif "switched off" in note or "switched on" in note:
            yield ok("offloads", note)
        else:
            yield warn("offloads", note, "use a newer kernel; what is off is slower, and nothing else")


def _time_namespace(pid: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/time").readlink())
    except OSError:
        return ""
