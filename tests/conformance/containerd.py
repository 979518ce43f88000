"""A real containerd, of any version, in the namespace of a lab node, with everything it keeps in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shim.lab import netns, process
from shim.lab.node import LabNode
from shim.lab.process import ProcessId
from tests.conformance import images
from tests.conformance.cri import Cri, CriError
from tests.conformance.network import Network, write_programs
from tests.conformance.parts import Release, need

START_TIMEOUT_S = 60.0
NAMESPACE = "k8s.io"
"""containerd's own namespace in which CRI keeps its things."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A runtime handler of CRI: its runtime, and what it has of its own."""

    kind: str = "io.containerd.runc.v2"
    shim: Path | None = None
    network: Path | None = None
    options: str = ""
    """For the stock runtime only: containerd 1.6 writes others' down in a form that the stock shim does not know."""


Handlers = Mapping[str, Handler]


class ContainerdFailed(Exception):
    """containerd did not do as it was told; the message has the end of its log."""


class Containerd:
    """One containerd. As a context manager it runs inside the block, and afterwards nothing of it is left."""

    def __init__(
        self,
        node: LabNode,
        release: Release,
        network: Network,
        image: Path,
        *,
        other: Network | None = None,
        snapshotter: str = "overlayfs",
    ) -> None:
        """Prepare one. Pods of the runtime handler "other" get the other network, if there is one."""
        need("runc")
        self.node = node
        self.release = release
        self._image = image
        self._child: subprocess.Popen[str] | None = None
        # Unix sockets' paths are short, and the root's file system must be one that overlayfs can stand on.
        self.directory = Path(tempfile.mkdtemp(prefix="pwc-", dir="/var/tmp"))
        self.socket = self.directory / "c.sock"
        self.state = self.directory / "state"
        self.log_path = self.directory / "containerd.log"
        self.shim_log_path = self.directory / "shim.log"
        self._programs = write_programs(self.directory / "bin")
        network.write(self.directory / "net.d")
        shim = self._programs / "containerd-shim-podwire-v2"
        handlers = {
            "runc": Handler(options="SystemdCgroup = false"),
            "podwire": Handler("io.containerd.podwire.v2"),
            # Under the stock runtime's name our shim gets the stock one's options too; from containerd 1.7 on.
            "podwire-path": Handler(shim=shim, options="SystemdCgroup = false"),
        }
        if other is not None:
            handlers["other"] = Handler(network=other.write(self.directory / "other.d"))
        self._config = self.directory / "config.toml"
        content = _config_3 if release.major >= 2 else _config_2
        self._config.write_text(content(self.directory, handlers, snapshotter))

    def __enter__(self) -> Containerd:
        try:
            self.start()
            self.load_image()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._child is not None, "containerd does not run"
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it serves CRI."""
        # Its own programs first: a containerd takes the shim of its version, and then ours.
        path = f"{self.release.programs}:{self._programs}:{os.environ['PATH']}:/usr/sbin:/sbin"
        with self.log_path.open("a") as log:
            self._child = netns.popen(
                self.node.netns_path,
                [self.release.program("containerd"), "--config", str(self._config)],
                env={
                    "PATH": path,
                    "HOME": "/root",
                    "PODWIRE_SOCKET": str(self.node.socket),
                    "PODWIRE_SHIM_LOG": str(self.shim_log_path),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_ready()

    def kill9(self) -> None:
        """Kill it as a crash would; its shims and containers stay."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def stop(self) -> None:
        """Ask it to end; its shims and containers stay."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise ContainerdFailed(f"containerd did not end 20 s after SIGTERM: {self.log_tail()}") from None
            self._child = None

    def cri(self) -> Cri:
        """Return a client of its CRI."""
        return Cri(self.socket)

    def ctr(self, *words: str, namespace: str = "default", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run its own client."""
        command = [self.release.program("ctr"), "-a", str(self.socket), "-n", namespace, *words]
        return self.node.run(command, timeout=timeout_s)

    def load_image(self) -> None:
        """Import the image for CRI and for plain use, and wait until CRI knows it."""
        for namespace in (NAMESPACE, "default"):
            done = self.ctr("images", "import", str(self._image), namespace=namespace)
            if done.returncode:
                raise ContainerdFailed(f"ctr images import: {done.stderr.strip()}")
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with self.cri() as cri:
            while not cri.call("ImageStatus", image={"image": images.NAME}).get("image"):
                if time.monotonic() > deadline_s:
                    raise ContainerdFailed(f"CRI does not see the image: {self.log_tail()}")
                time.sleep(0.05)

    def shims(self) -> list[ProcessId]:
        """Return the shims that run for it."""
        found = []
        for entry in Path("/proc").glob("[1-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                ours = os.fsencode(self.socket)
                if b"containerd-shim" in words[0] and any(word.startswith(ours) for word in words):
                    found.append(ProcessId.of(int(entry.name)))
        return [one for one in found if one]

    def log_tail(self, lines: int = 12) -> str:
        """Return the end of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Remove every Pod, end it and its shims, and remove its directory, whatever state it is in."""
        with suppress(CriError, ContainerdFailed):
            if self._child is None or self._child.poll() is not None:
                self._child = None
                self.start()
            with self.cri() as cri:
                for sandbox in cri.call("ListPodSandbox")["items"]:
                    cri.call("StopPodSandbox", pod_sandbox_id=sandbox["id"])
                    cri.call("RemovePodSandbox", pod_sandbox_id=sandbox["id"])
        with suppress(ContainerdFailed):
            self.stop()
        process.end(self.shims(), grace_s=0)
        self._end_containers()
        for point in self.mounts():
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def mounts(self) -> list[str]:
        """Return what is mounted inside its directory, innermost first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in reversed(points) if point.startswith(f"{self.directory}/")]

    def _end_containers(self) -> None:
        """Kill what a killed shim has left: pids are in the bundles."""
        for path in self.state.glob("io.containerd.runtime.v2.task/*/*/init.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)

    def _wait_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        assert self._child is not None
        while True:
            if self._child.poll() is not None:
                raise ContainerdFailed(f"containerd {self.release.name} ended at its start:\n{self.log_tail()}")
            with suppress(CriError), self.cri() as cri:
                cri.call("Version", timeout_s=1.0, wait=True)
                return
            if time.monotonic() > deadline_s:
                raise ContainerdFailed(f"containerd {self.release.name} does not answer:\n{self.log_tail()}")


def _config_2(directory: Path, handlers: Handlers, snapshotter: str) -> str:
    """Return the configuration of containerd 1.6 and 1.7."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return (
        _common(2, directory)
        + f"""
[{cri}]
  sandbox_image = {_text(images.NAME)}
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [{cri}.cni]
    bin_dir = {_text(directory / "bin")}
    conf_dir = {_text(directory / "net.d")}
  [{cri}.containerd]
    snapshotter = {_text(snapshotter)}
"""
        + _runtimes(f"{cri}.containerd", handlers)
    )


def _config_3(directory: Path, handlers: Handlers, snapshotter: str) -> str:
    """Return the configuration of containerd 2."""
    runtime, image = 'plugins."io.containerd.cri.v1.runtime"', 'plugins."io.containerd.cri.v1.images"'
    return (
        _common(3, directory)
        + f"""
[{image}]
  snapshotter = {_text(snapshotter)}
  [{image}.pinned_images]
    sandbox = {_text(images.NAME)}
[{runtime}]
  restrict_oom_score_adj = true
  [{runtime}.cni]
    bin_dirs = [{_text(directory / "bin")}]
    conf_dir = {_text(directory / "net.d")}
"""
        + _runtimes(f"{runtime}.containerd", handlers)
    )


def _common(version: int, directory: Path) -> str:
    return f"""version = {version}
root = {_text(directory / "root")}
state = {_text(directory / "state")}
[grpc]
  address = {_text(directory / "c.sock")}
[debug]
  level = "info"
[plugins."io.containerd.internal.v1.opt"]
  path = {_text(directory / "opt")}
# Its socket is one for the whole machine.
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"""


def _runtimes(table: str, handlers: Handlers) -> str:
    lines = []
    for name, handler in handlers.items():
        lines += ["", f"[{table}.runtimes.{name}]", f"  runtime_type = {_text(handler.kind)}"]
        if handler.shim is not None:
            lines.append(f"  runtime_path = {_text(handler.shim)}")
        if handler.network is not None:
            lines.append(f"  cni_conf_dir = {_text(handler.network)}")
        if handler.options:
            lines += [f"  [{table}.runtimes.{name}.options]", f"    {handler.options}"]
    return "\n".join([*lines, ""])


def _text(value: object) -> str:
    return json.dumps(str(value))
