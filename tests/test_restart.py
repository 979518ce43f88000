"""A router dies and comes back: Pods keep their addresses, connections go on, nothing stays half made."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from shim.client import Client, ClientError
from shim.lab import Lab, netns, plan, throughput
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, counters, eventually, reading_bytes
from tests.pump import Pump

pytestmark = pytest.mark.netns

_FLOWING_BYTES = 200_000
"""More than retransmissions and acknowledgements: the stream is moving again."""


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=2)
    for node in made.nodes:  # what a failed test left dead
        if node.pid is None:
            node.start()
    yield made
    assert_balanced(made)


def addresses(pod_path: Path) -> set[str]:
    """Return what eth0 really has, link-local aside."""
    listed = netns.run(pod_path, ["ip", "-o", "addr", "show", "dev", "eth0"]).stdout.splitlines()
    return {line.split()[3].partition("/")[0] for line in listed}


def in_journal(node: LabNode) -> set[tuple[str, str]]:
    """Return sandbox id and intent of every row."""
    with closing(sqlite3.connect(f"file:{node.state_dir / 'router.db'}?mode=ro", uri=True)) as journal:
        return set(journal.execute("SELECT sandbox_id, intent FROM attachment"))


def flows_again(node: LabNode, received: Callable[[], int], text: str) -> None:
    """Start a dead router, and wait until what is received grows again."""
    before = received()
    began_s = time.monotonic()
    node.start()
    ready_s = time.monotonic() - began_s
    flows_s = eventually(lambda: received() - before > _FLOWING_BYTES, what="the stream again")
    print(f"\n{text}: router of {node.name} answers after {ready_s:.2f} s, TCP flows {flows_s:.2f} s later")
    assert flows_s < 5


def test_iperf3_survives_a_kill_9(lab: Lab) -> None:
    source, target = lab.pods[0], lab.pods[2]
    with ThreadPoolExecutor(1) as pool, reading_bytes(target) as received:
        measured = pool.submit(throughput.measure, source, target, target.addresses[0], 8, lambda _rate: None)
        eventually(lambda: received() > 10 * _FLOWING_BYTES, what="the stream")
        lab.nodes[0].kill9()
        flows_again(lab.nodes[0], received, "iperf3, kill -9")
        assert measured.result() > 0


@pytest.mark.parametrize("ending", [LabNode.kill9, LabNode.stop], ids=["kill-9", "sigterm"])
@pytest.mark.parametrize(("victim", "family"), [(0, 4), (1, 4), (0, 6), (1, 6)])
def test_a_router_ends_under_load(lab: Lab, victim: int, family: int, ending: Callable[[LabNode], None]) -> None:
    node = lab.nodes[victim]
    source, target = lab.pods[0], lab.pods[2]
    epoch, journal = counters(node).epoch, in_journal(node)
    kept = [addresses(pod.netns_path) for pod in lab.pods]
    with Pump(source, target, target.addresses[family == 6]) as pump:
        eventually(lambda: pump.received_bytes > 10 * _FLOWING_BYTES, what="the stream")
        ending(node)
        flows_again(node, lambda: pump.received_bytes, f"IPv{family}, {ending.__name__}")
    assert counters(node).epoch != epoch
    assert in_journal(node) == journal == {(pod.sandbox_id, "attached") for pod in lab.pods if pod.node is node}
    assert [addresses(pod.netns_path) for pod in lab.pods] == kept
    with node.client() as client:
        listed = {address.partition("/")[0] for each in client.attachments() for address in each.addresses}
    assert listed == {str(address) for pod in lab.pods if pod.node is node for address in pod.addresses}


def test_all_routers_killed_at_once(lab: Lab) -> None:
    for node in lab.nodes:
        node.kill9()
    for node in lab.nodes:
        node.start(wait=False)
    for node in lab.nodes:
        node.wait_ready()
    for target in lab.pods[1:]:
        for address in target.addresses:
            done = lab.pods[0].run(["ping", "-n", "-c1", "-W3", str(address)])
            assert done.returncode == 0, done.stdout


def test_a_device_gone_meanwhile_is_lost_and_can_be_detached(lab: Lab) -> None:
    node = lab.nodes[0]
    pod = lab.add_pod(node)
    node.kill9()
    assert pod.run(["ip", "link", "del", "eth0"]).returncode == 0
    node.start()
    with node.client() as client:
        assert any(pod.sandbox_id in note for note in client.status().notes)
    lab.remove_pod(pod)
    assert pod.sandbox_id not in {sandbox_id for sandbox_id, _ in in_journal(node)}


class Churn:
    """Attach and detach namespaces in a thread each until the router dies, and note every answer."""

    def __init__(self, node: LabNode, names: list[str]) -> None:
        self._node = node
        self.names = names
        self.attached: dict[str, bool | None] = dict.fromkeys(names, False)
        """What was answered last; None while the router owes an answer."""
        self.rounds = 0
        self.refused: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(name,), daemon=True) for name in names]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _run(self, name: str) -> None:
        with Client(str(self._node.socket), timeout_s=5) as client:
            try:
                while True:
                    self.attached[name] = None
                    client.attach(name, "eth0", str(netns.path_of(name)))
                    self.attached[name] = True
                    self.rounds += 1
                    self.attached[name] = None
                    client.detach(name, "eth0")
                    self.attached[name] = False
            except ClientError as error:
                if error.code != "UNAVAILABLE":
                    self.refused.append(str(error))


@pytest.mark.parametrize("seed", range(5))
def test_a_crash_in_the_middle_of_attaching_and_detaching(lab: Lab, seed: int) -> None:
    node = lab.nodes[0]
    own = {pod.sandbox_id for pod in lab.pods if pod.node is node}
    names = [f"{lab.plan.pod_netns('churn')}{seed}{index}" for index in range(6)]
    with ExitStack() as stack:
        for name in names:
            netns.create(name, plan.POD_SYSCTLS)
            stack.callback(netns.delete, name)
        churn = Churn(node, names)
        churn.start()
        eventually(lambda: churn.rounds >= len(names), what="churn")
        time.sleep(random.Random(seed).uniform(0, 0.05))  # any moment will do
        node.kill9()
        churn.join()
        assert churn.refused == []
        node.start()

        assert {intent for _, intent in in_journal(node)} == {"attached"}
        rows = {sandbox_id for sandbox_id, _ in in_journal(node)}
        with node.client() as client:
            listed = {each.key.sandbox_id: each for each in client.attachments()}
            assert set(listed) == rows >= own
            every = [address for each in listed.values() for address in each.addresses]
            assert len(every) == len(set(every))
            for name in names:
                there = "eth0" in interfaces(name)
                assert there == (name in rows), f"{name}: device {there}, journal {name in rows}"
                assert churn.attached[name] in (None, there), f"{name}: what was answered did not last"
                if there:
                    wanted = {address.partition("/")[0] for address in listed[name].addresses}
                    assert addresses(netns.path_of(name)) == wanted
                client.attach(name, "eth0", str(netns.path_of(name)))
            for name in names:
                with suppress(ClientError):
                    client.detach(name, "eth0")
            assert {each.key.sandbox_id for each in client.attachments()} == own
        assert [name for name in names if "eth0" in interfaces(name)] == []


def interfaces(name: str) -> list[str]:
    listed = netns.run(netns.path_of(name), ["ip", "-o", "link"]).stdout.splitlines()
    return [line.split(": ")[1] for line in listed]
