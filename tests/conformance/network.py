"""What a node's runtime finds of its network: a directory with plugins, and one with a configuration list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import launchers
from tests.conformance.parts import STOCK_PLUGINS, MissingPart

Plugins = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Network:
    """A network's name and its chain of plugins; an empty chain: the runtime is told of no network at all."""

    name: str
    plugins: Plugins = ()
    cni_version: str = "1.0.0"

    def write(self, configuration: Path) -> Path:
        """Write it down for a runtime, alone in a new directory; return that."""
        configuration.mkdir()
        if self.plugins:
            content = {"cniVersion": self.cni_version, "name": self.name, "plugins": list(self.plugins)}
            (configuration / f"10-{self.name}.conflist").write_text(json.dumps(content, indent=1))
        return configuration


def write_programs(directory: Path, client: str = "auto") -> Path:
    """Make a directory with our executables, and links to the stock plugins beside them; return it."""
    directory.mkdir()
    if not STOCK_PLUGINS.is_dir():
        raise MissingPart(f"no CNI plugins in {STOCK_PLUGINS}; run scripts/conformance-setup.sh")
    for plugin in STOCK_PLUGINS.iterdir():
        (directory / plugin.name).symlink_to(plugin)
    launchers.write(directory, client=client)
    return directory


def podwire(socket: Path, cni_version: str = "1.0.0", more: Plugins = ()) -> Network:
    """Return the network of a router, with all it can; `more` plugins come behind it."""
    capabilities = {"portMappings": True, "bandwidth": True, "ips": True, "mac": True, "dns": True}
    ours = {"type": "podwire-cni", "socket": str(socket), "capabilities": capabilities}
    return Network("podwire", (ours, *more), cni_version)


def stock(subnets: Sequence[str], ledger: Path) -> Network:
    """Return the pair that comes with CNI: bridge, and host-local for the addresses, which it keeps in `ledger`."""
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    routes = [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets]
    ipam = {"type": "host-local", "dataDir": str(ledger), "ranges": ranges, "routes": routes}
    return Network("stock", ({"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam},))


NONE = Network("none")
