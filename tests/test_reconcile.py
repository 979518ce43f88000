"""What is gone is released without anybody saying so one by one, and what comes too late is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from shim.answers import AttachmentKey, Event
from shim.client import Client, ClientError
from shim.lab import Lab, netns, plan
from shim.lab.node import LabNode
from tests.accounts import eventually, mended
from tests.crowd import holdings, interfaces, namespaces, path

pytestmark = pytest.mark.netns


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with mended(make_lab(nodes=2, pods=0, router_args=("--address-rest-s", "0"))) as made:
        yield made


@pytest.fixture
def node(lab: Lab) -> LabNode:
    return lab.nodes[0]


@pytest.fixture
def client(node: LabNode) -> Iterator[Client]:
    """Whatever a test did, the router holds afterwards what it held before."""
    with node.client() as made:
        before = holdings(node, made)
        yield made
    with node.client() as made:  # the router may be another by now
        eventually(lambda: holdings(node, made).journal == before.journal, what="an empty journal")
        assert holdings(node, made).free == before.free


def prefix(lab: Lab) -> str:
    return lab.plan.pod_netns("rec")


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def attached(client: Client) -> set[str]:
    return {each.key.sandbox_id for each in client.attachments()}


def released(client: Client, sandbox_id: str) -> list[Event]:
    events = client.watch_events(0, follow=False)
    return [each for each in events if each.kind == "released" and each.key and each.key.sandbox_id == sandbox_id]


def leave_tombstone(node: LabNode, sandbox_id: str, detached_ns: int, name: str = "one") -> None:
    directory = node.socket.parent / "tombstones"
    directory.mkdir(mode=0o700, exist_ok=True)
    draft = directory / f"{name}.draft"
    draft.write_text(json.dumps({"sandbox_id": sandbox_id, "if_name": "eth0", "detached_ns": detached_ns}))
    draft.rename(directory / f"{name}.json")


def tombstones(node: LabNode) -> list[str]:
    return sorted(entry.name for entry in (node.socket.parent / "tombstones").glob("*.json"))


# A late attachment loses


def test_an_attachment_begun_before_its_detachment_is_refused(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 1) as (name,):
        began_ns = now_ns()
        assert not client.detach(name, "eth0")
        with pytest.raises(ClientError, match="was detached") as caught:
            client.attach(name, "eth0", path(name), began_ns=began_ns)
        assert caught.value.code == "ABORTED"
        assert interfaces(name) == []
        client.attach(name, "eth1", path(name), began_ns=began_ns)  # another interface is another matter
        client.attach(name, "eth0", path(name), began_ns=now_ns())  # podman starts a container again
        assert client.detach(name, "eth0")
        assert client.detach(name, "eth1")


def test_a_detachment_is_remembered_over_a_kill(lab: Lab, node: LabNode, client: Client) -> None:
    with namespaces(prefix(lab), 1) as (name,):
        began_ns = now_ns()
        client.detach(name, "eth0")
        node.kill9()
        node.start()
        with node.client() as again, pytest.raises(ClientError) as caught:
            again.attach(name, "eth0", path(name), began_ns=began_ns)
        assert caught.value.code == "ABORTED"


def test_a_time_to_come_is_taken_for_now(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 1) as (name,):
        client.attach(name, "eth0", path(name), began_ns=2**63 - 1)
        assert client.detach(name, "eth0")


# Detachments that found no router


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "at its start"])
def test_a_tombstone_is_carried_out(lab: Lab, node: LabNode, client: Client, running: bool) -> None:
    with namespaces(prefix(lab), 1) as (name,):
        began_ns = now_ns()
        client.attach(name, "eth0", path(name))
        if not running:
            node.kill9()
        leave_tombstone(node, name, now_ns())
        if not running:
            node.start()
            assert tombstones(node) == [], "before it answers"
        with node.client() as again:
            eventually(lambda: not tombstones(node), what="the tombstone's end")
            assert attached(again) == set()
            assert interfaces(name) == []
            assert "no router answered" in released(again, name)[-1].message
            with pytest.raises(ClientError) as caught:
                again.attach(name, "eth0", path(name), began_ns=began_ns)
            assert caught.value.code == "ABORTED"


def test_a_tombstone_spares_what_came_after_it(lab: Lab, node: LabNode, client: Client) -> None:
    with namespaces(prefix(lab), 1) as (name,):
        client.attach(name, "eth0", path(name))
        detached_ns = now_ns()
        client.attach(name, "eth0", path(name), began_ns=now_ns())  # again, and so it is wanted
        leave_tombstone(node, name, detached_ns)
        eventually(lambda: not tombstones(node), what="the tombstone's end")
        assert attached(client) == {name}
        client.detach(name, "eth0")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"sandbox_id": 1, "if_name": "eth0", "detached_ns": 1}', b"\xff" * 9000]
)
def test_what_is_no_tombstone_is_removed(node: LabNode, client: Client, content: bytes) -> None:
    directory = node.socket.parent / "tombstones"
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / "bad.json").write_bytes(content)
    eventually(lambda: not tombstones(node), what="its end")
    assert attached(client) == set()


def test_tombstones_others_may_write_are_left_alone(lab: Lab, node: LabNode, client: Client) -> None:
    directory = node.socket.parent / "tombstones"
    with namespaces(prefix(lab), 1) as (name,):
        client.attach(name, "eth0", path(name))
        directory.mkdir(exist_ok=True)
        directory.chmod(0o777)
        leave_tombstone(node, name, now_ns())
        eventually(lambda: "may be written by others" in node.log_path.read_text(), what="a warning")
        assert attached(client) == {name}
        directory.chmod(0o700)
        eventually(lambda: attached(client) == set(), what="its release")


# Namespaces that vanish


def test_a_vanished_namespace_is_noticed(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (name, other):
        client.attach(name, "eth0", path(name))
        client.attach(other, "eth0", path(other))
        netns.delete(name)
        eventually(lambda: attached(client) == {other}, what="the release")
        assert f"{path(name)} is gone" in released(client, name)[-1].message
        assert not client.detach(name, "eth0")
        client.detach(other, "eth0")


def test_a_namespace_somebody_lives_in_is_kept(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (name, other):
        client.attach(name, "eth0", path(name))
        client.attach(other, "eth0", path(other))
        living = netns.popen(netns.path_of(name), ["sleep", "60"])
        try:
            netns.delete(name)
            netns.delete(other)  # seen in the same round as the first, or in a later one
            eventually(lambda: attached(client) == {name}, what="the other's release")
        finally:
            living.kill()
            living.wait()
        eventually(lambda: attached(client) == set(), what="the release of both")


def test_a_namespace_that_vanished_while_no_router_ran(lab: Lab, node: LabNode, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (gone, swapped):
        for name in (gone, swapped):
            client.attach(name, "eth0", path(name))
        node.kill9()
        for name in (gone, swapped):
            netns.delete(name)
        netns.create(swapped, plan.POD_SYSCTLS)  # a path that leads to somebody else's namespace now
        netns.run(netns.path_of(swapped), ["ip", "tuntap", "add", "eth0", "mode", "tun"])
        node.start()
        with node.client() as again:
            eventually(lambda: attached(again) == set(), what="the release of both")
            assert interfaces(swapped) == ["eth0"], "not ours, and left alone"


# What a runtime does not know any more


def test_sync_keeps_to_its_owner_and_its_time(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 4) as names:
        mine, live, young, theirs = names
        for name in (mine, live):
            client.attach(name, "eth0", path(name), owner="cni:one")
        client.attach(theirs, "eth0", path(theirs), owner="cni:two")
        as_of_ns = now_ns()
        client.attach(young, "eth0", path(young), owner="cni:one")
        found = client.sync([AttachmentKey(live, "eth0")], owner="cni:one", as_of_ns=as_of_ns)
        assert [key.sandbox_id for key in found] == [mine]
        assert attached(client) == {live, young, theirs}
        assert "cni:one does not know it" in released(client, mine)[-1].message
        assert {each.owner for each in client.attachments()} == {"cni:one", "cni:two"}
        assert len(client.sync([])) == 3


# Check


def test_check_names_all_that_is_missing(lab: Lab, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (name, other):
        found = client.attach(name, "eth0", path(name))
        wanted = {"addresses": found.addresses, "routes": ("0.0.0.0/0", "::/0"), "netns_path": path(name)}
        assert client.check(name, "eth0", **wanted) == found

        def missing(**changed: object) -> str:
            with pytest.raises(ClientError) as caught:
                client.check(name, "eth0", **(wanted | changed))  # type: ignore[arg-type]
            assert caught.value.code == "FAILED_PRECONDITION"
            return caught.value.message

        assert "reservation of 10.42.1.77" in missing(addresses=("10.42.1.77/32",))
        assert f"it in {path(other)}" in missing(netns_path=path(other))
        assert "route to 192.0.2.0/24 through eth0" in missing(routes=("192.0.2.0/24",))
        inside = netns.path_of(name)
        address = found.addresses[0].partition("/")[0]
        assert netns.run(inside, ["ip", "addr", "del", f"{address}/32", "dev", "eth0"]).returncode == 0
        assert f"address {address}" in missing()
        assert netns.run(inside, ["ip", "link", "set", "eth0", "down"]).returncode == 0
        said = missing()
        assert "is down" in said
        assert "route to 0.0.0.0/0" in said
        assert netns.run(inside, ["ip", "link", "del", "eth0"]).returncode == 0
        assert "interface eth0" in missing()
        client.detach(name, "eth0")
        with pytest.raises(ClientError) as caught:
            client.check(name, "eth0")
        assert caught.value.code == "NOT_FOUND"


# Peers


def test_a_peer_without_a_way_is_named(lab: Lab, node: LabNode, client: Client) -> None:
    assert client.status().peers_unreachable == 0
    assert node.run(["ip", "link", "set", "eth0", "down"]).returncode == 0
    try:
        eventually(lambda: client.status().peers_unreachable == 1, what="the loss")
        (why,) = client.status().unreachable
        assert why.startswith(f"n2 at {lab.nodes[1].endpoint}")
        assert "eth0 is down" in why
    finally:
        node.run(["ip", "link", "set", "eth0", "up"])
    eventually(lambda: client.status().peers_unreachable == 0, what="the way back")
