"""Routers' sources by the dozen on a real etcd, each a process; kill -9 of them and of etcd meanwhile, and some frozen.

`python -m tests.etcd_storm --rounds 20 --nodes 50` runs as many rounds without kills and with them, says what came of
it, and exits 1 when two nodes ever held one subnet, or did not come together in the end. Two independent witnesses:

- the history of the store, read with etcdctl from its first revision on: no two rows of members/ that are there at
  one revision may share a subnet or an endpoint, and each of their subnets must be locked by the same lease;
- what the nodes themselves believed: each writes down when it was told that it holds, and does not any more. Of two
  nodes, no times at which they hold one subnet may overlap.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from router.errors import Refusal
from router.model import Node, Prefix
from router.subnets.source import Lease, SourceState
from tests.etcd_rig import NETWORKS, PREFIX, Server, settings, source

TTL_S = 5
TIGHT = (ip_network("10.32.0.0/18"), ip_network("fd00:32::/58"))
"""64 subnets: 50 nodes get in each other's way, and take what others gave up."""
TOGETHER_S = 60.0
"""By when all must hold subnets and see each other after the last kill."""


class Diary:
    """A node's listener: writes down what it is told, a line each, so that it outlives the process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        self.write(table=[node.name for node in nodes])

    def table_refused(self, message: str) -> None:
        self.write(refused=message)

    def connection_changed(self, state: SourceState) -> None:
        pass

    def lease_changed(self, lease: Lease) -> None:
        self.write(
            held=lease.held,
            subnets=list(map(str, lease.subnets)),
            epoch=lease.epoch,
            expires_s=lease.expires_s,
            why=lease.why,
        )

    def write(self, **entry: object) -> None:
        os.write(self._fd, json.dumps({"at_s": time.monotonic(), **entry}).encode() + b"\n")


@dataclass(slots=True)
class Process:
    """A node that may be killed and started again."""

    number: int
    folder: Path
    url: str
    networks: tuple[Prefix, ...]
    pid: int = 0

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def diary(self) -> Path:
        return self.folder / f"{self.name}.diary"

    def start(self) -> None:
        """Fork: everything is imported, and no channel was made here yet."""
        self._write(started=True)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run()
            finally:
                os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0
        self._write(ended=True)

    def freeze(self) -> None:
        """Let it stand still: it believes what it believed, and cannot notice that it should not."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.diary.read_text().splitlines()]

    def is_together(self, names: list[str]) -> bool:
        """Tell whether since its last start it holds, and sees those nodes."""
        entries = self.entries()
        begin = max(index for index, entry in enumerate(entries) if "started" in entry)
        held = [entry["held"] for entry in entries[begin:] if "held" in entry]
        tables = [entry["table"] for entry in entries[begin:] if "table" in entry]
        return bool(held and held[-1] and tables and tables[-1] == names)

    def _write(self, **entry: object) -> None:
        Diary(self.diary).write(**entry)

    def _run(self) -> None:
        log = os.open(self.folder / f"{self.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 2)
        diary = Diary(self.diary)
        while True:
            config = settings(self.url, ttl_s=TTL_S)
            made = source(self.folder, config, self.name, self.number, networks=self.networks)
            try:
                nodes = made.read()
                break
            except Refusal as refusal:
                diary.write(refused=refusal.message)
                time.sleep(0.5)
        if nodes is not None:
            diary.table_changed(nodes)
        made.start(diary)
        signal.pause()


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a round."""

    seconds: float
    kills: int
    freezes: int
    etcd_kills: int
    passed_on: int
    """How many subnets were held by more than one node, in turn."""
    revisions: int
    faults: tuple[str, ...]


def storm(folder: Path, nodes: int, networks: tuple[Prefix, ...], kill_for_s: float, seed: int) -> Result:
    """Run one round in an empty folder."""
    dice = random.Random(seed)
    etcd = Server(folder)
    etcd.start()
    processes = [Process(number, folder, etcd.url, networks) for number in range(nodes)]
    gone: list[Process] = []
    kills = freezes = etcd_kills = 0
    faults: list[str] = []
    began_s = time.monotonic()
    try:
        for process in processes:
            process.start()
        down: dict[int, float] = {}
        frozen: dict[int, float] = {}
        next_etcd_s = began_s + dice.uniform(0, 2)
        while time.monotonic() < began_s + kill_for_s:
            time.sleep(dice.uniform(0.01, 0.1))
            now_s = time.monotonic()
            for place in [place for place, at_s in down.items() if at_s < now_s]:
                processes[place].start()
                del down[place]
            for place in [place for place, at_s in frozen.items() if at_s < now_s]:
                processes[place].thaw()
                del frozen[place]
            victim = dice.randrange(nodes)
            if victim in down or victim in frozen:
                continue
            if dice.random() < 0.15:
                processes[victim].freeze()
                frozen[victim] = now_s + TTL_S + 1
                freezes += 1
            else:
                processes[victim].kill()
                kills += 1
                chance = dice.random()
                down[victim] = now_s + (dice.uniform(0, 1) if chance < 0.8 else TTL_S + 1)
                if chance > 0.7:  # another comes in its stead, when all subnets have had an owner
                    gone.append(processes[victim])
                    processes[victim] = Process(nodes + len(gone), folder, etcd.url, networks)
            if now_s > next_etcd_s:
                etcd.kill()
                time.sleep(dice.uniform(0, 0.5))
                etcd.start(wait=False)
                etcd_kills += 1
                next_etcd_s = now_s + dice.uniform(1, 3 * TTL_S)  # each time, all leases get their time anew
        for place in frozen:
            processes[place].thaw()
        for place in down:
            processes[place].start()
        etcd.wait_healthy()
        names = sorted(process.name for process in processes)
        deadline_s = time.monotonic() + TOGETHER_S
        while missing := [process.name for process in processes if not process.is_together(names)]:
            if time.monotonic() > deadline_s:
                faults.append(f"not together after {TOGETHER_S:.0f} s: {', '.join(missing)}")
                break
            time.sleep(0.1)
        seconds = time.monotonic() - began_s
        revisions = list(history(etcd))
    finally:
        for process in processes:
            if process.pid:
                process.kill()
        etcd.kill()
    faults += faults_of_store(revisions, names)
    faults += [f"{log.name} has a traceback" for log in folder.glob("*.log") if "Traceback" in log.read_text()]
    diaries = {process.name: process.entries() for process in (*processes, *gone)}
    faults += faults_of_beliefs(diaries)
    holders: dict[str, set[str]] = {}
    for name, entries in diaries.items():
        for subnet in (subnet for entry in entries if entry.get("held") for subnet in entry["subnets"]):
            holders.setdefault(subnet, set()).add(name)
    passed_on = sum(len(names) > 1 for names in holders.values())
    return Result(seconds, kills, freezes, etcd_kills, passed_on, len(revisions), tuple(faults))


Event = tuple[str, bytes | None, int]
"""Key, value (None: deleted) and lease."""


def history(etcd: Server) -> Iterator[tuple[int, list[Event]]]:
    """Yield what was written and deleted under our prefix, revision by revision, from the first on."""
    command = ["etcdctl", "--endpoints", etcd.url, "watch", "--rev", "1", "--prefix", f"{PREFIX}/", "-w", "json"]
    end = f"{PREFIX}/end"
    etcd.ctl("put", end, "")
    with subprocess.Popen(command, env={**os.environ, "ETCDCTL_API": "3"}, stdout=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        revision, gathered = 0, list[Event]()
        for line in watch.stdout:
            for event in json.loads(line)["Events"]:
                kv = event["kv"]
                key = base64.b64decode(kv["key"]).decode()
                if kv["mod_revision"] != revision and gathered:
                    yield revision, gathered
                    gathered = []
                revision = kv["mod_revision"]
                value = None if event.get("type") == 1 else base64.b64decode(kv.get("value", ""))
                gathered.append((key, value, kv.get("lease", 0)))
            if gathered and gathered[-1][0] == end:
                watch.kill()
                return


def faults_of_store(revisions: list[tuple[int, list[Event]]], names: list[str]) -> list[str]:
    """Say what was wrong with the store at any time, and whether all had subnets in the end."""
    faults = []
    there: dict[str, tuple[bytes, int]] = {}
    for revision, events in revisions:
        for key, value, lease in events:
            if value is None:
                there.pop(key, None)
            else:
                there[key] = (value, lease)
        taken: dict[str, str] = {}
        for key, (value, lease) in there.items():
            if key.startswith(f"{PREFIX}/members/"):
                name, row = key.rpartition("/")[2], json.loads(value)
                faults += [
                    f"revision {revision}: {what} is held by {other} and {name}"
                    for what in (*row["subnets"], row["endpoint"])
                    if (other := taken.setdefault(what, name)) != name
                ]
                for subnet in row["subnets"]:
                    lock = there.get(f"{PREFIX}/leases/{subnet.replace('/', '-')}")
                    if lock != (name.encode(), lease):
                        faults.append(f"revision {revision}: {name} has {subnet}, whose lock is {lock}")
    missing = set(names) - {key.rpartition("/")[2] for key in there if key.startswith(f"{PREFIX}/members/")}
    return faults + [f"{name} has no row in the end" for name in sorted(missing)]


def faults_of_beliefs(diaries: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Say where two nodes believed to hold one subnet at one time, or a node's epoch went back."""
    faults = []
    times: dict[str, list[tuple[float, float, str]]] = {}
    for name, entries in diaries.items():
        epoch, since_s, held = 0, 0.0, list[str]()
        for entry in entries:
            if "held" not in entry and "ended" not in entry:
                continue
            until_s = min(
                entry["at_s"], entry.get("expires_s", entry["at_s"]) if not entry.get("held") else entry["at_s"]
            )
            for subnet in held:
                times.setdefault(subnet, []).append((since_s, until_s, name))
            held = entry["subnets"] if entry.get("held") else []
            since_s = entry["at_s"]
            if entry.get("held"):
                if entry["epoch"] < epoch:
                    faults.append(f"{name} went from epoch {epoch} back to {entry['epoch']}")
                epoch = entry["epoch"]
    for subnet, spans in times.items():
        spans.sort()
        for index, (since_s, until_s, name) in enumerate(spans):
            for later_s, _, other in spans[index + 1 :]:
                if other != name and later_s < until_s:
                    faults.append(
                        f"{subnet}: {name} held it from {since_s:.3f} to {until_s:.3f}, {other} from {later_s:.3f}"
                    )
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each kind")
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument(
        "--kill-for", type=float, default=12.0, metavar="SECONDS", help="how long nodes and etcd are killed"
    )
    parser.add_argument("--tight", action="store_true", help="64 subnets for all in every round, not in every other")
    parser.add_argument("--kind", choices=("plain", "kills", "both"), default="both")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    failed = 0
    for kind, kill_for_s in (("plain", 0.0), ("kills", wanted.kill_for)):
        if wanted.kind not in ("both", kind):
            continue
        for number in range(1, wanted.rounds + 1):
            folder = Path(tempfile.mkdtemp(prefix="podwire-storm-"))
            networks = TIGHT if wanted.tight or number % 2 == 0 else NETWORKS
            result = storm(folder, wanted.nodes, networks, kill_for_s, wanted.seed + number)
            print(
                f"{kind} round {number}: {wanted.nodes} nodes together in {result.seconds:.1f} s, {result.kills} kills, "
                f"{result.freezes} frozen, {result.etcd_kills} kills of etcd, {result.passed_on} subnets passed on, "
                f"{result.revisions} revisions: {'no conflict' if not result.faults else f'{len(result.faults)} FAULTS'}",
                flush=True,
            )
            for fault in result.faults[:10]:
                print(f"  {fault}")
            if result.faults:
                failed += 1
                print(f"  seed {wanted.seed + number}; diaries are in {folder}")
            else:
                shutil.rmtree(folder)
    print(f"{failed} rounds with faults" if failed else "no round with a fault")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
