"""What the userspace peers share: Pods routed behind two nodes, and on each node a daemon with a TUN of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path

from benchmarks.cluster import Cluster, await_device, await_reachable, subnet
from benchmarks.contenders.interface import Network, Way
from benchmarks.namespace import PREFIX, CommandFailed, Namespace

DEVICE = "tun-bench"


class Tunnel(ABC):
    """A contender whose daemons are started one a node."""

    name: str
    title: str
    programs: tuple[str, ...]
    packages: tuple[str, ...]
    engine = ""
    only: tuple[str, ...] = ()
    mtu_bytes: int
    """The largest packet that crosses an underlay of MTU 1500 in one datagram."""
    takes_routes = True
    """Whether we set the device's address and route; otherwise the daemon does."""

    def open(self, stack: ExitStack) -> Network:
        """Set up two nodes and two Pods."""
        cluster = Cluster(stack, self.name)
        client = cluster.routed_pod(0, 0, self.mtu_bytes)
        server = cluster.routed_pod(1, 0, self.mtu_bytes)
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-{self.name}-"))
        )
        self.prepare(directory)
        processes = []
        for index, node in enumerate(cluster.nodes):
            log = stack.enter_context((directory / f"log{index}").open("wb"))
            process = node.spawn(stack, *self.command(directory, index), output=log, environment=self.environment())
            processes.append(process)
            self._finish(node, index, process, directory)
        await_reachable(client.namespace, server.address, self.mtu_bytes)
        return Network(
            across=Way(client.namespace, server.namespace, server.address),
            router_pids=tuple(process.pid for process in processes),
        )

    def _finish(self, node: Namespace, index: int, process: subprocess.Popen[bytes], directory: Path) -> None:
        try:
            await_device(node, self.device(index))
        except CommandFailed as error:
            said = (directory / f"log{index}").read_text(errors="replace").strip().splitlines()
            state = "is running" if process.poll() is None else f"ended with status {process.returncode}"
            raise CommandFailed(f"{self.name} on node {index} {state}: {said[-1] if said else error}") from error
        self.configure(node, directory, index)
        if self.takes_routes:
            device = self.device(index)
            node.ip("address", "replace", f"{tunnel_address(index)}/24", "dev", device)
            node.ip("link", "set", device, "mtu", self.mtu_bytes, "up")
            node.ip("route", "replace", subnet(1 - index), "dev", device)

    def device(self, node: int) -> str:  # noqa: ARG002
        """Return the name of a node's TUN."""
        return DEVICE

    def environment(self) -> dict[str, str]:
        """Return what to add to the daemon's environment."""
        return {}

    @abstractmethod
    def prepare(self, directory: Path) -> None:
        """Write keys and configuration of both nodes."""

    @abstractmethod
    def command(self, directory: Path, node: int) -> tuple[str, ...]:
        """Return what starts the daemon of a node in the foreground."""

    def configure(self, node: Namespace, directory: Path, index: int) -> None:  # noqa: B027
        """Tell a running daemon what it does not read from a file."""


def tunnel_address(node: int) -> str:
    """Return the address of a node inside the tunnel."""
    return f"10.99.0.{1 + node}"


def make(*words: str, standard_input: str = "") -> str:
    """Run a key generator and return what it printed."""
    done = subprocess.run(words, input=standard_input, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise CommandFailed(f"`{' '.join(words)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()
