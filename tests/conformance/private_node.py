"""A node of one's own on this machine: the real programs, with directories that nobody else sees.

Mounts, network and processes are in namespaces that end with it, so that what it writes to /etc, /run, /var/lib and
/usr/local/bin is nowhere else, and nothing it started is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_COPIED = ("/etc/cni", "/etc/containerd", "/etc/containers", "/usr/share/containers", "/usr/local/bin", "/usr/lib/cni")
_EMPTY = ("/run", "/var/lib", "/var/log")

# Without CAP_SYS_RESOURCE nobody may ask for more than there is.
_PODMAN = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "cni"
"""

# There is no systemd here; this much of it starts and restarts the real containerd.
_SYSTEMCTL = """\
#!/bin/sh
set -e
[ "$1 $2" = "restart containerd" ]
if [ -e /run/containerd.pid ]; then kill "$(cat /run/containerd.pid)"; tail --pid="$(cat /run/containerd.pid)" -f /dev/null; fi
containerd >>/var/log/containerd.log 2>&1 &
echo $! >/run/containerd.pid
until ctr version >/dev/null 2>&1; do sleep 0.1; done
"""


def run(script: str, directory: Path, images: bytes = b"", timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a shell script on such a node, whose underlay address is 192.0.2.1; `images` are there for ctr and podman.

    It stops at the first command that fails, and shows each before it runs.
    """
    (directory / "containers.conf").write_text(_PODMAN)
    (directory / "systemctl").write_text(_SYSTEMCTL)
    (directory / "systemctl").chmod(0o755)
    (directory / "images.tar").write_bytes(images)
    lines = ["set -e"]
    for path in _COPIED:
        copy = f"{directory}/copy{path}"
        lines += [f"mkdir -p {path} {copy}", f"cp -a {path}/. {copy}", f"mount --bind {copy} {path}"]
    lines += [f"mount -t tmpfs tmpfs {path}" for path in _EMPTY if not str(directory).startswith(f"{path}/")]
    lines += [
        f"cp {directory}/containers.conf /etc/containers/containers.conf",
        f"cp {directory}/systemctl /usr/local/bin/systemctl",
        "ip link set lo up",
        "ip link add eth0 type bridge",
        "ip link set eth0 up",
        "ip addr add 192.0.2.1/24 dev eth0",
    ]
    if images:
        lines += [
            "systemctl restart containerd",
            f"ctr image import {directory}/images.tar",
            f"podman load -q -i {directory}/images.tar",
        ]
    environ = os.environ | {
        "PATH": f"/usr/local/bin:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    }
    (directory / "script").write_text("\n".join([*lines, "set -x", script, ""]))
    return subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", directory / "script"],
        stdin=subprocess.DEVNULL, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
