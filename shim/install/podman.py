"""What a node's podman is configured to, and the OCI hooks and the default network it is told of."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass

from shim.install.cni import CONF_DIR
from shim.install.root import Root, table, texts

ANNOTATION = "io.podwire.attach"
HOOK = "podwire-oci-hook"
HOOK_DIRECTORY = "/usr/local/bin"
DROP_IN = "/etc/containers/containers.conf.d/podwire.conf"
STAGES = ("createRuntime", "poststop")

_CONFIGS = ("/usr/share/containers/containers.conf", "/etc/containers/containers.conf")
_CONFIG_PATTERN = "/etc/containers/containers.conf.d/*.conf"
# containers-common, pkg/config/default.go
_HOOKS_DIR = "/usr/share/containers/oci/hooks.d"
_CNI_DIRS = ("/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni", "/opt/cni/bin")
_LAST_WITH_CNI = 4
_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Podman:
    """A podman as its files have it."""

    program: str
    version: str
    """Empty when it cannot be asked, because the node is only a tree."""
    hooks_dirs: tuple[str, ...]
    cni_dirs: tuple[str, ...]
    conf_dir: str
    backend: str
    """"cni", "netavark", or empty: podman's own choice."""
    default_network: str

    @property
    def speaks_cni(self) -> bool:
        """Whether it is one of those that know CNI: podman 5 does not."""
        major = self.version.partition(".")[0]
        return not major.isdecimal() or int(major) <= _LAST_WITH_CNI


def find(root: Root) -> Podman | None:
    """Return the podman of a node, None when there is none. Raise InstallError when its configuration is no TOML."""
    program = root.program("podman")
    if not program:
        return None
    network: dict[str, object] = {}
    engine: dict[str, object] = {}
    for path in (*_CONFIGS, *root.glob(_CONFIG_PATTERN)):
        document = root.toml(path)
        network |= table(document, "network")
        engine |= table(document, "engine")
    return Podman(
        program=program,
        version=_version(program) if root.is_node else "",
        hooks_dirs=texts(engine.get("hooks_dir")) or (_HOOKS_DIR,),
        cni_dirs=texts(network.get("cni_plugin_dirs")) or _CNI_DIRS,
        conf_dir=str(network.get("network_config_dir") or CONF_DIR),
        backend=str(network.get("network_backend") or ""),
        default_network=str(network.get("default_network") or ""),
    )


def hook(stage: str, socket_path: str, default_socket: str) -> str:
    """Return the hook of one stage (oci-hooks(5)); it runs for containers with our annotation."""
    program = f"{HOOK_DIRECTORY}/{HOOK}"
    what: dict[str, object] = {"path": program, "args": [HOOK, stage]}
    if socket_path != default_socket:
        what["env"] = [f"PODWIRE_SOCKET={socket_path}"]
    when = {"annotations": {f"^{re.escape(ANNOTATION)}$": "^true$"}}
    return json.dumps({"version": "1.0.0", "hook": what, "when": when, "stages": [stage]}, indent=2) + "\n"


def hook_file(stage: str) -> str:
    """Return the name of the file for one stage's hook."""
    return f"podwire-{stage.lower()}.json"


def default_network(network: str) -> str:
    """Return the settings that give containers our network when none is asked for."""
    return f'# Made by `podwire install`.\n[network]\nnetwork_backend = "cni"\ndefault_network = "{network}"\n'


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+(\.\d+)+", done.stdout)
    return match[0] if match else ""
