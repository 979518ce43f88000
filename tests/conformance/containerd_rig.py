"""A real containerd with a root of its own, in the network namespace of a lab's node, and an image made of busybox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import launchers
from shim.lab import netns
from shim.lab.node import LabNode
from tests.accounts import eventually
from tests.conformance.images import busybox, image_tar

IMAGE = "podwire.test/busybox:1"
_CONFIG = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{root}/containerd.sock"
[ttrpc]
address = "{root}/containerd.sock.ttrpc"
"""


@dataclass
class Containerd:
    """One containerd and what drives it."""

    node: LabNode
    root: Path
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return str(self.root / "containerd.sock")

    @property
    def image(self) -> Path:
        return self.root / "image.tar"

    @property
    def log(self) -> str:
        return (self.root / "shim.log").read_text() if (self.root / "shim.log").exists() else ""

    def ctr(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.node.run(["ctr", "-a", self.address, *words], timeout=60, **options)

    def run(self, name: str, command: Sequence[str], *flags: str) -> subprocess.CompletedProcess[str]:
        """Run a container in the background."""
        runtime = ("--runtime", "io.containerd.podwire.v2", "--snapshotter", "native")
        return self.ctr("run", "-d", *runtime, *flags, IMAGE, name, *command)

    def exec(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        return self.ctr("task", "exec", "--exec-id", f"e{time.monotonic_ns()}", name, *command)

    def remove(self, name: str) -> None:
        self.ctr("task", "kill", "-s", "9", name)
        eventually(lambda: "STOPPED" in self.ctr("task", "ls").stdout or name not in self.ctr("task", "ls").stdout)
        self.ctr("task", "rm", "-f", name)
        self.ctr("container", "rm", name)

    def shims(self) -> list[int]:
        """Return the shims of this containerd."""
        found = []
        for entry in Path("/proc").glob("[1-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"shim" in words[0] and self.address.encode() in b" ".join(words):
                found.append(int(entry.name))
        return found


@contextmanager
def containerd(node: LabNode, root: Path) -> Iterator[Containerd]:
    """Run one until the end of the block, and end all that it started."""
    binaries = root / "bin"
    binaries.mkdir(parents=True)
    launchers.write(binaries, ["containerd-shim-podwire-v2"])
    (root / "config.toml").write_text(_CONFIG.format(root=root))
    image = root / "image.tar"
    image.write_bytes(image_tar(IMAGE, {"bin/busybox": busybox()}, _APPLETS))
    environ = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PODWIRE_SOCKET": str(node.socket),
        "PODWIRE_SHIM_LOG": str(root / "shim.log"),
    }
    with (root / "containerd.log").open("a") as log:
        process = netns.popen(
            node.netns_path,
            ["containerd", "--config", str(root / "config.toml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
        )
    made = Containerd(node, root, process)
    try:
        eventually(lambda: made.ctr("version").returncode == 0, 30, "containerd")
        done = made.ctr("image", "import", "--snapshotter", "native", str(image))
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        for name in made.ctr("container", "ls", "-q").stdout.split():
            made.remove(name)
        process.terminate()
        process.wait(30)
        for pid in made.shims():
            os.kill(pid, signal.SIGKILL)
        unmount_below(root)
        shutil.rmtree(root, ignore_errors=True)


def unmount_below(root: Path) -> None:
    """Unmount what a runtime left mounted in its directory."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in sorted((path for path in mounted if path.startswith(f"{root}/")), reverse=True):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


_APPLETS = ("sh", "sleep", "ip", "ping", "nc", "cat", "hostname", "wget", "httpd", "true", "false")
