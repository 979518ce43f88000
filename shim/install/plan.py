"""Which files make a node's runtimes use the router, and what people have to do themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from shim import launchers
from shim.install import cni, containerd, podman
from shim.install.changes import Wanted
from shim.install.containerd import Containerd
from shim.install.podman import Podman
from shim.install.root import InstallError, Root

RUNTIMES = ("containerd", "podman")

_MODE = 0o644
_PROGRAM_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for."""

    runtimes: tuple[str, ...] = ()
    """None: those that are found."""
    socket_path: str = cni.DEFAULT_SOCKET
    network: str = cni.DEFAULT_NETWORK
    mtu_bytes: int = 0
    podman_default_network: bool = False
    containerd_config: str = containerd.CONFIG
    cni_client: str = "auto"
    """Of launchers.CLIENTS."""


@dataclass(frozen=True, slots=True)
class Paste:
    """Lines for a file that is not ours to edit."""

    path: str
    text: str
    purpose: str
    reason: str
    """Why no file of ours can hold them."""


@dataclass(slots=True)
class Plan:
    """All of it."""

    files: list[Wanted] = field(default_factory=list)
    pastes: list[Paste] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    """What is to be done afterwards."""
    cni_client: str = ""
    """Which CNI plugin was chosen: native or python; empty where none is installed."""

    def add(self, path: str, content: str | bytes, purpose: str, mode: int = _MODE) -> None:
        """Want a file; one that is wanted for two reasons is wanted once."""
        if all(file.path != path for file in self.files):
            found = content if isinstance(content, bytes) else content.encode()
            self.files.append(Wanted(path, found, mode, purpose))


def draw(root: Root, wishes: Wishes) -> Plan:
    """Return what makes the wishes true on this node. Raise InstallError when they cannot be."""
    found = {"containerd": containerd.find(root, wishes.containerd_config), "podman": podman.find(root)}
    chosen = wishes.runtimes or tuple(name for name in RUNTIMES if found[name] is not None)
    if not chosen:
        raise InstallError("neither containerd nor podman is on this node: install one, or name one to prepare for it")
    plan = Plan()
    text = cni.conflist(wishes.network, wishes.socket_path, wishes.mtu_bytes)
    if "containerd" in chosen:
        present = found["containerd"]
        assert present is None or isinstance(present, Containerd)
        _for_containerd(root, plan, wishes, present, text)
    if "podman" in chosen:
        present = found["podman"]
        assert present is None or isinstance(present, Podman)
        _for_podman(root, plan, wishes, present, text)
    elif wishes.podman_default_network:
        raise InstallError("--podman-default-network is for podman, which is not to be set up: name it as well")
    return plan


def _for_containerd(root: Root, plan: Plan, wishes: Wishes, found: Containerd | None, conflist: str) -> None:
    if found is None:
        plan.warnings.append("no containerd is on this node yet: its own default directories are used")
        found = Containerd(
            "", wishes.containerd_config, False, 2, (), containerd.SOCKET, cni.CONF_DIR, ("/opt/cni/bin",), {}
        )
    _add_plugin(plan, wishes, found.bin_dirs[:1], "containerd")
    _add_launcher(plan, containerd.SHIM_DIRECTORY, containerd.SHIM, "the shim, for the runtime handler `podwire`")
    _add_conflist(root, plan, found.conf_dir, conflist)
    if not root.program(containerd.STOCK_SHIM):
        plan.warnings.append(
            f"{containerd.STOCK_SHIM}, which our shim wraps, is not on this node: install containerd's"
        )
    if found.drop_in:
        plan.add(found.drop_in, f"# Made by `podwire install`.\n{found.snippet()}", "the runtime handler `podwire`")
    elif found.handlers.get(containerd.HANDLER) != containerd.RUNTIME_TYPE:
        reason = "it imports no directory of files"
        if found.version < 3:
            reason = f"with version {found.version} of it, an imported file replaces settings instead of adding to them"
        purpose = f"Pods of the runtime handler `{containerd.HANDLER}`; others need only the CNI network"
        plan.pastes.append(Paste(found.config_path, found.snippet(), purpose, reason))
    if wishes.socket_path != cni.DEFAULT_SOCKET:
        plan.warnings.append(
            f"the shim asks at {cni.DEFAULT_SOCKET}: give containerd PODWIRE_SOCKET={wishes.socket_path} in its environment"
        )
    plan.steps.append("restart containerd if its configuration has changed; the CNI network it takes up by itself")


def _for_podman(root: Root, plan: Plan, wishes: Wishes, found: Podman | None, conflist: str) -> None:
    if found is None:
        plan.warnings.append("no podman is on this node yet: its own default directories are used")
        found = Podman("", "", ("/usr/share/containers/oci/hooks.d",), ("/usr/lib/cni",), cni.CONF_DIR, "", "")
    _add_launcher(
        plan, podman.HOOK_DIRECTORY, podman.HOOK, f"the OCI hook, for containers with {podman.ANNOTATION}=true"
    )
    for stage in podman.STAGES:
        path = f"{found.hooks_dirs[0]}/{podman.hook_file(stage)}"
        plan.add(path, podman.hook(stage, wishes.socket_path, cni.DEFAULT_SOCKET), f"runs the hook at {stage}")
    if found.speaks_cni:
        planned = {os.path.dirname(file.path) for file in plan.files if file.path.endswith(f"/{cni.PLUGIN}")}  # noqa: PTH120
        if not planned & set(found.cni_dirs):
            there = [directory for directory in found.cni_dirs if root.at(directory).is_dir()]
            _add_plugin(plan, wishes, (there or list(found.cni_dirs))[:1], "podman")
        _add_conflist(root, plan, found.conf_dir, conflist, ordered=False)
        if found.backend == "netavark":
            plan.warnings.append(
                'podman uses netavark, which knows no CNI: set network_backend = "cni" in containers.conf, or use the hook'
            )
        if wishes.podman_default_network:
            plan.add(podman.DROP_IN, podman.default_network(wishes.network), "makes our network podman's default")
        plan.steps.append(f"podman run --network {wishes.network} IMAGE")
    elif wishes.podman_default_network:
        raise InstallError(f"podman {found.version} knows no CNI, so it has no such default network; use the hook")
    plan.steps.append(f"podman run --network none --annotation {podman.ANNOTATION}=true IMAGE, without CNI")


def _add_plugin(plan: Plan, wishes: Wishes, directories: Sequence[str], runtime: str) -> None:
    try:
        plan.cni_client = launchers.choose_client(wishes.cni_client)
    except launchers.LauncherError as error:
        raise InstallError(str(error)) from None
    which = "compiled" if plan.cni_client == "native" else "in Python"
    if plan.cni_client == "python" and wishes.cni_client == "auto":
        which += ", since the compiled one is not built"
    for directory in directories:
        _add_launcher(plan, directory, cni.PLUGIN, f"the CNI plugin, for {runtime}: {which}")


def _add_launcher(plan: Plan, directory: str, name: str, purpose: str) -> None:
    try:
        content = launchers.content(name, client=plan.cni_client)
    except launchers.LauncherError as error:
        raise InstallError(str(error)) from None
    except OSError as error:
        raise InstallError(f"cannot read {error.filename}: {error.strerror}") from None
    plan.add(f"{directory}/{name}", content, purpose, _PROGRAM_MODE)


def _add_conflist(root: Root, plan: Plan, directory: str, conflist: str, *, ordered: bool = True) -> None:
    plan.add(f"{directory}/{cni.FILE}", conflist, "the CNI network")
    before = [name for name in cni.files(root, directory) if name < cni.FILE] if ordered else []
    if before:
        plan.warnings.append(
            f"{directory}/{before[0]} is read before {cni.FILE}, and containerd takes the first: move it away, or rename it"
        )
