"""What a lab is made of: its plan, its ledger, processes known for sure, namespaces, and the matrix of who reaches whom."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.lab import ledger, matrix, netns, plan, process
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger
from shim.lab.service import Service
from shim.lab.teardown import take_down

pytestmark = pytest.mark.netns


@pytest.fixture(autouse=True)
def labs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of labs of this test's own: short, as a Unix socket's path has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="pw"))
    monkeypatch.setenv("PODWIRE_LABS_DIR", str(path))
    yield path
    for name in ledger.names():  # what a failed test left
        take_down(Ledger(name))
    shutil.rmtree(path)


@pytest.fixture
def name() -> str:
    return f"t{os.getpid()}-{secrets.token_hex(3)}"


# The plan and the ledger


def test_no_two_labs_share_a_name() -> None:
    plans = [plan.LabPlan(name, 64, 0, with_outside=True, store="etcd") for name in ("a", "a-n1", "a-n1p1", "a-store")]
    made = [name for each in plans for name in (*each.namespaces, each.pod_netns("n1p1"))]
    assert len(set(made)) == len(made)


def test_subnets_and_addresses_of_nodes_differ() -> None:
    nodes = plan.LabPlan("x", 64).nodes
    everything = [item for node in nodes for item in (*node.subnets, *node.addresses, *node.underlay, node.endpoint)]
    assert len(set(map(str, everything))) == len(everything)
    for node in nodes:
        assert node.subnets[0].subnet_of(plan.CLUSTER_V4)
        assert node.subnets[1].subnet_of(plan.CLUSTER_V6)


def test_everybody_on_the_underlay_has_an_address_and_a_port_of_their_own() -> None:
    whole = plan.LabPlan("x", 64, with_outside=True, store="etcd")
    stations = whole.stations
    assert len(stations) == 66
    assert len({station.mac for station in stations}) == len({station.name for station in stations}) == 66
    taken = {interface for node in whole.nodes for interface in node.underlay}
    assert len(taken | {*whole.gateway, *whole.store_addresses}) == 2 * 66
    assert (whole.store_url, plan.LabPlan("x", underlay_family=6).store_url) == (
        "http://192.168.64.253:2379",
        "http://[fd64::fd]:2379",
    )


def test_a_node_that_joins_takes_the_first_free_number() -> None:
    names = lambda found: [node.name for node in found.nodes]  # noqa: E731 - of this test
    two = plan.LabPlan("x", 2)
    assert names(two.with_one_more()) == ["n1", "n2", "n3"]
    assert names(two.without("n1").with_one_more()) == ["n2", "n1"]
    with pytest.raises(LabError, match="last node"):
        two.without("n1").without("n2")
    with pytest.raises(LabError, match="no lab can have more"):
        plan.LabPlan("x", 64).with_one_more()


def test_ranges_are_the_labs_own_unless_they_are_leased() -> None:
    ranges = ("10.42.0.0/24", "fd42::/120")
    assert plan.LabPlan("x", store="etcd", networks=ranges).networks == ranges
    with pytest.raises(LabError, match="ranges of a lab are"):
        plan.LabPlan("x", networks=ranges)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("Bad/Name",), "name"),
        (("x" * 25,), "name"),
        (("x", 0), "nodes"),
        (("x", 65), "nodes"),
        (("x", 1, -1), "Pods"),
        (("x", 1, 1, 1327), "MTU"),
        (("x", 1, 1, 1340, 6), "MTU"),
        (("x", 1, 1, 1500, 5), "family"),
        (("x", 1, 1, 1500, 4, False, (), "disk"), "store"),
        (("x", 1, 1, 1500, 4, False, (), "etcd", 0), "etcd_ttl_s"),
    ],
)
def test_an_impossible_lab_is_refused(arguments: tuple[object, ...], word: str) -> None:
    with pytest.raises(LabError, match=word):
        plan.LabPlan(*arguments)  # type: ignore[arg-type]


def test_a_recycled_pid_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        known = process.ProcessId.of(sleeper.pid)
        assert known is not None
        earlier = process.ProcessId(known.pid, known.start_ticks - 1)
        assert not earlier.alive
        assert process.end([earlier], grace_s=1) == []
        assert sleeper.poll() is None
        assert process.end([known], grace_s=5) == []
        assert sleeper.wait() == -signal.SIGTERM
        assert not known.alive


def test_a_process_that_does_not_end_is_killed() -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        known = process.ProcessId.of(stubborn.pid)
        assert known is not None
        assert process.end([known], grace_s=0.1) == [known]
        assert stubborn.wait() == -signal.SIGKILL


def test_a_service_is_succeeded_by_one_that_outlives_it_or_stays_as_it_was(name: str, tmp_path: Path) -> None:
    netns.create(name)
    made = Service("the sleeper", tmp_path, "sleeper", netns.path_of(name))
    try:
        with pytest.raises(LabError, match="does not run"):
            made.succeed(["sleep", "60"], 5)
        made.start(["sleep", "60"])
        first = made.pid
        with pytest.raises(LabError, match="not succeeded: it will not"):
            made.succeed(["sh", "-c", "echo it will not; exit 3"], 5)
        with pytest.raises(LabError, match="not succeeded"):
            made.succeed(["sleep", "60"], 0.2)
        assert made.pid == first
        made.succeed(["sh", "-c", f"kill {first}; exec sleep 60"], 5)
        assert made.pid not in (None, first)
        assert Service("the sleeper", tmp_path, "sleeper", netns.path_of(name)).pid == made.pid, "others know it too"
        assert len(netns.pids_inside([name])) == 1
    finally:
        made.end(0)
        netns.delete(name)


def test_a_name_is_taken_once(name: str) -> None:
    first = Ledger(name)
    first.claim()
    with pytest.raises(LabError, match="already"):
        Ledger(name).claim()
    # Its maker died before it wrote anything, so there is nothing but the directory.
    take_down(first)
    assert not first.path.exists()
    with pytest.raises(LabError, match="no lab"):
        take_down(first)


def test_a_lab_that_is_being_changed_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_LOCK_TIMEOUT_S", 0.1)
    mine = Ledger(name)
    mine.claim()
    with mine.locked(), pytest.raises(LabError, match="another process"):
        take_down(mine)


def test_children_are_born_inside_and_found_there(name: str) -> None:
    netns.create(name)
    try:
        with netns.popen(netns.path_of(name), ["sleep", "60"]) as child:
            assert netns.pids_inside([name]) == [child.pid]
            child.kill()
        assert netns.run(netns.path_of(name), ["cat", "/sys/class/net/lo/flags"]).returncode == 0
        assert netns.run(netns.path_of(name), ["ping", "-c1", "-W1", "::1"]).returncode == 0
        with pytest.raises(LabError, match="no-such-command"):
            netns.run(netns.path_of(name), ["no-such-command"])
        with pytest.raises(LabError, match="exists already"):
            netns.create(name)
    finally:
        netns.delete(name)
    netns.delete(name)


# The matrix, over the kernel's own routing


@pytest.fixture
def pair(name: str) -> Iterator[tuple[matrix.Place, matrix.Place]]:
    """Two namespaces on one wire."""
    names = [f"{name}-{end}" for end in "ab"]
    for each in names:
        netns.create(each, plan.POD_SYSCTLS)
    netns.ip_batch(netns.path_of(names[0]), [f"link add eth0 type veth peer name eth0 netns {names[1]}"])
    places = []
    for host, each in enumerate(names, 1):
        interfaces = plan._on_underlay(host)
        netns.ip_batch(netns.path_of(each), plan._eth0(interfaces))
        places.append(matrix.Place(each, netns.path_of(each), tuple(interface.ip for interface in interfaces)))
    yield places[0], places[1]
    for each in names:
        netns.delete(each)


def test_the_matrix_sees_that_all_is_well(pair: tuple[matrix.Place, matrix.Place]) -> None:
    measured = matrix.measure(pair)
    assert len(measured.probes) == 2 * 2 * 2
    assert measured.bad == []
    assert measured.seen_as(pair[0].name) == [str(address) for address in pair[0].addresses]


def test_the_matrix_sees_a_translated_source(pair: tuple[matrix.Place, matrix.Place]) -> None:
    left, right = pair
    rules = "add table ip t; add chain ip t c {type nat hook postrouting priority 100;}; add rule ip t c snat to 192.168.64.77"
    done = netns.run(left.netns_path, ["nft", rules])
    assert done.returncode == 0, done.stderr
    netns.ip_batch(left.netns_path, ["addr add 192.168.64.77/24 dev eth0"])
    bad = matrix.measure([left, right]).bad
    assert {(probe.source, probe.protocol, probe.seen) for probe in bad} == {
        (left.name, protocol, "192.168.64.77") for protocol in ("tcp", "udp")
    }


def test_the_matrix_sees_who_is_cut_off(pair: tuple[matrix.Place, matrix.Place]) -> None:
    left, right = pair
    rules = (
        "add table inet t; add chain inet t c {type filter hook input priority 0;};"
        "add rule inet t c meta nfproto ipv4 udp dport 7007 drop;"
        "add rule inet t c meta nfproto ipv6 tcp dport 7007 reject with tcp reset"
    )
    done = netns.run(right.netns_path, ["nft", rules])
    assert done.returncode == 0, done.stderr
    bad = {(probe.source, probe.protocol, probe.expected.version, probe.error) for probe in matrix.measure(pair).bad}
    assert bad == {(left.name, "udp", 4, "no answer"), (left.name, "tcp", 6, "Connection refused")}
