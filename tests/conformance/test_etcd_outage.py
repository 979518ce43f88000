"""The store goes away, stands still, loses its leader, its history or everything: nothing is forgotten, nobody is moved."""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from router.subnets.etcd.claimant import Wish
from router.subnets.etcd.client import Client
from router.subnets.etcd.layout import Config, Layout
from router.subnets.etcd.member import Member
from router.subnets.etcd.roster import Roster
from tests.etcd_rig import (
    NETWORKS,
    PREFIX,
    FileMemory,
    Router,
    Server,
    Told,
    Wire,
    cluster,
    endpoint_of,
    free_port,
    server,
    settings,
    until,
)

TTL_S = 2
LONG_TTL_S = 4
"""Longer than an etcd takes to start again."""
ONE = (ip_network("10.32.0.0/24"),)
"""One subnet."""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path) as made:
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def routers(stack: ExitStack, folder: Path, *urls: str, names: str = "abc", ttl_s: float = TTL_S) -> list[Router]:
    """Start routers that all know each other."""
    made = []
    for number, name in enumerate(names):
        made.append(Router(folder, settings(*urls, ttl_s=ttl_s), name, number))
        stack.callback(made[-1].stop)
    for router in made:
        router.until_table(*names)
    return made


def lost(router: Router, *names: str) -> list[list[str]]:
    """Return the tables it was told since all names were first in one, in which one of them was not."""
    tables = [[node.name for node in table] for table in router.told.tables]
    whole = next((index for index, table in enumerate(tables) if set(names) <= set(table)), 0)
    return [table for table in tables[whole:] if not set(names) <= set(table)]


def test_a_server_that_is_killed_and_comes_back_changes_nothing(etcd: Server, stack: ExitStack, tmp_path: Path) -> None:
    both = routers(stack, tmp_path, etcd.url, names="ab", ttl_s=LONG_TTL_S)
    before = [(len(router.told.tables), router.lease.subnets, len(router.told.leases)) for router in both]
    etcd.kill()
    for router in both:
        router.until_error(etcd.url)
        assert not router.source.state().connected
    etcd.start()
    for router in both:
        until(lambda router=router: router.source.state().connected and not router.source.state().error)
    time.sleep(LONG_TTL_S / 2)  # what is waited for is that nothing happens
    for router, (tables, subnets, leases) in zip(both, before, strict=True):
        assert router.lease.held
        assert (router.lease.subnets, router.lease.epoch) == (subnets, 1)
        assert len(router.told.tables) == tables
        assert len(router.told.leases) == leases, "it was sure all the time"
        assert [state.connected for state in router.told.states][-2:] == [False, True]


def test_away_for_longer_than_a_lease_lasts(etcd: Server, stack: ExitStack, tmp_path: Path) -> None:
    """Who lives goes on with the same lease; who died meanwhile is gone in the end."""
    *both, dead = routers(stack, tmp_path, etcd.url)
    tables = [len(router.told.tables) for router in both]
    etcd.kill()
    dead.stop()
    for router, count in zip(both, tables, strict=True):
        lease = router.until_held(False)
        assert "it is not sure that the lease lives: etcd " in lease.why
        assert "connection refused" in router.until_error("connection refused")
        assert lease.subnets
        assert len(router.told.tables) == count
    etcd.start()  # gives leases their time anew
    for router in both:
        assert router.until_held().epoch == 1
        assert [lease.held for lease in router.told.leases] == [True, False, True]
        router.until_table("a", "b")
        assert lost(router, "a", "b") == []


def test_a_server_that_stands_still_until_all_leases_have_ended(etcd: Server, stack: ExitStack, tmp_path: Path) -> None:
    """All must claim anew, and no table may be without any of them meanwhile."""
    three = routers(stack, tmp_path, etcd.url)
    subnets = [router.lease.subnets for router in three]
    etcd.freeze()
    for router in three:
        router.until_held(False)
        router.until_error("does not answer")
    time.sleep(1)
    etcd.thaw()
    for router, before in zip(three, subnets, strict=True):
        lease = router.until_held()
        assert lease.subnets == before
    for router in three:
        router.until_table("a", "b", "c")
        until(lambda router=router: len({node.epoch for node in router.told.tables[-1]}) == 1)
        assert lost(router, "a", "b", "c") == []
        assert router.told.refused == []


def test_a_store_that_comes_back_empty(etcd: Server, stack: ExitStack, tmp_path: Path) -> None:
    """Nobody moves, no epoch goes back, and no table is ever without anybody who lives."""
    three = routers(stack, tmp_path, etcd.url)
    three[0].stop()
    etcd.ctl("lease", "revoke", lease_of(etcd, "a"))
    three[0] = Router(tmp_path, settings(etcd.url, ttl_s=TTL_S), "a", 0)
    stack.callback(three[0].stop)
    assert three[0].lease.epoch == 2
    for router in three:
        router.until_table("a", "b", "c")
    subnets = [router.lease.subnets for router in three]
    for more in (1, 2):
        etcd.kill()
        etcd.wipe()
        etcd.start()
        for router, before, epoch in zip(three, subnets, (2, 1, 1), strict=True):
            until(lambda router=router, epoch=epoch + more: router.lease.epoch == epoch and router.lease.held)
            assert router.lease.subnets == before
    late = Router(tmp_path, settings(etcd.url, ttl_s=TTL_S), "d", 3)
    stack.callback(late.stop)
    for router in (*three, late):
        router.until_table("a", "b", "c", "d")
    time.sleep(TTL_S)  # what was kept for safety goes now
    for router in (*three, late):
        router.until_table("a", "b", "c", "d")
        assert lost(router, "a", "b", "c") == []


def lease_of(etcd: Server, name: str) -> str:
    found = json.loads(etcd.ctl("get", "-w", "json", f"{PREFIX}/members/{name}"))
    return f"{found['kvs'][0]['lease']:x}"


@pytest.mark.parametrize("noticed", [False, True])
def test_history_that_is_compacted_away_while_a_node_is_cut_off(
    etcd: Server, stack: ExitStack, tmp_path: Path, noticed: bool
) -> None:
    """Whether the connection lasts, or a new one cannot go on where the watch was: what was compacted is not missed."""
    wire = Wire(etcd.port)
    stack.callback(wire.close)
    one = routers(stack, tmp_path, wire.url, names="a", ttl_s=6 if noticed else 60)[0]
    wire.cut()
    if noticed:
        until(lambda: not one.source.state().connected)
    for number in range(1, 4):
        Router(tmp_path, settings(etcd.url, ttl_s=60), f"n{number}", number).stop()
    etcd.ctl("lease", "revoke", lease_of(etcd, "n1"))
    revision = json.loads(etcd.ctl("get", "-w", "json", "x"))["header"]["revision"]
    etcd.ctl("compaction", str(revision))
    assert one.told.tables == []
    wire.mend()
    one.until_table("a", "n2", "n3")
    assert one.lease.epoch == 1
    assert all(lease.held for lease in one.told.leases)


def test_a_lease_that_ends_while_its_node_is_cut_off_and_another_takes_the_subnet(
    etcd: Server, stack: ExitStack, tmp_path: Path
) -> None:
    wire = Wire(etcd.port)
    stack.callback(wire.close)
    one = Router(tmp_path, settings(wire.url, ttl_s=TTL_S), "a", 0, networks=ONE)
    stack.callback(one.stop)
    two = Router(tmp_path, settings(etcd.url, ttl_s=TTL_S), "b", 1, networks=ONE)
    stack.callback(two.stop)
    assert not two.lease.held
    wire.cut()
    assert one.lease.held
    one.until_held(False)
    assert not two.lease.held, "the other gets it only after the first knows that it may have lost it"
    assert two.until_held().subnets == one.lease.subnets
    wire.mend()
    until(lambda: "no subnet is left for node a" in one.lease.why, lambda: one.lease)
    one.until_table("b")
    two.stop()
    etcd.ctl("lease", "revoke", lease_of(etcd, "b"))
    assert one.until_held().epoch == 2


@pytest.mark.parametrize("silent", [False, True])
def test_started_while_the_store_is_away(etcd: Server, stack: ExitStack, tmp_path: Path, silent: bool) -> None:
    if silent:
        etcd.freeze()
    else:
        etcd.kill()
    started_s = time.monotonic()
    one = Router(tmp_path, settings(etcd.url, ttl_s=TTL_S), "a")
    stack.callback(one.stop)
    assert time.monotonic() - started_s < 8
    assert one.read is None
    assert not one.lease.held
    one.until_error("does not answer" if silent else "connection refused")
    assert one.told.tables == []
    began_s, used_s = time.monotonic(), time.process_time()
    time.sleep(1.5)  # what is measured is that time
    share = (time.process_time() - used_s) / (time.monotonic() - began_s)
    print(f"{100 * share:.2f} % of a core")
    assert share < 0.05, f"{100 * share:.1f} % of a core"  # measured: 0.5
    if silent:
        etcd.thaw()
    else:
        etcd.start()
    assert one.until_held().epoch == 1
    one.until_table("a")


def test_started_while_the_store_is_away_but_the_lease_lives(etcd: Server, stack: ExitStack, tmp_path: Path) -> None:
    first = Router(tmp_path, settings(etcd.url, ttl_s=LONG_TTL_S), "a")
    first.stop()
    etcd.kill()
    second = Router(tmp_path, settings(etcd.url, ttl_s=LONG_TTL_S), "a")
    stack.callback(second.stop)
    assert second.read is None
    assert second.lease.held
    assert second.lease.subnets == first.lease.subnets
    assert second.until_held(False).epoch == 1
    etcd.start()
    assert second.until_held().epoch == 1


def test_what_was_lost_is_not_remembered_as_held(etcd: Server, stack: ExitStack, tmp_path: Path) -> None:
    first = Router(tmp_path, settings(etcd.url, ttl_s=60), "a")
    stack.callback(first.stop)
    etcd.ctl("put", f"{PREFIX}/members/a", "nonsense")
    first.until_held(False)
    first.until_error("it is not JSON")
    etcd.kill()
    second = Router(tmp_path, settings(etcd.url, ttl_s=60), "a")
    stack.callback(second.stop)
    assert second.read is None
    assert not second.lease.held


@pytest.mark.parametrize("silent", [False, True])
def test_the_first_server_that_answers_is_used(etcd: Server, stack: ExitStack, tmp_path: Path, silent: bool) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    if silent:  # it accepts connections, and says nothing
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    one = Router(tmp_path, settings(nobody, etcd.url), "a")
    stack.callback(one.stop)
    assert one.lease.held
    assert one.source.state().where == f"{nobody}, {etcd.url}"


def test_a_cluster_that_loses_a_member_its_leader_and_its_majority(stack: ExitStack, tmp_path: Path) -> None:
    servers = stack.enter_context(cluster(tmp_path))
    urls = [each.url for each in servers]
    three = []
    for number, name in enumerate("abc"):  # each prefers another server
        order = urls[number:] + urls[:number]
        three.append(Router(tmp_path, settings(*order, ttl_s=LONG_TTL_S), name, number))
        stack.callback(three[-1].stop)
    for router in three:
        router.until_table("a", "b", "c")
    leader = next(each for each in servers if is_leader(each))
    silent = next(each for each in servers if each is not leader)
    silent.freeze()
    guest = Router(tmp_path, settings(leader.url, *urls, ttl_s=LONG_TTL_S), "e", 4)
    stack.callback(guest.stop)
    three.append(guest)
    for router in three:
        router.until_table("a", "b", "c", "e")
        assert all(lease.held for lease in router.told.leases), "it went to another server in time"
    silent.thaw()
    silent.wait_healthy()
    leader.kill()
    late = Router(tmp_path, settings(*urls, ttl_s=LONG_TTL_S), "d", 3)
    stack.callback(late.stop)
    late.until_held()
    for router in (*three, late):
        router.until_table(*"abcde")
        assert router.lease.held
        assert router.lease.epoch == 1
    other = next(each for each in servers if each is not leader)
    other.kill()
    for router in (*three, late):
        router.until_held(False)
        router.until_table(*"abcde")
    leader.start(wait=False)
    other.start()
    for router in (*three, late):
        router.until_held()
        router.until_table(*"abcde")
        assert lost(router, *"abcde") == []


def is_leader(etcd: Server) -> bool:
    (status,) = json.loads(etcd.ctl("endpoint", "status", "-w", "json"))
    return bool(status["Status"]["leader"] == status["Status"]["header"]["member_id"])


def test_a_machine_that_slept(etcd: Server, tmp_path: Path) -> None:
    """The clocks of an event loop stand still meanwhile, the lease does not."""
    slept_s = 0.0

    async def scenario() -> None:
        nonlocal slept_s
        now_s = asyncio.get_running_loop().time
        client, layout = Client(settings(etcd.url)), Layout(PREFIX)
        wish, told = Wish("a", endpoint_of(0), Config(NETWORKS, 24, 64, 1), 20), Told()
        memory = FileMemory(tmp_path / "a.json")
        roster = Roster(client, layout, 20)
        member = Member(client, layout, roster, wish, memory, "id", clock_s=lambda: now_s() + slept_s)
        tasks = [asyncio.create_task(roster.run()), asyncio.create_task(member.run(told))]
        await eventually(lambda: told.leases)
        etcd.freeze()
        slept_s = 100.0
        began_s = now_s()
        await eventually(lambda: not told.leases[-1].held)
        assert now_s() - began_s < 6, "long before a loop's own timer would have said so"
        etcd.thaw()
        await eventually(lambda: told.leases[-1].held)
        assert told.leases[-1].epoch == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()

    asyncio.run(scenario())


# Ten minutes, in three seconds.

FASTER = 200.0
AWAY_S = 600.0


class _FastSelector(selectors.EpollSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return super().select(None if timeout is None else timeout / FASTER)


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs faster than the world's."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        super().__init__(_FastSelector())

    def time(self) -> float:
        return self._began_s + (time.monotonic() - self._began_s) * FASTER


async def eventually(fulfilled: Any) -> None:
    deadline_s = time.monotonic() + 30
    while not fulfilled():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.1)


def test_ten_minutes_without_a_store(etcd: Server, tmp_path: Path) -> None:
    """Next to nothing is done meanwhile, nothing is forgotten, and all goes on by itself."""

    async def scenario() -> None:
        clock_s = asyncio.get_running_loop().time
        client, layout = Client(settings(etcd.url, ttl_s=300)), Layout(PREFIX)
        roster = Roster(client, layout, 300)
        members, told = [], []
        for number, name in enumerate("ab"):
            wish = Wish(name, endpoint_of(number), Config(NETWORKS, 24, 64, 1), 300)
            memory = FileMemory(tmp_path / f"{name}.json")
            members.append(Member(client, layout, roster, wish, memory, f"id-{name}", clock_s=clock_s))
            told.append(Told())
        tasks = [asyncio.create_task(roster.run())]
        tasks += [asyncio.create_task(member.run(each)) for member, each in zip(members, told, strict=True)]
        await eventually(lambda: all(each.names == ["a", "b"] for each in told))
        tables = [each.tables[-1] for each in told]
        etcd.kill()
        await eventually(lambda: not roster.connected.now)
        began_s, used_s = clock_s(), time.process_time()
        while clock_s() < began_s + AWAY_S:
            await asyncio.sleep(10)
        used_s = time.process_time() - used_s
        print(f"{100 * used_s / AWAY_S:.2f} % of a core for two members")
        assert used_s < 0.01 * AWAY_S, f"{100 * used_s / AWAY_S:.1f} % of a core for two members"
        assert [each.tables[-1] for each in told] == tables
        assert [member.situation.lease.held for member in members] == [False, False]
        assert "connection refused" in members[0].state().error
        assert clock_s() - members[0].state().confirmed_s >= AWAY_S
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: all(member.situation.lease.held for member in members))
        await eventually(lambda: roster.connected.now)
        assert [each.tables[-1] for each in told] == tables
        assert [member.situation.lease.epoch for member in members] == [1, 1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(scenario())
