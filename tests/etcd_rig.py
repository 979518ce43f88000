"""Real etcd servers for tests, members to run against them, and a watcher of its own that says who held what when."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from router.config import Etcd
from router.errors import Kind, Refusal
from router.model import Endpoint, Node
from router.subnets.etcd.source import EtcdSource
from router.subnets.source import Lease, SourceState

ETCD = "/usr/bin/etcd"
ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60.0
NETWORKS = (ip_network("10.32.0.0/12"), ip_network("fd00:32::/48"))
PREFIX = "/podwire"


def free_port() -> int:
    """Return a port below those that the kernel gives to outgoing connections: none of them can take it meanwhile."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(fulfilled: Callable[[], object], what: object = "", timeout_s: float = DEADLINE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline_s, what() if callable(what) else what
        time.sleep(0.01)


class Server:
    """One etcd, alone or a member of a cluster. Killed as it would be by a power cut: nothing of it is shut down."""

    def __init__(self, folder: Path, *flags: str, scheme: str = "http", name: str = "one", peers: str = "") -> None:
        self.folder = folder / name
        self.port, self._peer_port, self._metrics_port = free_port(), free_port(), free_port()
        self.peer_url = f"http://127.0.0.1:{self._peer_port}"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.name = name
        self._flags = flags
        self.peers = peers or f"{name}={self.peer_url}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        assert self._process is None
        command = [
            *(ETCD, "--name", self.name, "--data-dir", str(self.folder), "--logger", "zap", "--log-level", "error"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--listen-metrics-urls", f"http://127.0.0.1:{self._metrics_port}"),
            *("--initial-cluster", self.peers),
            *("--heartbeat-interval", "50", "--election-timeout", "500", *self._flags),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if wait:
            self.wait_healthy()

    def wait_healthy(self) -> None:
        until(self._is_healthy, f"etcd at {self.url} does not come up")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        assert self._process is None
        shutil.rmtree(self.folder)

    def ctl(self, *arguments: str, user: str = "", typed: str = "") -> str:
        command = ["etcdctl", "--endpoints", self.url, *(("--user", user) if user else ()), *arguments]
        environ = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(command, env=environ, input=typed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/health", timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False


@contextmanager
def server(folder: Path, *flags: str, scheme: str = "http") -> Iterator[Server]:
    made = Server(folder, *flags, scheme=scheme)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@contextmanager
def cluster(folder: Path, size: int = 3) -> Iterator[list[Server]]:
    made = [Server(folder, name=f"etcd{index}") for index in range(size)]
    for each in made:
        each.peers = ",".join(f"{other.name}={other.peer_url}" for other in made)
    try:
        for each in made:
            each.start(wait=False)
        for each in made:
            each.wait_healthy()
        yield made
    finally:
        for each in made:
            each.kill()


class FileMemory:
    """What a member remembers, in a file: a process that is killed leaves the last of it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Any] | None:
        return json.loads(self._path.read_text()) if self._path.exists() else None

    def save(self, value: dict[str, Any]) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(value))
        fresh.replace(self._path)


class Told:
    """A listener that keeps all that it is told, and refuses what it is told to refuse."""

    def __init__(self, refuse: Callable[[tuple[Node, ...]], str] = lambda _: "") -> None:
        self.tables: list[tuple[Node, ...]] = []
        self.refused: list[str] = []
        self.leases: list[Lease] = []
        self.states: list[SourceState] = []
        self._refuse = refuse

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        self.tables.append(nodes)
        if message := self._refuse(nodes):
            raise Refusal(Kind.INVALID, message)

    def table_refused(self, message: str) -> None:
        self.refused.append(message)

    def connection_changed(self, state: SourceState) -> None:
        self.states.append(state)

    def lease_changed(self, lease: Lease) -> None:
        self.leases.append(lease)

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.tables[-1]] if self.tables else []


def settings(*urls: str, ttl_s: float = 5, **others: Any) -> Etcd:
    return Etcd(endpoints=urls, ttl_s=ttl_s, **others)


def endpoint_of(number: int) -> Endpoint:
    return Endpoint(ip_address("192.0.2.0") + number % 250 + 1, 6081 + number // 250)


def source(folder: Path, config: Etcd, name: str, number: int = 0, **others: Any) -> EtcdSource:
    """A router's source: its memory is in the folder, so that one made later of that name succeeds it."""
    wishes: dict[str, Any] = {
        "identity": f"00000000-0000-0000-0000-{name:>012}",
        "endpoint": endpoint_of(number),
        "networks": NETWORKS,
        "vni": 1,
        "memory": FileMemory(folder / f"{name}.json"),
    } | others
    return EtcdSource(config, node=name, **wishes)


class Router:
    """A source that was read and started, and what it told."""

    def __init__(self, folder: Path, config: Etcd, name: str, number: int = 0, **others: Any) -> None:
        self.name = name
        self.told = Told()
        self.source = source(folder, config, name, number, **others)
        self.read = self.source.read()
        self.source.start(self.told)

    @property
    def lease(self) -> Lease:
        lease = self.source.state().lease
        assert lease is not None
        return lease

    def until_table(self, *names: str) -> None:
        """Wait until it was told of a table of exactly these nodes, or had read it."""
        wanted = sorted(names)
        until(lambda: self.told.names == wanted or (not self.told.tables and self._names_read() == wanted), self._told)

    def until_held(self, held: bool = True) -> Lease:
        until(lambda: self.lease.held is held, self._told)
        return self.lease

    def until_error(self, *words: str) -> str:
        until(lambda: all(word in self.source.state().error for word in words), self._told)
        return self.source.state().error

    def stop(self) -> None:
        self.source.stop()

    def _names_read(self) -> list[str]:
        return [node.name for node in self.read or ()]

    def _told(self) -> str:
        return f"{self.name}: {self.source.state()} {self.told.names} {self.told.refused}"


class Alone:
    """A router's source in a process of its own, which may be killed, and stand in another container or boot."""

    def __init__(
        self, folder: Path, url: str, name: str, number: int = 0, *, before: tuple[str, ...] = (), **others: Any
    ) -> None:
        """`before` is a command that runs it; `others` are wishes of `tests.etcd_alone`."""
        wishes = {"folder": str(folder), "url": url, "name": name, "number": number} | others
        command = [*before, sys.executable, "-m", "tests.etcd_alone", json.dumps(wishes)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
        assert self._process.stdout is not None
        self.first: dict[str, Any] = json.loads(self._process.stdout.readline())
        """What `read` gave: "table" or "refused"; and the lease."""

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # `unshare` has a child
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def freeze(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)


class Wire:
    """A way to a server that can be cut: nothing arrives any more, and nothing says so."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._whole.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._whole.wait()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._sockets += near, far
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while block := one.recv(65536):
                self._whole.wait()
                other.sendall(block)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
