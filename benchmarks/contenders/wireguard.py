"""wireguard-go: the userspace WireGuard, encrypted. The newest has TUN and UDP offloads, Debian 12's has none."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.cluster import subnet, underlay_address
from benchmarks.contenders.tunnel import Tunnel, make, tunnel_address
from benchmarks.namespace import Namespace


class Wireguard(Tunnel):
    """One wireguard-go a node."""

    name = "wireguard-go"
    title = "wireguard-go"
    programs = ("wireguard-go", "wg")
    packages = ("wireguard-go", "wireguard-tools")
    mtu_bytes = 1440  # 1500 − IPv4 20 − UDP 8 − WireGuard 32

    def device(self, node: int) -> str:
        """Return a name of our own: its control socket lies in /run/wireguard, which namespaces share."""
        return f"wgb{os.getpid()}n{node}"

    def environment(self) -> dict[str, str]:
        """Keep it quiet."""
        return {"LOG_LEVEL": "error"}

    def prepare(self, directory: Path) -> None:
        """Make both key pairs."""
        for node in range(2):
            key = directory / f"key{node}"
            key.touch(0o600)
            key.write_text(make("wg", "genkey"))
            (directory / f"public{node}").write_text(make("wg", "pubkey", standard_input=key.read_text()))

    def command(self, directory: Path, node: int) -> tuple[str, ...]:  # noqa: ARG002
        """Run in the foreground."""
        return "wireguard-go", "--foreground", self.device(node)

    def configure(self, node: Namespace, directory: Path, index: int) -> None:
        """Set key and peer over its control socket."""
        peer = 1 - index
        node.run(
            "wg", "set", self.device(index), "private-key", directory / f"key{index}", "listen-port", 51820,
            "peer", (directory / f"public{peer}").read_text(), "endpoint", f"{underlay_address(peer)}:51820",
            "allowed-ips", f"{tunnel_address(peer)}/32,{subnet(peer)}",
        )  # fmt: skip
