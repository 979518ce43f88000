"""Where a simulation happens: a namespace with loopback alone, in it a real etcd and the crowds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cpu import read_cpu_time
from benchmarks.namespace import Namespace, end

_ROOT = Path(__file__).resolve().parent.parent.parent
_READY_S = 30.0


class Store:
    """An etcd of one member; each crowd reaches it by an address of its own."""

    def __init__(self, stack: ExitStack, where: Namespace, folder: Path, addresses: int) -> None:
        self.urls = [f"http://127.0.0.{2 + index}:2379" for index in range(addresses)]
        urls = ",".join(["http://127.0.0.1:2379", *self.urls])
        self._process = where.spawn(
            stack, "etcd", "--name", "store", "--data-dir", str(folder / "etcd"), "--logger", "zap", "--log-level", "error",
            "--listen-client-urls", urls, "--advertise-client-urls", urls, "--listen-peer-urls", "http://127.0.0.1:2380",
            "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "store=http://127.0.0.1:2380",
            # Room for a storm of thousands before compaction.
            "--quota-backend-bytes", str(4 << 30), "--max-request-bytes", str(8 << 20),
        )  # fmt: skip
        deadline_s = time.monotonic() + _READY_S
        while not where.inside(self._is_healthy):
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                raise RuntimeError("etcd does not come up: is etcd-server installed?")
            time.sleep(0.05)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:2379/health", timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False

    @property
    def cpu_s(self) -> float:
        """Processor time it has used."""
        return read_cpu_time([self._process.pid]).processes_s


class Crowd:
    """A crowd's process, from outside."""

    def __init__(self, stack: ExitStack, where: Namespace, url: str, ttl_s: int, one_follows_of: int) -> None:
        self.nodes: list[int] = []
        self._process = subprocess.Popen(
            where.command(sys.executable, "-m", "benchmarks.simulation.crowd", url, ttl_s, one_follows_of),
            cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(end, self._process)

    def tell(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something, and return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a crowd has ended; what it said is above")
        return json.loads(line)  # type: ignore[no-any-return]


class Stage:
    """Store and crowds, from `with` to its end."""

    def __init__(self, crowds: int, ttl_s: int, one_follows_of: int = 1) -> None:
        self._count, self._ttl_s, self._one_follows_of = crowds, ttl_s, one_follows_of
        self._stack = ExitStack()
        self.crowds: list[Crowd] = []

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pwb-simulation-")))
            self.where = Namespace(stack, "simulation")
            self.store = Store(stack, self.where, folder, self._count)
            self.crowds = [Crowd(stack, self.where, url, self._ttl_s, self._one_follows_of) for url in self.store.urls]
            self._pool = stack.enter_context(ThreadPoolExecutor(self._count))
            self.where.run("nft", "add table inet cut; add chain inet cut out { type filter hook output priority 0 ; }")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def all(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Have every crowd do the same at once."""
        return list(self._pool.map(lambda crowd: crowd.tell(do, **arguments), self.crowds))

    def each(self, do: str, nodes: list[int]) -> list[dict[str, Any]]:
        """Have every crowd do something with those of its nodes."""
        return list(
            self._pool.map(lambda crowd: crowd.tell(do, nodes=[n for n in nodes if n in crowd.nodes]), self.crowds)
        )

    def settle(self, crowds: list[Crowd], rows: int, timeout_s: float) -> None:
        """Wait until every node of these crowds holds its subnets and sees that many nodes. RuntimeError when it takes longer."""
        told = list(self._pool.map(lambda crowd: crowd.tell("wait", rows=rows, timeout_s=timeout_s), crowds))
        if behind := [each for each in told if each["behind"]]:
            raise RuntimeError(f"after {timeout_s:.0f} s not settled: {behind}")

    def cut(self, crowd: int) -> None:
        """Cut a crowd off from the store: what is sent is lost, to and fro, and nobody is told."""
        address = f"127.0.0.{2 + crowd}"
        self.where.run(
            "nft", f"add rule inet cut out ip daddr {address} drop; add rule inet cut out ip saddr {address} drop"
        )

    def heal(self) -> None:
        """Undo every cut."""
        self.where.run("nft", "flush chain inet cut out")
