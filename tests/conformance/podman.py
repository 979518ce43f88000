"""A real podman in the namespace of a lab node, with its CNI back end and everything it keeps in a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shim.lab import netns
from shim.lab.node import LabNode
from tests.conformance.network import Network, write_programs
from tests.conformance.parts import need


class PodmanFailed(Exception):
    """A podman command that failed, with what it said."""


class Podman:
    """One podman. As a context manager its image is loaded inside the block, and afterwards nothing of it is left."""

    def __init__(self, node: LabNode, network: Network, image: Path) -> None:
        need("podman", "runc", "conmon")
        self.node = node
        self._image = image
        self._directory = Path(tempfile.mkdtemp(prefix="pwp-", dir="/var/tmp"))
        programs, configuration = write_programs(self._directory / "bin"), network.write(self._directory / "net.d")
        (self._directory / "containers.conf").write_text(_engine(self._directory, programs, configuration))
        (self._directory / "storage.conf").write_text(_storage(self._directory))
        (self._directory / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def __enter__(self) -> Podman:
        try:
            self.run("load", "--signature-policy", str(self._directory / "policy.json"), "-i", str(self._image))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *words: str) -> str:
        """Run a command and return what it printed. PodmanFailed says what it complained of."""
        done = self._run(words)
        if done.returncode:
            raise PodmanFailed(f"podman {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def close(self) -> None:
        """Remove every container and Pod, and the directory."""
        self._run(["pod", "rm", "--all", "--force", "--time", "0"])
        self._run(["rm", "--all", "--force", "--time", "0"])
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for point in reversed([line.split()[4] for line in lines]):
            if point.startswith(f"{self._directory}/"):
                subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(self._directory),
            "CONTAINERS_CONF": str(self._directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._directory / "storage.conf"),
        }
        # Standard error is a file and not a pipe: conmon keeps it open for as long as its container lives.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = netns.run(
                self.node.netns_path,
                ["podman", *words],
                env=environ,
                capture_output=False,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=90,
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


def _engine(directory: Path, programs: Path, configuration: Path) -> str:
    return f"""[network]
network_backend = "cni"
cni_plugin_dirs = ["{programs}"]
network_config_dir = "{configuration}"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
static_dir = "{directory}/libpod"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/volumes"
infra_image = "localhost/podwire/busybox:1"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""


def _storage(directory: Path) -> str:
    return f"""[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
"""
