"""Pods come and go on a real router: in crowds, in parallel, with everything going wrong; nothing is leaked."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Network, ip_interface

import pytest

from benchmarks.contenders.interface import Way
from benchmarks.cpu import read_cpu_time
from benchmarks.measures.flow import Flow
from benchmarks.namespace import Namespace
from shim.answers import AttachmentKey
from shim.client import Client, ClientError
from shim.lab import Lab, netns
from shim.lab.pod import LabPod
from tests.accounts import assert_balanced, eventually
from tests.crowd import Holdings, holdings, interfaces, namespaces, path, resident_bytes
from tests.pump import Pump

pytestmark = pytest.mark.netns

_PARALLEL = 100
_CROWD, _MORE = 200, 20
_MB = 1 << 20


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """Two nodes on which a freed address does not rest, so that what is free can be compared."""
    made = make_lab(nodes=2, pods=1, router_args=("--address-rest-s", "0"))
    yield made
    assert_balanced(made)


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with lab.nodes[0].client() as made:
        before = holdings(lab.nodes[0], made)
        yield made
        assert settled(lab, made, before) == before


def settled(lab: Lab, client: Client, wanted: Holdings) -> Holdings:
    """Return what the router holds once it holds what is wanted, or after a while: threads close their fds late."""
    deadline_s = time.monotonic() + 3
    while (found := holdings(lab.nodes[0], client)) != wanted and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return found


def prefix(lab: Lab) -> str:
    return lab.plan.pod_netns("crowd")


def refused(call: Callable[[], object]) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


# One at a time


def test_attach_and_detach_again_and_again_is_once(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (name, other):
        first = client.attach(name, "eth0", path(name), labels={"name": "web"})
        assert client.attach(name, "eth0", path(name)) == first
        assert interfaces(name) == ["eth0"]
        error = refused(lambda: client.attach(name, "eth0", path(other)))
        assert error.code == "ALREADY_EXISTS"
        assert path(name) in error.message
        held = first.addresses[0].partition("/")[0]
        assert client.attach(name, "eth0", path(name), addresses=[held]) == first
        assert (
            refused(lambda: client.attach(name, "eth0", path(name), addresses=["10.42.1.99"])).code == "ALREADY_EXISTS"
        )
        second = client.attach(name, "net1", path(name))
        assert set(second.addresses).isdisjoint(first.addresses)
        assert client.detach(name, "net1")
        assert client.detach(name, "eth0")
        assert not client.detach(name, "eth0")
        assert interfaces(name) == interfaces(other) == []


def test_requested_addresses(lab: Lab, client: Client) -> None:
    wanted = ["10.42.1.123", "fd42:0:0:1::77"]
    with namespaces(prefix(lab), 2) as (name, other):
        found = client.attach(name, "eth0", path(name), addresses=wanted)
        assert {str(ip_interface(address).ip) for address in found.addresses} == set(wanted)
        done = lab.pods[1].run(["ping", "-n", "-c1", "-W3", wanted[0]])
        assert done.returncode == 0
        for address, code, said in [
            (wanted[0], "ALREADY_EXISTS", name),
            (wanted[1], "ALREADY_EXISTS", name),
            ("10.42.1.1", "INVALID_ARGUMENT", "the node's own"),
            ("10.42.1.0", "INVALID_ARGUMENT", "reserved"),
            ("10.42.1.255", "INVALID_ARGUMENT", "reserved"),
            ("10.42.2.9", "INVALID_ARGUMENT", "10.42.1.0/24"),
            ("192.0.2.1", "INVALID_ARGUMENT", "10.42.1.0/24"),
        ]:
            error = refused(lambda address=address: client.attach(other, "eth0", path(other), addresses=[address]))  # type: ignore[misc]
            assert error.code == code, address
            assert address in error.message
            assert said in error.message
            assert interfaces(other) == []
        client.detach(name, "eth0")
        client.attach(other, "eth0", path(other), addresses=wanted)
        client.detach(other, "eth0")


def test_sync_releases_what_is_not_live(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 6) as names:
        for name in names:
            client.attach(name, "eth0", path(name))
        live = [each.key for each in client.attachments() if each.key.sandbox_id not in names[2:]]
        assert {key.sandbox_id for key in client.sync([*live, AttachmentKey("never-seen", "eth0")])} == set(names[2:])
        assert client.sync(live) == ()
        assert [interfaces(name) for name in names] == [["eth0"]] * 2 + [[]] * 4
        client.sync([key for key in live if key.sandbox_id not in names])


def test_a_full_pool_says_so(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1, pods=0, router_args=("--address-rest-s", "0"))
    node = lab.nodes[0]
    small = IPv4Network("10.42.1.0/29")
    lab.write_subnets({node.name: (node.endpoint, [str(small), str(node.plan.subnets[1])])})
    with node.client() as client, namespaces(prefix(lab), 6) as names:
        eventually(lambda: str(small) in client.status().subnets)
        for name in names[:5]:  # of 8: network, broadcast and the node's are not to be had
            client.attach(name, "eth0", path(name))
        before = holdings(node, client)
        error = refused(lambda: client.attach(names[5], "eth0", path(names[5])))
        assert error.code == "RESOURCE_EXHAUSTED"
        assert str(small) in error.message
        assert interfaces(names[5]) == []
        assert settled(lab, client, before) == before
        client.detach(names[2], "eth0")
        client.attach(names[5], "eth0", path(names[5]))
        client.sync([])


# A hundred at once, most of them ill-fated


def good(client: Client, name: str) -> None:
    client.attach(name, "eth0", path(name))
    assert client.detach(name, "eth0")


def no_namespace(client: Client, name: str) -> None:
    error = refused(lambda: client.attach(name, "eth0", f"{path(name)}-nowhere"))
    assert "does it exist" in error.message


def no_network_namespace(client: Client, name: str) -> None:
    error = refused(lambda: client.attach(name, "eth0", "/proc/self/ns/uts"))
    assert "not a network namespace" in error.message


def taken_name(client: Client, name: str) -> None:
    netns.ip_batch(netns.path_of(name), ["link add eth0 type bridge"])
    error = refused(lambda: client.attach(name, "eth0", path(name)))
    assert (error.code, "eth0" in error.message) == ("ALREADY_EXISTS", True)
    assert interfaces(name) == ["eth0"]


def taken_address(client: Client, name: str) -> None:
    error = refused(lambda: client.attach(name, "eth0", path(name), addresses=["10.42.1.200"]))
    assert (error.code, "10.42.1.200" in error.message) == ("ALREADY_EXISTS", True)


def deleted_before(client: Client, name: str) -> None:
    netns.delete(name)
    assert "does it exist" in refused(lambda: client.attach(name, "eth0", path(name))).message


def deleted_meanwhile(client: Client, name: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(netns.delete, name)
        try:
            client.attach(name, "eth0", path(name))
        except ClientError as error:
            assert error.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), error.message  # noqa: PT017 - or none
        gone.result()
    client.detach(name, "eth0")


def deleted_after(client: Client, name: str) -> None:
    client.attach(name, "eth0", path(name))
    netns.delete(name)
    client.detach(name, "eth0")  # or the router has found it gone by itself by now


def device_removed(client: Client, name: str) -> None:
    client.attach(name, "eth0", path(name))
    netns.ip_batch(netns.path_of(name), ["link delete eth0"])
    assert client.detach(name, "eth0")
    assert interfaces(name) == []


_FATES = (good, no_namespace, no_network_namespace, taken_name, taken_address, deleted_before, deleted_meanwhile,
          deleted_after, device_removed, good)  # fmt: skip


def test_a_hundred_at_once_with_failures_leak_nothing(lab: Lab, client: Client) -> None:
    node = lab.nodes[0]
    with namespaces(prefix(lab), _PARALLEL + 1) as names:
        client.attach(names[-1], "eth0", path(names[-1]), addresses=["10.42.1.200"])
        before = holdings(node, client)
        fates = [_FATES[index % len(_FATES)] for index in range(_PARALLEL)]
        random.Random(4).shuffle(fates)
        resident = 0
        for turn in range(3):
            with ThreadPoolExecutor(_PARALLEL) as pool:
                list(pool.map(lambda fate, name: fate(client, name), fates, names))
            after = settled(lab, client, before)
            assert after == before
            if turn == 0:  # what the first turn brought are pools and caches that stay
                resident = resident_bytes(node)
            for name, fate in zip(names, fates, strict=False):
                if netns.path_of(name).exists():
                    assert interfaces(name) == (["eth0"] if fate is taken_name else []), fate
                    netns.delete(name)
                netns.create(name)
        grown = resident_bytes(node) - resident
        client.detach(names[-1], "eth0")
        print(f"\nmemory grew {grown / _MB:.1f} MB over {2 * _PARALLEL} more")
        assert grown < 10 * _MB


# A crowd


def way(source: LabPod, target: LabPod) -> Way:
    ends = [Namespace.existing(str(pod.netns_path)) for pod in (source, target)]
    return Way(ends[0], ends[1], str(target.addresses[0]))


def cpu_s(pid: int | None) -> float:
    assert pid is not None
    return read_cpu_time([pid]).processes_s


def test_two_hundred_pods_and_twenty_more_under_traffic(lab: Lab, client: Client) -> None:
    node = lab.nodes[0]
    with namespaces(prefix(lab), _CROWD + _MORE) as names:
        taken_s = []
        for name in names[:_CROWD]:
            start_s = time.perf_counter()
            client.attach(name, "eth0", path(name))
            taken_s.append(time.perf_counter() - start_s)
        resident = resident_bytes(node)
        median_ms, worst_ms = statistics.median(taken_s) * 1e3, max(taken_s) * 1e3
        print(
            f"\n{_CROWD} Pods: attach p50 {median_ms:.1f} ms, max {worst_ms:.0f} ms; resident {resident / _MB:.0f} MB"
        )
        assert resident <= 150e6

        before_s, start_s = cpu_s(node.pid), time.monotonic()
        time.sleep(2)  # idleness takes time
        busy = (cpu_s(node.pid) - before_s) / (time.monotonic() - start_s)
        print(f"idle: {100 * busy:.1f} % of a core")
        assert busy < 0.1

        source, target = lab.pods[0], lab.pods[1]
        with ExitStack() as stack:
            pump = stack.enter_context(Pump(source, target, target.addresses[1], pause_s=0.02))
            eventually(lambda: pump.received_bytes > 0, what="TCP")
            flow = stack.enter_context(Flow(way(source, target), 200, 1000))
            start_s = time.monotonic()
            for name in names[_CROWD:]:
                client.attach(name, "eth0", path(name))
            taken = time.monotonic() - start_s
            moved = pump.received_bytes
            eventually(lambda: pump.received_bytes > moved, what="TCP going on")
            flow.stop()
            print(f"{_MORE} more under load in {taken:.2f} s; {flow.sent} datagrams sent, {flow.arrived} arrived")
            assert flow.sent > 0
            assert flow.arrived == flow.sent
        start_s = time.monotonic()
        client.sync([each.key for each in client.attachments() if each.key.sandbox_id not in names])
        print(f"{len(names)} released in {time.monotonic() - start_s:.2f} s")
        assert [name for name in names if interfaces(name)] == []
