"""Routers' sources on a real etcd: who gets which subnets, who is refused, and what a change in the store does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from router.errors import Kind, Refusal
from router.model import Endpoint
from router.subnets.etcd import member
from tests.etcd_rig import Alone, Router, Server, Told, endpoint_of, server, settings, source, until

TTL_S = 3
FOUR = (ip_network("10.32.0.0/22"),)
"""Four subnets."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@dataclass
class Net:
    """A network of its own on the shared etcd."""

    etcd: Server
    prefix: str
    folder: Path
    stack: ExitStack

    def router(
        self, name: str, number: int = 0, *, ttl_s: float = TTL_S, reserve: bool = False, **others: Any
    ) -> Router:
        config = settings(self.etcd.url, ttl_s=ttl_s, prefix=self.prefix, reserve=reserve)
        made = Router(self.folder, config, name, number, **others)
        self.stack.callback(made.stop)
        return made

    def refused(self, name: str, number: int = 0, **others: Any) -> Refusal:
        """Return why a router must not start."""
        config = settings(self.etcd.url, ttl_s=TTL_S, prefix=self.prefix)
        with pytest.raises(Refusal) as refused:
            source(self.folder, config, name, number, **others).read()
        assert "\n" not in refused.value.message
        return refused.value

    def alone(self, name: str, number: int = 0, **others: Any) -> Alone:
        made = Alone(self.folder, self.etcd.url, name, number, prefix=self.prefix, ttl_s=TTL_S, **others)
        self.stack.callback(made.kill)
        return made

    def put(self, key: str, value: object) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.etcd.ctl("put", "--", f"{self.prefix}/{key}", text)

    def delete(self, key: str) -> None:
        assert self.etcd.ctl("del", f"{self.prefix}/{key}").strip() == "1"

    def get(self, key: str) -> Any:
        text = self.etcd.ctl("get", "--print-value-only", f"{self.prefix}/{key}")
        return json.loads(text) if text.strip() else None

    def keys(self, under: str = "") -> list[str]:
        found = self.etcd.ctl("get", "--prefix", "--keys-only", f"{self.prefix}/{under}").split()
        return [key.removeprefix(f"{self.prefix}/") for key in found]

    def expire(self, *names: str) -> None:
        """End the leases of nodes that were stopped, as time would."""
        for name in names:
            found = json.loads(self.etcd.ctl("get", "-w", "json", f"{self.prefix}/members/{name}"))
            self.etcd.ctl("lease", "revoke", f"{found['kvs'][0]['lease']:x}")


@pytest.fixture
def net(etcd: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Net]:
    with ExitStack() as stack:
        yield Net(etcd, f"/{request.node.name.partition('[')[0]}-{time.monotonic_ns()}", tmp_path, stack)


def subnets(router: Router) -> list[str]:
    return list(map(str, router.lease.subnets))


# Joining.


def test_a_node_takes_a_subnet_of_each_version_and_is_in_its_own_table(net: Net) -> None:
    one = net.router("a")
    assert one.read is not None
    (node,) = one.read
    assert (node.name, node.endpoint, node.epoch, node.offload) == ("a", endpoint_of(0), 1, True)
    assert [subnet.prefixlen for subnet in node.subnets] == [24, 64]
    lease = one.lease
    assert (lease.subnets, lease.epoch, lease.held, lease.why) == (node.subnets, 1, True, "")
    assert 0 < lease.expires_s - time.monotonic() <= TTL_S
    state = one.source.state()
    assert (state.kind, state.where, state.connected, state.error) == ("etcd", net.etcd.url, True, "")
    assert 0 <= time.monotonic() - state.confirmed_s < TTL_S
    assert net.get("nodes/a")["epoch"] == 1
    four = str(node.subnets[0]).replace("/", "-")
    assert set(net.keys()) >= {"config", f"leases/{four}", f"owners/{four}", "members/a", "endpoints/192.0.2.1:6081"}


def test_others_are_seen_as_they_come_and_go(net: Net) -> None:
    one, two = net.router("a", 0), net.router("b", 1)
    two.until_table("a", "b")
    one.until_table("a", "b")
    assert not set(one.lease.subnets) & set(two.lease.subnets)
    kept = {node.name: node for node in one.told.tables[-1]}["a"]
    two.stop()
    net.expire("b")
    one.until_table("a")
    assert one.told.tables[-1][0] is kept, "what has not changed stays the same object"
    assert one.told.refused == []


def test_a_restart_within_the_ttl_keeps_lease_and_epoch(net: Net) -> None:
    other = net.router("b", 1)
    first = net.router("a", ttl_s=2)
    other.until_table("a", "b")
    held = first.lease
    tables = len(other.told.tables)
    first.stop()
    second = net.router("a", ttl_s=2)
    assert (second.lease.subnets, second.lease.epoch, second.lease.held) == (held.subnets, 1, True)
    time.sleep(2.5)  # what is waited for is that nothing happens
    assert second.lease.held
    assert len(other.told.tables) == tables, "nobody noticed"


def test_a_killed_process_is_succeeded_at_once(net: Net) -> None:
    first = net.alone("a")
    first.kill()
    second = net.alone("a")
    assert (second.first["subnets"], second.first["epoch"], second.first["held"]) == (first.first["subnets"], 1, True)


def test_a_restart_after_the_ttl_gets_the_same_subnets_with_a_new_epoch(net: Net) -> None:
    first = net.router("a")
    first.stop()
    net.expire("a")
    second = net.router("a")
    assert subnets(second) == subnets(first)
    assert second.lease.epoch == 2


def test_an_endpoint_changes_without_a_new_epoch(net: Net) -> None:
    other = net.router("b", 1)
    net.router("a", 0).stop()
    moved = net.router("a", 7)
    assert moved.lease.epoch == 1
    until(lambda: other.told.tables and other.told.tables[-1][0].endpoint == endpoint_of(7))
    assert net.keys("endpoints/") == sorted(["endpoints/192.0.2.2:6081", "endpoints/192.0.2.8:6081"])


def test_fifty_at_once_get_fifty_subnets(net: Net) -> None:
    config = settings(net.etcd.url, ttl_s=20, prefix=net.prefix)
    sources = [source(net.folder, config, f"n{number}", number) for number in range(50)]
    read = [threading.Thread(target=made.read) for made in sources]
    for thread in read:
        thread.start()
    for thread in read:
        thread.join()
    leases = [made.state().lease for made in sources]
    for made in sources:
        made.stop()
    assert all(lease is not None and lease.held for lease in leases)
    assert len({subnet for lease in leases if lease for subnet in lease.subnets}) == 100


def test_a_range_that_is_full_says_so_and_takes_in_who_waited(net: Net) -> None:
    routers = [net.router(f"n{number}", number, networks=FOUR) for number in range(4)]
    assert len({subnet for router in routers for subnet in subnets(router)}) == 4
    late = net.router("late", 9, networks=FOUR)
    assert late.read is not None
    assert [node.name for node in late.read] == ["n0", "n1", "n2", "n3"]
    assert not late.lease.held
    assert (
        "no subnet is left for node late: of the 4 in 10.32.0.0/22 in subnets of /24, VNI 1 4 are held"
        in late.lease.why
    )
    freed = subnets(routers[2])
    routers[2].stop()
    net.expire("n2")
    late.until_held()
    assert subnets(late) == freed
    late.until_table("late", "n0", "n1", "n3")


def test_what_is_reserved_stays_for_who_reserved_it(net: Net) -> None:
    for number in range(3):
        net.router(f"n{number}", number, networks=FOUR, reserve=number == 1).stop()
    mine = net.get("nodes/n1")["subnets"]
    net.expire("n0", "n1", "n2")
    others = [net.router(f"m{number}", 10 + number, networks=FOUR) for number in range(3)]
    assert mine not in [subnets(other) for other in others]
    late = net.router("late", 20, networks=FOUR)
    assert "3 are held and 1 reserved by nodes that are away" in late.lease.why
    back = net.router("n1", 1, networks=FOUR, reserve=True)
    assert (subnets(back), back.lease.epoch, back.lease.reserved) == (mine, 2, True)


def test_what_was_given_up_longest_ago_is_taken_first(net: Net) -> None:
    held = []
    for number in range(4):
        router = net.router(f"n{number}", number, networks=FOUR)
        held.append(subnets(router))
        router.stop()
    net.expire("n0", "n1", "n2", "n3")
    assert [subnets(net.router(f"m{number}", 10 + number, networks=FOUR)) for number in range(2)] == held[:2]
    moved = net.router("n0", 0, networks=FOUR)
    assert subnets(moved) == held[2], "its own is taken, and n2's was given up longest ago"


# Who must not start.


def test_a_clone_on_the_same_machine_is_refused_at_once(net: Net) -> None:
    first = net.alone("a", 0)
    refusal = net.refused("a", 1)
    assert refusal.kind is Kind.EXISTS
    for words in (
        "two routers are node a: ",
        " at 192.0.2.1:6081, which holds",
        " at 192.0.2.2:6081, which is refused",
        "(pid ",
    ):
        assert words in refusal.message
    first.kill()
    assert net.router("a", 1).lease.held


def test_a_clone_of_the_machine_is_refused_when_its_twin_renews(net: Net) -> None:
    net.alone("a", 0, boot=1)
    clone = net.alone("a", 0, boot=2)
    assert "two routers are node a" in clone.first["refused"]
    assert "clone" in clone.first["refused"]


def test_a_machine_that_booted_waits_until_its_old_lease_has_ended(net: Net) -> None:
    first = net.alone("a", boot=1)
    first.kill()
    second = net.alone("a", boot=2)
    assert second.first["held"]
    assert second.first["subnets"] == first.first["subnets"]
    assert second.first["epoch"] == 2


def test_another_container_with_the_same_state_goes_on_at_once(net: Net) -> None:
    contained = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    first = net.alone("a", before=contained, place="8:15")
    first.kill()
    second = net.alone("a", before=contained, place="8:15")
    assert (second.first["held"], second.first["epoch"]) == (True, 1)


def test_a_name_twice_is_refused_though_the_machine_is_another(net: Net) -> None:
    net.alone("a", 0, boot=1)
    refusal = net.refused("a", 1, identity="another")
    assert "two routers are node a" in refusal.message
    assert "another name" in refusal.message


def test_a_machine_installed_anew_takes_its_name_over(net: Net) -> None:
    first = net.alone("a", identity="old")
    first.kill()
    second = net.router("a", identity="new")
    assert subnets(second) == first.first["subnets"]
    assert second.lease.epoch == 2


def test_an_endpoint_twice_is_refused(net: Net) -> None:
    net.router("a", 3)
    refusal = net.refused("b", 3)
    assert refusal.kind is Kind.EXISTS
    assert "two nodes are at 192.0.2.4:6081: a on " in refusal.message
    assert ", which holds it, and b on " in refusal.message
    assert net.keys("members/") == ["members/a"]


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"vni": 2}, "10.32.0.0/12, fd00:32::/48 in subnets of /24 and /64, VNI 2"),
        ({"networks": (ip_network("10.32.0.0/12"),)}, "is set to 10.32.0.0/12 in subnets of /24, VNI 1"),
    ],
)
def test_another_network_is_refused(net: Net, others: dict[str, Any], words: str) -> None:
    net.router("a")
    refusal = net.refused("b", 1, **others)
    assert refusal.kind is Kind.STATE
    assert words in refusal.message
    assert "(written by " in refusal.message
    assert f"delete {net.prefix}/config" in refusal.message


# What others write.


def test_hostile_rows_are_left_out_and_named(net: Net) -> None:
    one = net.router("a")
    rows = {"x": "nonsense", "y": {"endpoint": "192.0.2.9:1"}, "a b": "{}", "../../config": "[]", "z": "[" * 50000}
    for name, value in rows.items():
        net.put(f"members/{name}", value)
    error = one.until_error("etcd key ", "/members/")
    assert "it is not JSON" in error or "must be" in error
    until(lambda: one.told.refused)
    assert one.told.tables == []
    two = net.router("b", 1)
    one.until_table("a", "b")
    two.until_table("a", "b")
    for name in rows:
        net.delete(f"members/{name}")
    until(lambda: one.source.state().error == "")


def test_a_row_that_becomes_nonsense_stays_as_it_was_until_it_is_deleted(net: Net) -> None:
    one, two = net.router("a", 0), net.router("b", 1)
    one.until_table("a", "b")
    two.stop()
    net.put("members/b", "nonsense")
    one.until_error("/members/b: it is not JSON")
    assert one.told.names == ["a", "b"]
    net.delete("members/b")
    one.until_table("a")


def test_a_table_that_is_refused_is_told_and_the_source_goes_on(net: Net) -> None:
    one = net.router("a")

    def refuse(nodes: object) -> str:
        return "overlap" if len(nodes) == 2 else ""  # type: ignore[arg-type]

    one.told._refuse = refuse
    two = net.router("b", 1)
    until(lambda: one.told.refused == ["overlap"])
    until(lambda: one.source.state().error == "overlap")
    net.router("c", 2)
    one.until_table("a", "b", "c")
    until(lambda: one.source.state().error == "")
    assert two.lease.held


@pytest.mark.parametrize("key", ["config", "nodes/a"])
def test_nonsense_where_a_node_looks_is_refused(net: Net, key: str) -> None:
    net.put(key, "nonsense")
    assert f"{net.prefix}/{key}: it is not JSON" in net.refused("a").message


def test_nonsense_among_owners_takes_a_subnet_out_of_use(net: Net) -> None:
    for number in range(4):
        net.put(
            f"owners/10.32.{number}.0-24", "nonsense" if number != 2 else {"node": "x", "epoch": 1, "reserved": False}
        )
    assert subnets(net.router("a", networks=FOUR)) == ["10.32.2.0/24"]
    late = net.router("b", 1, networks=FOUR)
    assert "1 are held and 3 reserved" in late.lease.why


def test_a_name_without_a_lease_is_nobodys_and_refused(net: Net) -> None:
    first = net.router("a")
    first.stop()
    net.expire("a")
    row = {"endpoint": "192.0.2.1:6081", "subnets": ["10.32.0.0/24"], "offload": True, "epoch": 1}
    held = {**dict.fromkeys(("identity", "boot_id", "hostname", "since", "place", "run"), "x")}
    net.put("members/a", {**row, "holder": {**held, "pid_namespace": 1, "pid": 1, "start_ticks": 1}})
    assert "/members/a has no lease, so no router wrote it: delete it" in net.refused("a").message


Tampering = Callable[[Net], None]


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda net: net.delete("members/a"), "a key of node a in etcd was deleted by hand, though its lease lives"),
        (lambda net: net.put("members/a", "nonsense"), "the row of node a in etcd was overwritten: etcd key "),
    ],
)
def test_who_takes_our_row_is_noticed_and_said(net: Net, tamper: Tampering, words: str) -> None:
    one = net.router("a")
    before = one.lease
    tamper(net)
    until(lambda: any(not lease.held and words in lease.why for lease in one.told.leases), one.told.leases)
    if "members/a" in net.keys("members/"):
        net.delete("members/a")
    again = one.until_held()
    assert again.epoch == 2
    assert again.subnets == before.subnets
    assert all(table and table[0].name == "a" for table in one.told.tables), "its own row is always there"


def test_a_lock_that_is_gone_is_noticed_in_time(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "VERIFY_EVERY", 1)
    one = net.router("a")
    net.delete(f"leases/{subnets(one)[0].replace('/', '-')}")
    until(lambda: any("was deleted by hand" in lease.why for lease in one.told.leases))
    assert one.until_held().epoch == 2


# Starting and ending.


def test_stop_is_quick_final_and_may_come_twice(net: Net) -> None:
    one = net.router("a")
    assert {"subnets-etcd", "subnets-told"} <= {thread.name for thread in threading.enumerate()}
    started_s = time.monotonic()
    one.stop()
    one.stop()
    assert time.monotonic() - started_s < 5
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("subnets-")]
    told = (len(one.told.tables), len(one.told.leases))
    net.router("b", 1)
    assert (len(one.told.tables), len(one.told.leases)) == told
    assert net.keys("members/") == ["members/a", "members/b"], "the lease is left to a successor"


def test_stop_without_read(net: Net) -> None:
    made = source(net.folder, settings(net.etcd.url), "a")
    assert not made.state().connected
    made.stop()


def test_what_changed_since_read_is_told(net: Net) -> None:
    config = settings(net.etcd.url, ttl_s=TTL_S, prefix=net.prefix)
    made = source(net.folder, config, "a")
    net.stack.callback(made.stop)
    made.read()
    net.router("b", 1)
    told = Told()
    made.start(told)
    until(lambda: told.names == ["a", "b"])


def test_a_listener_that_is_slow_does_not_cost_the_lease(net: Net) -> None:
    """Neither does it get what is overtaken: only the newest table."""
    made = source(net.folder, settings(net.etcd.url, ttl_s=2, prefix=net.prefix), "a")
    net.stack.callback(made.stop)
    made.read()
    entered, leave = threading.Event(), threading.Event()

    class Slow(Told):
        def table_changed(self, nodes: Any) -> None:
            super().table_changed(nodes)
            entered.set()
            leave.wait(60)

    told = Slow()
    made.start(told)
    net.router("b", 1)
    assert entered.wait(20)
    for number in range(2, 5):
        net.router(f"n{number}", number)
    time.sleep(2.5)  # longer than the lease would last
    lease = made.state().lease
    leave.set()
    assert lease is not None
    assert lease.held
    until(lambda: told.names == ["a", "b", "n2", "n3", "n4"])
    assert len(told.tables) <= 3


def test_an_endpoint_of_ipv6(net: Net) -> None:
    one = net.router("a", endpoint=Endpoint(ip_address("2001:db8::1")))
    assert one.read is not None
    assert one.read[0].endpoint == Endpoint(ip_address("2001:db8::1"))
    assert net.keys("endpoints/") == ["endpoints/[2001:db8::1]:6081"]
