"""nebula: an encrypted mesh; Pod ranges are its unsafe routes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cluster import subnet, underlay_address
from benchmarks.contenders.tunnel import DEVICE, Tunnel, make, tunnel_address

_CONFIG = """\
pki: {{ca: {directory}/ca.crt, cert: {directory}/node{node}.crt, key: {directory}/node{node}.key}}
static_host_map: {{"{peer_address}": ["{peer_underlay}:4242"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: 4242}}
cipher: aes
tun:
  dev: {device}
  mtu: {mtu_bytes}
  unsafe_routes: [{{route: {peer_subnet}, via: {peer_address}, mtu: {mtu_bytes}}}]
logging: {{level: error}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""


class Nebula(Tunnel):
    """One nebula a node."""

    name = "nebula"
    title = "nebula"
    programs = ("nebula", "nebula-cert")
    packages = ("nebula",)
    mtu_bytes = 1440  # 1500 − IPv4 20 − UDP 8 − nebula 16 − AES-GCM tag 16
    takes_routes = False

    def prepare(self, directory: Path) -> None:
        """Make an authority and both certificates."""
        authority = ("-ca-crt", f"{directory}/ca.crt", "-ca-key", f"{directory}/ca.key")
        make(
            "nebula-cert", "ca", "-name", "bench", "-out-crt", f"{directory}/ca.crt", "-out-key", f"{directory}/ca.key"
        )
        for node in range(2):
            make("nebula-cert", "sign", *authority, "-name", f"node{node}", "-ip", f"{tunnel_address(node)}/24",
                 "-subnets", subnet(node), "-out-crt", f"{directory}/node{node}.crt",
                 "-out-key", f"{directory}/node{node}.key")  # fmt: skip
            config = _CONFIG.format(
                directory=directory, node=node, device=DEVICE, mtu_bytes=self.mtu_bytes, peer_subnet=subnet(1 - node),
                peer_address=tunnel_address(1 - node), peer_underlay=underlay_address(1 - node),
            )  # fmt: skip
            (directory / f"node{node}.yml").write_text(config)

    def command(self, directory: Path, node: int) -> tuple[str, ...]:
        """Run in the foreground."""
        return "nebula", "-config", f"{directory}/node{node}.yml"
