"""fastd with its null method: a thin C tunnel, one packet a system call, no encryption."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cluster import underlay_address
from benchmarks.contenders.tunnel import DEVICE, Tunnel, make

_CONFIG = """\
log level warn;
mode tun;
interface "{device}";
mtu {mtu_bytes};
method "null";
bind any:10000;
secret "{secret}";
peer "other" {{ key "{peer_key}"; remote {peer_underlay}:10000; }}
"""


class Fastd(Tunnel):
    """One fastd a node."""

    name = "fastd"
    title = "fastd, null"
    programs = ("fastd",)
    packages = ("fastd",)
    mtu_bytes = 1471  # 1500 − IPv4 20 − UDP 8 − fastd 1

    def prepare(self, directory: Path) -> None:
        """Make both key pairs and configurations."""
        keys = [make("fastd", "--machine-readable", "--generate-key") for _ in range(2)]
        for node, secret in enumerate(keys):
            (directory / f"secret{node}").write_text(f'secret "{secret}";\n')
        public = [
            make("fastd", "--machine-readable", "--show-key", "--config", f"{directory}/secret{node}")
            for node in range(2)
        ]
        for node, secret in enumerate(keys):
            config = _CONFIG.format(
                device=DEVICE, mtu_bytes=self.mtu_bytes, secret=secret, peer_key=public[1 - node],
                peer_underlay=underlay_address(1 - node),
            )  # fmt: skip
            (directory / f"node{node}.conf").write_text(config)

    def command(self, directory: Path, node: int) -> tuple[str, ...]:
        """Run in the foreground."""
        return "fastd", "--config", f"{directory}/node{node}.conf"
