"""What a node's containerd is configured to, and how it is told of the runtime handler `podwire`.

containerd 1.x puts a whole plugin section of an imported file in the place of the main one's, and any `runtimes` in the
place of its built-in ones; only 2.x, whose configuration is of version 3, merges them. So a file of our own is written for
that alone, and for 1.x the lines are shown, with runc's beside ours where the configuration does not have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from shim.install.cni import CONF_DIR
from shim.install.root import Root, table, texts

CONFIG = "/etc/containerd/config.toml"
SOCKET = "/run/containerd/containerd.sock"
SHIM = "containerd-shim-podwire-v2"
STOCK_SHIM = "containerd-shim-runc-v2"
SHIM_DIRECTORY = "/usr/local/bin"
HANDLER = "podwire"
RUNTIME_TYPE = "io.containerd.podwire.v2"

_BIN_DIR = "/opt/cni/bin"  # containerd's own default, in each version
_CRI = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_FILE = "podwire.toml"


@dataclass(frozen=True, slots=True)
class Containerd:
    """A containerd as its files have it."""

    program: str
    """Empty when only a configuration was found."""
    config_path: str
    has_config: bool
    version: int
    """Of the configuration, 1 to 3."""
    imports: tuple[str, ...]
    socket: str
    conf_dir: str
    bin_dirs: tuple[str, ...]
    handlers: dict[str, str]
    """Runtime handlers that the configuration names, with their types."""

    @property
    def drop_in(self) -> str:
        """Where a file of ours is read and merged; empty when there is no such place."""
        if self.version < 3:
            return ""
        for pattern in map(PurePosixPath, self.imports):
            if pattern.name == "*.toml" and "*" not in str(pattern.parent):
                return str(pattern.with_name(_FILE))
        return ""

    def snippet(self) -> str:
        """Return the lines that make the handler known: a whole file, or what is to be put into the main one."""
        lines = [] if self.has_config and not self.drop_in else [f"version = {self.version}", ""]
        if self.version < 3 and "runc" not in self.handlers:
            lines += _runtime(_CRI[self.version], "runc", "io.containerd.runc.v2")
        lines += _runtime(_CRI[self.version], HANDLER, RUNTIME_TYPE)
        return "\n".join(lines)


def find(root: Root, config_path: str = CONFIG) -> Containerd | None:
    """Return the containerd of a node, None when there is none. Raise InstallError when its configuration is no TOML."""
    program = root.program("containerd")
    document = root.toml(config_path)
    if not program and document is None:
        return None
    version = document.get("version", 1) if document else 2
    version = min(version, 3) if version in range(1, 10) else 2
    imports = tuple(_absolute(config_path, each) for each in texts((document or {}).get("imports", [])))
    cri = _cri(root, document, version, imports)
    network = table(cri, "cni")
    runtimes = table(cri, "containerd", "runtimes")
    return Containerd(
        program=program,
        config_path=config_path,
        has_config=document is not None,
        version=version,
        imports=imports,
        socket=str(table(document, "grpc").get("address") or SOCKET),
        conf_dir=str(network.get("conf_dir") or CONF_DIR),
        bin_dirs=texts(network.get("bin_dirs")) or texts(network.get("bin_dir")) or (_BIN_DIR,),
        handlers={name: str(table(runtimes, name).get("runtime_type", "")) for name in runtimes},
    )


def _cri(root: Root, document: dict[str, Any] | None, version: int, imports: tuple[str, ...]) -> dict[str, Any]:
    """Return the section of the CRI plugin, with what imported files make of it."""
    found = table(document, "plugins", _CRI[version])
    for path in (each for pattern in imports for each in root.glob(pattern)):
        imported = root.toml(path)
        theirs = table(imported, "plugins", _CRI[min(int((imported or {}).get("version", version)), 3)])
        if theirs:
            found = _merged(found, theirs) if version >= 3 else theirs
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = one | other
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            both[key] = _merged(one[key], other[key])
    return both


def _absolute(config_path: str, pattern: str) -> str:
    return str(PurePosixPath(config_path).parent / pattern)


def _runtime(plugin: str, name: str, kind: str) -> list[str]:
    where = plugin if plugin == _CRI[1] else f'"{plugin}"'
    return [f"[plugins.{where}.containerd.runtimes.{name}]", f'  runtime_type = "{kind}"', ""]
