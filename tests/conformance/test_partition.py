"""Partitions of a lab whose nodes lease in a real etcd: who cannot be reached is told at once, and what heals, heals whole."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.cpu import read_cpu_time
from shim.answers import Status
from shim.lab import Lab
from shim.lab.errors import LabError
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, counters, eventually
from tests.pump import Pump

pytestmark = pytest.mark.netns

HEALED_S = 2.0
"""What is promised; the tests give a machine out of breath three times that, and print what it was."""
TTL_S = 10


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=4, pods=1, store="etcd")
    for node in made.nodes:
        if node.pid is None:
            node.start()
    made.heal()
    eventually(lambda: unreached(made) == [], timeout_s=30, what="every Pod from every Pod")
    yield made
    made.heal()
    assert_balanced(made)


def status(node: LabNode) -> Status:
    with node.client() as client:
        return client.status()


def unreached(lab: Lab) -> list[str]:
    """Return the pairs of Pods that do not reach each other; raise when an answer comes twice."""
    missing = []
    for source in lab.pods:
        targets = [str(pod.addresses[0]) for pod in lab.pods if pod is not source]
        script = " ".join(f"ping -n -q -c1 -W0.3 {target} &" for target in targets)
        said = str(source.run(["sh", "-c", f"{script} wait"], timeout=30).stdout)
        assert "duplicates" not in said, said
        found = re.findall(r"--- (\S+) ping statistics ---\n1 packets transmitted, (\d) received", said)
        missing += [f"{source.name} {target}" for target, count in found if count != "1"]
        missing += [f"{source.name} {target}" for target in targets if target not in dict(found)]
    return missing


def all_reached_s(lab: Lab) -> float:
    """Return after how many seconds every Pod reached every Pod."""
    return eventually(lambda: unreached(lab) == [], timeout_s=3 * HEALED_S, what="every Pod from every Pod")


def test_halves_are_told_at_once_and_come_together_again(lab: Lab) -> None:
    subnets = {node.name: status(node).subnets for node in lab.nodes}
    near, _, far, _ = lab.pods
    with Pump(near, lab.pods[1], lab.pods[1].addresses[0], pause_s=0.02) as bystander:
        lab.partition("n1,n2", "n3,n4")
        eventually(lambda: status(lab.nodes[0]).peers_unreachable == 2, what="the other half missed")
        said = near.run(["ping", "-n", "-c1", "-W2", str(far.addresses[0])], timeout=30).stdout
        assert "Unreachable" in str(said), said
        moved = bystander.received_bytes
        eventually(lambda: bystander.received_bytes > moved, what="traffic inside a half")
        with lab.nodes[0].client() as client:
            assert client.status().source is not None
            assert client.status().source.connected, "the store is on nobody's side"
        lab.heal()
        healed_s = all_reached_s(lab)
    print(f"\nall Pods reach each other again {healed_s:.2f} s after the heal")
    assert {node.name: status(node).subnets for node in lab.nodes} == subnets


def test_a_node_cut_off_from_everything_for_longer_than_its_lease_comes_back_with_its_subnets(lab: Lab) -> None:
    node = lab.nodes[3]
    before = status(node)
    assert before.source is not None
    assert before.source.lease is not None
    lab.partition("n4", "n1,n2,n3,store")
    eventually(lambda: lease_is_lost(node), timeout_s=4 * TTL_S, what="the lease not sure any more")
    with pytest.raises(LabError, match="lease of its subnets is not held"):
        lab.add_pod(node)
    eventually(lambda: len(table(lab.nodes[0])) == 3, timeout_s=4 * TTL_S, what="its row gone")
    said = lab.pods[0].run(["ping", "-n", "-c1", "-W2", str(lab.pods[3].addresses[0])], timeout=30).stdout
    assert "Unreachable" in str(said), said
    lab.heal()
    healed_s = all_reached_s(lab)
    print(f"\nall Pods reach each other again {healed_s:.2f} s after the heal")
    after = status(node)
    assert after.source is not None
    assert after.source.lease is not None
    assert after.subnets == before.subnets
    assert after.source.lease.held
    assert after.source.lease.epoch == before.source.lease.epoch + 1
    with node.client() as client:
        kinds = [event.kind for event in client.watch_events(0, follow=False)]
    assert {"source_lost", "lease_lost", "source_found", "lease_taken"} <= set(kinds)
    again = lab.add_pod(node)
    assert lab.pods[0].run(["ping", "-n", "-c1", "-W2", str(again.addresses[0])]).returncode == 0
    lab.remove_pod(again)


def lease_is_lost(node: LabNode) -> bool:
    source = status(node).source
    return source is not None and source.lease is not None and not source.lease.held


def table(node: LabNode) -> list[str]:
    with node.client() as client:
        return [each.name for each in client.subnets().nodes]


@pytest.mark.parametrize("ending", ["kill9", "pause"])
def test_traffic_goes_on_without_the_store_and_routers_are_idle(lab: Lab, ending: str) -> None:
    source, target = lab.pods[0], lab.pods[1]
    held = [status(node).source for node in lab.nodes]
    getattr(lab.store, ending)()
    with Pump(source, target, target.addresses[0], pause_s=0.02) as pump:
        eventually(lambda: not status(lab.nodes[0]).source.connected, timeout_s=30, what="the store missed")  # type: ignore[union-attr]
        began_s, before_s = time.monotonic(), cpu_s(lab.nodes[2])
        moved = pump.received_bytes
        eventually(lambda: time.monotonic() - began_s > TTL_S + 2, timeout_s=60, what="a TTL to pass")
        used_s = (cpu_s(lab.nodes[2]) - before_s) / (time.monotonic() - began_s)
        assert pump.received_bytes > moved
        print(f"\na router without traffic and store takes {used_s:.1%} of a core")
        assert used_s < 0.25, "it spins"
        assert len(table(lab.nodes[0])) == 4
    found = status(lab.nodes[0])
    assert found.source is not None
    assert found.source.error
    assert found.source.confirmed_age_s > TTL_S
    if ending == "kill9":
        lab.store.start()
    else:
        lab.store.resume()
    eventually(lambda: all(is_held(node) for node in lab.nodes), timeout_s=30, what="the store found again")
    assert unreached(lab) == []
    for before, node in zip(held, lab.nodes, strict=True):
        after = status(node).source
        assert before is not None
        assert before.lease is not None
        assert after is not None
        assert after.lease is not None
        assert status(node).subnets
        assert after.lease.epoch >= before.lease.epoch
    assert sum(tally_of(node) for node in lab.nodes) == 0


def is_held(node: LabNode) -> bool:
    source = status(node).source
    return source is not None and source.connected and source.lease is not None and source.lease.held


def tally_of(node: LabNode) -> int:
    return sum(peer.tally.dropped.get("spoofed_source", 0) for peer in counters(node).peers)


def cpu_s(node: LabNode) -> float:
    """Return the processor time a router has used."""
    assert node.pid is not None
    return read_cpu_time([node.pid]).processes_s
