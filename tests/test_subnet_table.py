"""A router follows its subnet table file: quickly, never into a bad state, and without losing a packet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from benchmarks.contenders.interface import Way
from benchmarks.measures.flow import Flow
from benchmarks.namespace import Namespace
from shim.answers import Status
from shim.lab import Lab
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, eventually, of_pod
from tests.pump import Pump

pytestmark = pytest.mark.netns

Rows = dict[str, tuple[str, Sequence[str]]]
_NOWHERE = "192.168.64.99"
"""An underlay address nobody has."""


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=2)
    yield made
    assert_balanced(made)
    made.write_subnets()
    for node in made.nodes:
        eventually(lambda node=node: (status(node).peers, status(node).table_error) == (1, ""))  # type: ignore[misc]


def status(node: LabNode) -> Status:
    with node.client() as client:
        return client.status()


def rows(lab: Lab) -> Rows:
    return {node.name: (node.endpoint, [str(subnet) for subnet in node.plan.subnets]) for node in lab.nodes}


def events(node: LabNode, kind: str) -> list[str]:
    with node.client() as client:
        return [event.message for event in client.watch_events(0, follow=False) if event.kind == kind]


def test_routes_follow_the_file(lab: Lab) -> None:
    """Seen by traffic: what nobody owned is tunnelled once a table says who does, and refused again without it."""
    node, pod = lab.nodes[0], lab.pods[0]

    def answer() -> str:
        done = pod.run(["ping", "-n", "-c1", "-W", "0.05", "10.42.77.5"])
        return done.stdout

    assert "Destination Net Unreachable" in answer()
    version = status(node).table_version
    lab.write_subnets(rows(lab) | {"far": (_NOWHERE, ["10.42.77.0/24"])}, [node])
    there_s = eventually(lambda: "Unreachable" not in answer(), what="the route")
    assert status(node).table_version > version
    lab.write_subnets(nodes=[node])
    gone_s = eventually(lambda: "Destination Net Unreachable" in answer(), what="the end of the route")
    print(f"\nroutes follow the file after {there_s:.2f} s and {gone_s:.2f} s")
    assert max(there_s, gone_s) < 5


def test_a_node_that_gains_a_subnet_gives_out_its_addresses(lab: Lab) -> None:
    first, second = lab.nodes
    grown = rows(lab)
    grown[second.name] = (second.endpoint, [*grown[second.name][1], "10.42.50.0/24"])
    lab.write_subnets(grown)
    for node in lab.nodes:
        eventually(lambda node=node: status(node).table_version > 1 and _knows(node, "10.42.50.0/24"))  # type: ignore[misc]
    pod = lab.add_pod(second, ip=["10.42.50.7"])
    for source in (lab.pods[0], lab.pods[-2]):
        assert source.run(["ping", "-n", "-c1", "-W3", "10.42.50.7"]).returncode == 0
    assert first.run(["ping", "-n", "-c1", "-W3", "10.42.50.7"]).returncode == 0
    lab.remove_pod(pod)


def _knows(node: LabNode, subnet: str) -> bool:
    with node.client() as client:
        return any(subnet in row.subnets for row in client.subnets().nodes)


_BAD: Mapping[str, tuple[Rows, Sequence[str]]] = {
    "subnets overlap": ({"far": (_NOWHERE, ["10.42.2.128/25"])}, ["10.42.2.0/24", "n2", "10.42.2.128/25", "far"]),
    "subnet twice": ({"far": (_NOWHERE, ["fd42:0:0:2::/64"])}, ["fd42:0:0:2::/64", "n2", "far"]),
    "endpoint twice": ({"far": ("192.168.64.2", ["10.42.9.0/24"])}, ["n2", "far", "192.168.64.2:6081"]),
    "endpoint in the cluster": ({"far": ("10.42.9.9", ["10.42.9.0/24"])}, ["10.42.0.0/16", "10.42.9.9:6081", "far"]),
    "outside the cluster": ({"far": (_NOWHERE, ["10.43.0.0/24"])}, ["10.43.0.0/24", "far", "10.42.0.0/16"]),
    "not itself": ({"n1": (_NOWHERE, ["10.42.1.0/24"])}, ["n1", f"{_NOWHERE}:6081", "192.168.64.1:6081"]),
}


@pytest.mark.parametrize("what", _BAD)
def test_a_bad_table_is_refused_and_the_old_one_stays(lab: Lab, what: str) -> None:
    node = lab.nodes[0]
    change, named = _BAD[what]
    with node.client() as client:
        before = client.subnets()
        lab.write_subnets(rows(lab) | change, [node])
        eventually(lambda: bool(client.status().table_error), what="a refusal")
        error = client.status().table_error
        for word in named:
            assert word in error
        assert client.subnets() == before
        assert client.status().table_version == before.version
    assert events(node, "table_refused")[-1] == error
    assert lab.pods[0].run(["ping", "-n", "-c1", "-W3", str(lab.pods[2].addresses[0])]).returncode == 0


def test_a_name_twice_is_refused(lab: Lab) -> None:
    node = lab.nodes[0]
    twice = '\n[[node]]\nname = "n2"\nendpoint = "192.168.64.98"\nsubnets = ["10.42.8.0/24"]\n'
    node.subnets_path.write_text(node.subnets_path.read_text() + twice)
    eventually(lambda: "192.168.64.98" in status(node).table_error, what="a refusal")
    assert "n2" in status(node).table_error
    assert "192.168.64.2" in status(node).table_error


def test_a_router_starts_with_the_last_good_table(lab: Lab) -> None:
    node = lab.nodes[0]
    node.subnets_path.write_text("[[node]\n")
    node.restart()
    assert "TOML" in status(node).table_error
    assert status(node).peers == 1
    assert lab.pods[0].run(["ping", "-n", "-c1", "-W3", str(lab.pods[2].addresses[0])]).returncode == 0


def test_tables_replaced_under_traffic_lose_no_packet(lab: Lab) -> None:
    node, source, target = lab.nodes[0], lab.pods[0], lab.pods[2]
    ends = [Namespace.existing(str(pod.netns_path)) for pod in (source, target)]
    way = Way(ends[0], ends[1], str(target.addresses[0]))
    many = {f"far{index}": (f"192.168.65.{index}", [f"10.42.{index}.0/24"]) for index in range(16, 200)}
    before = of_pod(source).tally.dropped
    with Pump(source, target, target.addresses[1], pause_s=0.02), Flow(way, 100, 1000) as flow, node.client() as client:
        for turn in range(4):
            version = client.status().table_version
            lab.write_subnets(rows(lab) | (many if turn % 2 == 0 else {}))
            eventually(lambda version=version: client.status().table_version > version, what="a table")  # type: ignore[misc]
        deadline_s = time.monotonic() + 10
        while flow.sent < 2000 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        flow.stop()
        print(f"\n4 tables under {flow.sent} datagrams, {flow.arrived} arrived")
        assert flow.sent >= 2000
        assert flow.arrived == flow.sent
    assert of_pod(source).tally.dropped == before
