"""tinc 1.0 in router mode, without cipher and digest, so that only the carrying is compared."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cluster import subnet, underlay_address
from benchmarks.contenders.tunnel import DEVICE, Tunnel, make, tunnel_address

_HOST = """\
Address = {underlay}
Subnet = {address}/32
Subnet = {subnet}
Cipher = none
Digest = none
MACLength = 0
PMTUDiscovery = no
"""


class Tinc(Tunnel):
    """One tincd a node."""

    name = "tinc"
    title = "tinc, null"
    programs = ("tincd",)
    packages = ("tinc",)
    mtu_bytes = 1450  # 1500 − IPv4 20 − UDP 8 − sequence 4, the packet in an Ethernet frame

    def prepare(self, directory: Path) -> None:
        """Make both key pairs and configurations; each node has the other's public key."""
        hosts = []
        for node in range(2):
            home = directory / f"node{node}"
            (home / "hosts").mkdir(parents=True)
            (home / "tinc.conf").write_text(
                f"Name = node{node}\nConnectTo = node{1 - node}\nInterface = {DEVICE}\nMode = router\n"
                "AddressFamily = ipv4\nPMTUDiscovery = no\n"
            )
            host = home / "hosts" / f"node{node}"
            host.write_text(
                _HOST.format(underlay=underlay_address(node), address=tunnel_address(node), subnet=subnet(node))
            )
            make("tincd", "--config", str(home), "--generate-keys=2048")
            hosts.append(host)
        for node, host in enumerate(hosts):
            (directory / f"node{1 - node}" / "hosts" / f"node{node}").write_text(host.read_text())

    def command(self, directory: Path, node: int) -> tuple[str, ...]:
        """Run in the foreground."""
        return ("tincd", "--config", f"{directory}/node{node}", "--no-detach", f"--pidfile={directory}/pid{node}",
                "--logfile=/dev/null")  # fmt: skip
