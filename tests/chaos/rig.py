"""The lab under test: its Pods in all their lives, its routers and who starts them again, and each action as it is done."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shim.client import ClientError
from shim.lab import Lab, netns
from shim.lab.errors import LabError
from shim.lab.links import Group
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from shim.lab.relay.line import LineCounts
from tests.chaos import icmp, payload
from tests.chaos.excuses import Excuse, Excuses
from tests.chaos.log import Log
from tests.chaos.payload import Who
from tests.chaos.pod import UDP_PORT
from tests.chaos.store import PREFIX
from tests.chaos.traffic import Traffic

ROOT = Path(__file__).parents[2]
SETTLE_S = 5.0
"""After a repair, everything must reach everything again."""
EXCUSED_S = 1.0
"""So long after a repair a loss needs no counter: what was under way. Whoever is still taken for dead, routers count."""
SPREAD_S = 3.0
"""… and so long after a node has got subnets: until all others know of them, they take its Pods for liars."""
CHANGE_S = 1.0
"""Around a change of a link's faults, in which frames of some ten milliseconds may be lost."""
REST_S = 4
"""Of a freed address before another Pod gets it: long enough for whatever was under way, short enough that it is used again."""
SUBNET_BITS = {4: 28, 6: 124}
"""Of 13 Pods: few enough that addresses are used again."""
MOST_NODES, MOST_PODS = 10, 6
TTL_S = 10
_TRY_FOR_S = 45.0
_COMMAND_TIMEOUT_S = 40.0


class Skipped(Exception):
    """An action that cannot be done here; says why."""


class Rig:
    """Everything that is acted upon. Actions are methods by their names, with their arguments."""

    def __init__(
        self, nodes: int, pods: int, engine: str, seed: int, log: Log, program: tuple[str, ...] = (), underlay: int = 4
    ) -> None:
        """`program` runs as the routers of the first nodes, in place of `python -m router`."""
        self.log = log
        self.excuses = Excuses()
        bits = (nodes + 1).bit_length()  # two subnets more than nodes at least, and few enough that they are passed on
        self.lab = Lab(
            nodes, pods, name=f"chaos{os.getpid()}", store="etcd", etcd_ttl_s=TTL_S, networks=(f"10.42.0.0/{SUBNET_BITS[4] - bits}", f"fd42::/{SUBNET_BITS[6] - bits}"), underlay_family=underlay,
            router_args=(
                "--engine", engine, "--address-rest-s", str(REST_S),
                "--etcd-ipv4-length", str(SUBNET_BITS[4]), "--etcd-ipv6-length", str(SUBNET_BITS[6]),
            ),
        )  # fmt: skip
        if program:
            for node in self.lab.nodes:
                node.program = program
        self.traffic = Traffic(seed, log.complain)
        self._first = {node.name for node in self.lab.nodes}
        """Those that do not join and leave."""
        self.places: dict[str, tuple[LabPod, Who]] = {}
        """By "n3/2": the Pod that is there, while there is one."""
        self.starting: set[str] = set()
        """Nodes whose router is meant to be down, or not up yet."""
        self.changing: Counter[str] = Counter()
        """By node: Pods that come or go just now."""
        self.stamps: Counter[str] = Counter()
        """By node: counts such changes."""
        self.changed_s: dict[str, float] = {}
        """By node: when the last one was over."""
        self.tables_s = time.monotonic()
        """When a node last took subnets, or left."""
        self.done: Counter[str] = Counter()
        self.relay_lost: Counter[tuple[str, str]] = Counter()
        """By nodes: frames that faults cost."""
        self.relay_missed: Counter[str] = Counter()
        self.relay_duplicated = 0
        self.look: Callable[[LabNode], None] = lambda _node: None
        """Reads a router's counters before it is killed; the oracle's."""
        self._lines: dict[tuple[str, str], LineCounts] = {}
        self._missed: dict[str, int] = {}
        self._lines_lock = threading.Lock()
        self._node_locks: dict[str, threading.RLock] = {}
        self._store_lock = threading.RLock()
        self._lives = itertools.count(1)
        self._ended = threading.Event()
        self._offers: dict[str, bool] = {}
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.folder = Path(tempfile.mkdtemp(prefix="podwire-chaos-"))

    # Life

    def up(self) -> None:
        self.lab.up()
        self.traffic.start()
        for node in self.lab.nodes:
            pods = [pod for pod in self.lab.pods if pod.node is node]
            for number, pod in enumerate(pods, 1):
                self._live(f"{node.name}/{number}", pod)
        self._supervisor.start()

    def down(self) -> None:
        self._ended.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        self.traffic.stop()
        self.lab.down()
        shutil.rmtree(self.folder, ignore_errors=True)

    def hurry(self) -> None:
        """Let whatever waits for its time end now."""
        self._ended.set()

    def offers(self, *command: str, word: str = "") -> bool:
        """Tell whether there is such a command of podwire, and its help says that word."""
        key = " ".join((*command, word))
        if key not in self._offers:
            said = subprocess.run(
                [sys.executable, "-m", "router", *command, "--help"],
                check=False,
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            self._offers[key] = said.returncode == 0 and word in said.stdout
        return self._offers[key]

    def _supervise(self) -> None:
        """Start routers again that ended though nobody killed them; that they did is a fault."""
        while not self._ended.wait(0.25):
            for node in list(self.lab.nodes):
                if node.name in self.starting or node.pid is not None:
                    continue
                with self._lock(node.name):
                    if (
                        node.pid is None
                        and node.name not in self.starting
                        and node in self.lab.nodes
                        and not self._ended.is_set()
                    ):
                        self.log.complain(
                            "routers live", f"the router of {node.name} ended by itself: {node.log_tail()}"
                        )
                        with suppress(LabError), self._without(node, "died"):
                            node.start()

    def _lock(self, node: str) -> threading.RLock:
        return self._node_locks.setdefault(node, threading.RLock())

    @contextmanager
    def _without(self, node: LabNode, why: str, settle_s: float = EXCUSED_S) -> Iterator[Excuse]:
        """Have a node's router be down meanwhile, and its losses excused until some seconds later."""
        self.starting.add(node.name)
        excuse = self.excuses.begin(f"{node.name} {why}", time.monotonic(), [node.name])
        try:
            yield excuse
        finally:
            self.starting.discard(node.name)
            excuse.end(time.monotonic(), settle_s)

    # Pods

    def who(self, place: str) -> Who:
        """Return who lives there. Skipped when nobody does just now."""
        found = self.places.get(place)
        if found is None:
            raise Skipped(f"nobody lives at {place} just now")
        return found[1]

    def keys(self, node: str) -> set[str]:
        """Return the sandbox ids that are attached at a node."""
        return {pod.sandbox_id for pod, who in list(self.places.values()) if who.node == node}

    def _live(self, place: str, pod: LabPod) -> None:
        v4, v6 = pod.addresses
        who = Who(f"{pod.name}.{next(self._lives)}", pod.name, pod.node.name, v4, v6)
        self.traffic.add(who, pod.netns_path)
        self.places[place] = (pod, who)

    def _die(self, place: str) -> LabPod:
        pod, who = self.places.pop(place)
        self.traffic.remove(who.uid)
        self.read_links()  # what was counted of its links goes with it
        return pod

    @contextmanager
    def _change(self, place: str) -> Iterator[None]:
        node = place.split("/", maxsplit=1)[0]
        with self._lock(node):
            if place not in self.places:
                raise Skipped(f"nobody lives at {place} just now")
            self.changing[node] += 1
            self.stamps[node] += 1
            try:
                yield
            finally:
                self.stamps[node] += 1
                self.changing[node] -= 1
                self.changed_s[node] = time.monotonic()

    def _attached(self, attach: Callable[[], LabPod]) -> LabPod:
        """Attach as a runtime would: again and again while the router says that it may."""
        deadline_s = time.monotonic() + _TRY_FOR_S
        while True:
            try:
                return attach()
            except (LabError, ClientError):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.3)

    def replace_pod(self, pod: str) -> None:
        with self._change(pod):
            old = self._die(pod)
            self._remove(old)
            self._live(pod, self._attached(lambda: self.lab.add_pod(old.node)))

    def vanish_pod(self, pod: str) -> None:
        """Have a Pod's namespace go without anybody telling the router, and another Pod come."""
        with self._change(pod):
            old = self._die(pod)
            netns.delete(old.netns)
            deadline_s = time.monotonic() + _TRY_FOR_S
            while old.sandbox_id in self._attachments(old.node):
                if time.monotonic() > deadline_s:
                    raise LabError(f"{old.node.name} keeps {old.sandbox_id}, whose namespace is gone")
                time.sleep(0.2)
            self._remove(old)
            self._live(pod, self._attached(lambda: self.lab.add_pod(old.node)))

    def reattach_pod(self, pod: str) -> None:
        with self._change(pod):
            old = self._die(pod)

            def attach() -> LabPod:
                with self._links_of(old):
                    self.lab.attach_again(old)
                return old

            self._live(pod, self._attached(attach))

    def _remove(self, old: LabPod) -> None:
        with self._links_of(old):
            self.lab.remove_pod(old)

    @contextmanager
    def _links_of(self, pod: LabPod) -> Iterator[None]:
        """A Pod's faults go with it, or follow it to other addresses: a change of the links between the nodes."""
        ends = [
            end
            for found in self.lab.links().links
            if pod.name in (found.link.source, found.link.target)
            for end in self._ends(found.link.source, found.link.target)
        ]
        with self._changes(ends):
            yield

    def _attachments(self, node: LabNode) -> set[str]:
        try:
            with node.client() as client:
                return {each.key.sandbox_id for each in client.attachments()}
        except ClientError as error:
            raise LabError(f"{node.name} does not say what it has attached: {error}") from None

    # Routers

    def kill_router(self, node: str, dead_s: float) -> None:
        with self._lock(node):
            found = self.lab.node(node)
            self.look(found)
            with self._without(found, "killed"):
                found.kill9()
                time.sleep(dead_s)
                found.start()

    def restart_router(self, node: str) -> None:
        """Have a successor take over. Not a packet may be lost, so nothing is excused."""
        if not self.offers("router", "run", word="--takeover"):
            raise Skipped("`podwire router run` has no --takeover")
        with self._lock(node):
            found = self.lab.node(node)
            self.look(found)
            self.starting.add(node)
            try:
                found.take_over()
            finally:
                self.starting.discard(node)

    def move_subnets(self, node: str) -> None:
        """Take a node out of the cluster in order, and in again: it gets other subnets, and its Pods other addresses."""
        places = [place for place in self.places if place.startswith(f"{node}/")]
        with ExitStack() as stack:
            stack.enter_context(self._lock(node))
            for place in places:
                stack.enter_context(self._change(place))
            found = self.lab.node(node)
            self.look(found)
            pods = {place: self._die(place) for place in places}
            self.tables_s = float("inf")
            with self._without(found, "moved", SPREAD_S):
                before = found.subnets
                found.stop()
                said = found.run(
                    [sys.executable, "-m", "router", "router", "clean", "--state-dir", str(found.state_dir)], cwd=ROOT
                )
                if said.returncode:
                    raise LabError(f"podwire router clean on {node}: {said.stdout} {said.stderr}")
                with self._store_lock:
                    row = json.loads(self.lab.store.run_etcdctl("get", f"{PREFIX}/members/{node}", "-w", "json"))
                    for kv in row.get("kvs", ()):
                        self.lab.store.run_etcdctl("lease", "revoke", f"{kv['lease']:x}")
                    self.lab.store.run_etcdctl("del", f"{PREFIX}/nodes/{node}")
                found.start()
                if found.subnets == before:
                    self.log.say(f"{node} took its old subnets again")
            self.tables_s = time.monotonic()
            for place, pod in pods.items():

                def attach(pod: LabPod = pod) -> LabPod:
                    self.lab.attach_again(pod)
                    return pod

                self._live(place, self._attached(attach))

    def kill_etcd(self, dead_s: float) -> None:
        with self._store_lock:
            self.lab.store.kill9()
            time.sleep(dead_s)
            self.lab.store.start()

    def join(self, pods: int, seconds: float) -> None:
        """Have a node join, with Pods, and leave."""
        name = self.lab.plan.with_one_more().nodes[-1].name
        self.starting.add(name)
        self.tables_s = float("inf")
        excuse = self.excuses.begin(f"{name} joins", time.monotonic(), [name])
        try:
            node = self.lab.add_node()
        finally:
            self.starting.discard(name)
            self.tables_s = time.monotonic()
        excuse.end(time.monotonic(), SPREAD_S)
        places = [f"{node.name}/{number}" for number in range(1, pods + 1)]
        with self._lock(node.name):
            self.changing[node.name] += 1
            for place in places:
                self._live(place, self._attached(lambda: self.lab.add_pod(node)))
            self.stamps[node.name] += 1
            self.changing[node.name] -= 1
        self._ended.wait(seconds)
        with self._lock(node.name):
            self.starting.add(node.name)
            self.changing[node.name] += 1
            self.stamps[node.name] += 1
            for place in places:
                self._die(place)
            self.look(node)
            self.lab.remove_node(node)
            self.starting.discard(node.name)
            self.changing[node.name] -= 1
            self.tables_s = time.monotonic()

    # Links

    def impair(
        self, left: str, right: str, faults: dict[str, float], seconds: float, seed: int = 0, one_way: bool = False
    ) -> None:
        ends = self._ends(left, right)
        with self._changes(ends):
            self.lab.link(left, right, one_way=one_way, seed=seed, **faults)  # type: ignore[arg-type]
        self._ended.wait(seconds)
        with self._changes(ends):
            self.read_links()
            self.lab.heal(left, right)

    def impair_pods(self, left: str, right: str, faults: dict[str, float], seconds: float, seed: int = 0) -> None:
        one, other = self.who(left), self.who(right)
        try:
            self.impair(one.pod, other.pod, faults, seconds, seed)
        except LabError:
            if {one.pod, other.pod} <= {pod.name for pod in self.lab.pods}:
                raise
            # one of them went meanwhile, and its links with it

    def cut(self, left: Group, right: Group, seconds: float, one_way: bool = False) -> None:
        ones, others = ([group] if isinstance(group, str) else list(group) for group in (left, right))
        pairs = [(one, other) for one in ones for other in others]
        excuse = self.excuses.begin("cut", time.monotonic(), (), [*pairs, *((other, one) for one, other in pairs)])
        self.lab.partition(left, right, one_way=one_way)
        self._ended.wait(seconds)
        self.read_links()
        self.lab.heal(left, right)
        excuse.end(time.monotonic(), EXCUSED_S)

    def partition(self, group: list[str], seconds: float) -> None:
        self.cut(group, sorted(self._first - set(group)), seconds)

    def cut_store(self, node: str, seconds: float) -> None:
        self.lab.partition(node, "store")
        self._ended.wait(seconds)
        self.lab.heal(node, "store")

    def _ends(self, left: str, right: str) -> list[tuple[str, str]]:
        one, other = (name.partition("p")[0] for name in (left, right))
        return [(one, other), (other, one)]

    @contextmanager
    def _changes(self, ends: list[tuple[str, str]]) -> Iterator[None]:
        excuse = self.excuses.begin("a link changes", time.monotonic(), (), ends)
        try:
            yield
        finally:
            excuse.end(time.monotonic(), CHANGE_S)

    def read_links(self) -> None:
        """Add up what the relay counted. Before a change that makes it forget."""
        with self._lines_lock:
            state = self.lab.links()
            lines = {found.link.pair: found.counts for found in state.links if found.counts is not None}
            for (source, target), counts in lines.items():
                before = self._lines.get((source, target))
                if before is None or before.frames > counts.frames:
                    before = LineCounts()
                lost = sum(
                    getattr(counts, name) - getattr(before, name)
                    for name in ("lost", "swallowed", "overflowed", "refused")
                )
                self.relay_lost[source.partition("p")[0], target.partition("p")[0]] += lost
                self.relay_duplicated += counts.duplicated - before.duplicated
            self._lines = lines
            for name, missed in state.missed.items():
                before_missed = self._missed.get(name, 0)
                self.relay_missed[name] += missed - before_missed if missed >= before_missed else missed
            self._missed = dict(state.missed)

    # Who looks, and who lies

    def capture(self, pod: str, seconds: float) -> None:
        if not self.offers("capture"):
            raise Skipped("there is no `podwire capture`")
        found, who = self.places.get(pod) or (None, self.who(pod))
        assert found is not None
        path = self.folder / f"{who.uid}.pcapng"
        self._ask(found.node, ["capture", found.name, "-w", str(path)], seconds)
        if path.exists():
            begin = path.read_bytes()[:4]
            if begin and begin != b"\x0a\x0d\x0d\x0a":  # draft-ietf-opsawg-pcapng section 4.1
                self.log.complain(
                    "clients end", f"the capture of {who.uid} begins as {begin.hex()}, which is no pcapng"
                )
            path.unlink()
            self.traffic.counts["captures"] += 1

    def trace(self, source: str, target: str, protocol: str) -> None:
        if not self.offers("trace"):
            raise Skipped("there is no `podwire trace`")
        one, other = self.who(source), self.who(target)
        self._ask(self.lab.node(one.node), ["trace", one.pod, str(other.v4), "--proto", protocol], None)

    def _ask(self, node: LabNode, command: list[str], seconds: float | None) -> None:
        """Run a client of a router, for so long or to its end. However it fares, it may not fall over."""
        process = subprocess.Popen(
            [sys.executable, "-m", "router", *command], cwd=ROOT, env={**os.environ, "PODWIRE_SOCKET": str(node.socket)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            if seconds is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds + 1.0)  # it takes a second to start
                process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=_COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            self.log.complain("clients end", f"podwire {' '.join(command)} did not end: {said[-400:]}")
        if "Traceback" in said:
            self.log.complain("clients end", f"podwire {' '.join(command)}: {said[-2000:]}")

    def spoof(self, attacker: str, claimed: str, target: str, family: int, count: int) -> None:
        self.traffic.spoof(self.who(attacker).uid, self.who(claimed), self.who(target), family, count)

    def forge(self, attacker: str, claimed: str, target: str, family: int, count: int) -> None:
        """Have a node send, by its true endpoint, what comes from a Pod of another node."""
        victim, receiver = self.who(claimed), self.who(target)
        node, there = self.lab.node(attacker), self.lab.node(receiver.node)
        version = socket.AF_INET6 if ":" in node.endpoint else socket.AF_INET
        with netns.open_socket(node.netns_path, version, socket.SOCK_RAW, socket.IPPROTO_RAW) as forging:
            for number in range(count):
                data = payload.datagram(payload.SPOOF, 0, number, victim, receiver, family, 120)
                inner = icmp.datagram(str(victim.address(family)), str(receiver.address(family)), UDP_PORT, data)
                forging.sendto(icmp.encapsulated(node.endpoint, there.endpoint, inner), (there.endpoint, 0))
        self.traffic.counts["forged"] += count

    # The end

    def repair(self) -> None:
        """Have everything be there that should be."""
        self.lab.heal()
        if self.lab.store.pid is None:
            self.lab.store.start()
        for node in self.lab.nodes:
            if node.pid is None:
                node.start(wait=False)
            node.wait_ready()
