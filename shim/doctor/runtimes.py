"""Whether the runtimes of the node really use the router."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Generator, Iterator, Sequence

from shim.doctor.finding import Finding, fail, ok, warn
from shim.doctor.programs import looked_at
from shim.doctor.site import Site
from shim.install import cni, containerd, podman
from shim.install.containerd import Containerd
from shim.install.podman import Podman
from shim.install.root import InstallError, table

_TIMEOUT_S = 20


def runtimes(site: Site) -> Iterator[Finding]:
    """Look at each runtime of the node."""
    try:
        found, other = containerd.find(site.root, site.containerd_config), podman.find(site.root)
    except InstallError as error:
        yield fail("runtimes", error.message, "correct that file")
        return
    if found is None and other is None:
        what = "neither containerd nor podman is on this node: nobody asks the router for anything"
        yield warn("runtimes", what, "install one, then: podwire install")
    if found is not None:
        yield from _containerd(site, found)
    if other is not None:
        yield from _podman(site, other)


def _containerd(site: Site, found: Containerd) -> Iterator[Finding]:
    check = "containerd"
    if trouble := _cannot_connect(site, found.socket):
        what = f"containerd does not answer at {found.socket}: {trouble}"
        yield warn(check, what, "start it (systemctl start containerd), or name its configuration: --containerd-config")
    else:
        yield ok(check, f"{_version(site, found.program)} listens at {found.socket}")
    ours = yield from _network(site, check, found.conf_dir, found.bin_dirs, ordered=True)
    if ours and found.version < 3 and not _has_program(site, found.bin_dirs, "loopback"):  # 2.x brings its own
        what = f"{' and '.join(found.bin_dirs)} has no `loopback` plugin, which containerd asks for first"
        yield fail(check, what, "install the stock CNI plugins (containernetworking-plugins)")
    shim = site.root.program(containerd.SHIM)
    if found.handlers.get(containerd.HANDLER) == containerd.RUNTIME_TYPE and not shim:
        what = f"the runtime handler `{containerd.HANDLER}` needs {containerd.SHIM}, which is not there"
        yield fail(check, what, "podwire install containerd")
    if shim:
        yield from looked_at(site, check, shim)
        if not site.root.program(containerd.STOCK_SHIM):
            what = f"{containerd.STOCK_SHIM}, which our shim wraps, is not there"
            yield fail(check, what, "install containerd's own shims beside it")


def _podman(site: Site, found: Podman) -> Iterator[Finding]:
    check = "podman"
    yield ok(check, f"podman {found.version} at {found.program}" if found.version else found.program)
    if found.speaks_cni and found.backend != "netavark":
        yield from _network(site, check, found.conf_dir, found.cni_dirs, ordered=False)
    for directory in found.hooks_dirs:
        for stage in podman.STAGES:
            path = f"{directory}/{podman.hook_file(stage)}"
            if site.root.at(path).exists():
                yield from _hook(site, path)


def _hook(site: Site, path: str) -> Iterator[Finding]:
    try:
        document = json.loads(site.root.at(path).read_text())
        program = str(table({"it": document}, "it", "hook")["path"])
    except (OSError, ValueError, KeyError) as error:
        yield fail("podman", f"{path} is no hook: {error}", "podwire install podman --overwrite")
        return
    yield from looked_at(site, "podman", program)


def _network(
    site: Site, check: str, conf_dir: str, bin_dirs: Sequence[str], *, ordered: bool
) -> Generator[Finding, None, bool]:
    """Look at a runtime's CNI directories; return whether our network is in them."""
    names = cni.files(site.root, conf_dir)
    ours = []
    for name in names:
        try:
            plugins = cni.plugins(cni.read(site.root, f"{conf_dir}/{name}"))
        except InstallError as error:
            yield warn(check, error.message, "correct or remove it: a runtime that meets it may take no network at all")
            continue
        if mine := [plugin for plugin in plugins if plugin.get("type") == cni.PLUGIN]:
            ours.append((name, mine[0]))
    if not ours:
        yield warn(
            check, f"{conf_dir} has no network of ours: {check} does not use the router", f"podwire install {check}"
        )
        return False
    name, plugin = ours[0]
    path = f"{conf_dir}/{name}"
    if ordered and names[0] != name:
        what = f"{conf_dir}/{names[0]} is read before {path}: {check} gives Pods that network"
        yield warn(check, what, f"move {conf_dir}/{names[0]} away, or give it a later name")
    programs = [f"{directory}/{cni.PLUGIN}" for directory in bin_dirs]
    there = [program for program in programs if os.access(site.root.at(program), os.X_OK)]
    if not there:
        what = f"{path} wants {cni.PLUGIN}, which is not in {' or '.join(bin_dirs)}: no Pod starts"
        yield fail(check, what, f"podwire install {check}")
    else:
        yield from looked_at(site, check, there[0])
    if (asked := str(plugin.get("socket", cni.DEFAULT_SOCKET))) != site.socket_path:
        what = f"{path} asks the router at {asked}, and this one is at {site.socket_path}"
        yield warn(check, what, f"podwire install {check} --socket {site.socket_path}")
    mtu_bytes, most = plugin.get("mtu", 0), site.answers.status.mtu_bytes if site.answers else 0
    if isinstance(mtu_bytes, int) and 0 < most < mtu_bytes:
        what = f"{path} wants an MTU of {mtu_bytes}, and the overlay carries {most}: no Pod starts"
        yield fail(check, what, f"podwire install {check}, without --mtu or with a smaller one")
    if ordered and names[0] == name and there:
        yield ok(check, f"{path} is the network of its Pods")
    return True


def _cannot_connect(site: Site, path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT_S)
        try:
            probe.connect(str(site.root.at(path)))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _has_program(site: Site, directories: Sequence[str], name: str) -> bool:
    return any(os.access(site.root.at(f"{directory}/{name}"), os.X_OK) for directory in directories)


def _version(site: Site, program: str) -> str:
    if not program or not site.root.is_node:
        return "containerd"
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "containerd"
    words = done.stdout.split()
    return f"containerd {words[2].removeprefix('v')}" if len(words) > 2 else "containerd"
