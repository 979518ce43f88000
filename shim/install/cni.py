"""The CNI configuration: what we write, and what stands beside it."""

from __future__ import annotations

import json
import re
from typing import Any

from shim.install.root import InstallError, Root, table

CONF_DIR = "/etc/cni/net.d"
FILE = "10-podwire.conflist"
PLUGIN = "podwire-cni"
DEFAULT_NETWORK = "podwire"
DEFAULT_SOCKET = "/run/podwire/router.sock"

_CAPABILITIES = ("portMappings", "bandwidth", "ips", "mac", "dns")
_ENDINGS = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # CNI specification, "Section 1: Network configuration format"


def conflist(network: str, socket_path: str, mtu_bytes: int) -> str:
    """Return the network configuration list. Raise InstallError when something in it could never work."""
    if not _NAME.fullmatch(network):
        raise InstallError(f"{network!r} is no network name: use letters, digits, '.', '_' and '-'")
    if not socket_path.startswith("/"):
        raise InstallError(f"the router's socket {socket_path!r} is no absolute path")
    if mtu_bytes and not 576 <= mtu_bytes <= 65535:
        raise InstallError(f"an MTU of {mtu_bytes} bytes cannot be: give 576 to 65535, or 0 for the overlay's own")
    plugin: dict[str, Any] = {"type": PLUGIN, "socket": socket_path}
    if mtu_bytes:
        plugin["mtu"] = mtu_bytes
    plugin["capabilities"] = dict.fromkeys(_CAPABILITIES, True)
    # 1.0.0: containerd 1.6 refuses 1.1.0, which the plugin speaks too.
    document = {"cniVersion": "1.0.0", "name": network, "plugins": [plugin]}
    return json.dumps(document, indent=2) + "\n"


def files(root: Root, conf_dir: str) -> list[str]:
    """Return the names of all network configurations in a directory, in the order in which runtimes read them."""
    try:
        names = [path.name for path in root.at(conf_dir).iterdir() if path.is_file()]
    except OSError:
        return []
    return sorted(name for name in names if name.endswith(_ENDINGS))


def read(root: Root, path: str) -> dict[str, Any]:
    """Return a network configuration. Raise InstallError."""
    try:
        document = json.loads(root.at(path).read_text("utf-8"))
    except OSError as error:
        raise InstallError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InstallError(f"{path} is not JSON: {error}") from None
    return table({"it": document}, "it")


def plugins(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the plugins of a configuration: those of a list, or the only one."""
    found = document.get("plugins", [document])
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
