"""The Nodes of an API server as a source of subnets, through the real client library: whatever the server does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from router.config import Kubernetes
from router.errors import Kind, Refusal
from router.model import Endpoint, Node
from router.subnets.kubernetes import KubernetesSource
from router.subnets.kubernetes.api import Pace
from router.subnets.source import SourceState
from tests.kube_rig import QUICK, ApiServer, node, until

NETWORKS = (ip_network("10.42.0.0/16"),)
SELF = Endpoint(ip_address("192.0.2.1"))


def numbered(number: int, host: int = 0) -> dict[str, Any]:
    return node(f"n{number}", [f"10.42.{number}.0/24"], [f"192.0.2.{host or number}"])


def row(number: int, host: int = 0) -> Node:
    return Node(f"n{number}", Endpoint(ip_address(f"192.0.2.{host or number}")), (ip_network(f"10.42.{number}.0/24"),))


class Told:
    """Who listens, and what it heard."""

    def __init__(self) -> None:
        self.tables: list[tuple[Node, ...]] = []
        self.refusals: list[str] = []
        self.states: list[SourceState] = []
        self.threads: set[str] = set()
        self.refuse: str = ""
        self.fail = False

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        self.threads.add(threading.current_thread().name)
        self.tables.append(nodes)
        if self.fail:
            raise RuntimeError("a bug of the listener's")
        if self.refuse:
            raise Refusal(Kind.INVALID, self.refuse)

    def table_refused(self, message: str) -> None:
        self.refusals.append(message)

    def connection_changed(self, state: SourceState) -> None:
        self.states.append(state)

    def lease_changed(self, lease: object) -> None:
        raise AssertionError("Nodes are not leased")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path)
    made.put(numbered(1), numbered(2))
    yield made
    made.stop()


@pytest.fixture
def make(server: ApiServer) -> Iterator[Callable[..., KubernetesSource]]:
    made: list[KubernetesSource] = []

    def make(pace: Pace = QUICK, name: str = "n1", context: str = "") -> KubernetesSource:
        made.append(KubernetesSource(Kubernetes(str(server.kubeconfig()), context), name, SELF, NETWORKS, pace))
        return made[-1]

    yield make
    for source in made:
        source.stop()


def started(make: Callable[..., KubernetesSource], **how: Any) -> tuple[KubernetesSource, Told]:
    source, told = make(**how), Told()
    source.read()
    source.start(told)
    return source, told


# What changes


def test_nodes_are_read_and_followed(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    source, told = make(), Told()
    assert source.read() == (row(1), row(2))
    server.put(numbered(3))  # between `read` and `start`
    source.start(told)
    until(lambda: told.tables == [(row(1), row(2), row(3))])
    server.put(numbered(2, host=20))
    until(lambda: told.tables[-1] == (row(1), row(2, 20), row(3)))
    server.delete("n3")
    until(lambda: told.tables[-1] == (row(1), row(2, 20)))
    assert told.tables[-1][0] is told.tables[0][0], "what stays is the same object"
    assert (server.lists, told.refusals, told.states) == (1, [], [])
    assert told.threads == {"kubernetes-tell"}
    state = source.state()
    assert (state.kind, state.where, state.connected, state.error) == ("kubernetes", server.url, True, "")
    assert time.monotonic() - state.confirmed_s < 30


def test_a_swarm_of_changes_is_told_as_one(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    source, told = make(pace=replace(QUICK, gather_s=0.5)), Told()
    source.read()
    server.put(*map(numbered, range(3, 60)))
    server.delete("n2", "n59")
    source.start(told)
    until(lambda: told.tables)
    assert told.tables == [(row(1), *map(row, range(3, 59)))]


def test_what_a_kubelet_reports_every_minute_changes_nothing(
    make: Callable[..., KubernetesSource], server: ApiServer
) -> None:
    source, told = started(make)
    beating = numbered(2)
    for beat in range(5):
        beating["status"]["conditions"][0]["lastHeartbeatTime"] = f"2026-11-25T08:0{beat}:00Z"
        server.put(beating)
    server.bookmark()
    before_s = source.state().confirmed_s
    server.put(numbered(3))
    until(lambda: told.tables)
    assert told.tables == [(row(1), row(2), row(3))]
    assert source.state().confirmed_s >= before_s


def test_many_nodes_come_in_pages(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    server.put(*map(numbered, range(1, 255)))
    nodes = make().read()
    assert nodes is not None
    assert {each.name for each in nodes} == {f"n{number}" for number in range(1, 255)}
    assert server.lists == 3


def test_nodes_without_a_range_are_left_out_and_named(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    server.put(node("n3", None, ["192.0.2.3"]), node("n4", ["10.42.4.0/24"]))
    source, told = make(name="n9"), Told()
    assert source.read() == (row(1), row(2))
    assert source.state().connected
    words = "no Node is named n9, as this router's --node is; Nodes left out: 2 (n3: it has no podCIDR of IPv4; n4: "
    assert source.state().error.startswith(words)
    source.start(told)
    server.put(numbered(3), numbered(4), numbered(9))
    until(lambda: source.state().error == "")
    until(lambda: {each.name for each in told.tables[-1]} == {"n1", "n2", "n3", "n4", "n9"})


# What goes wrong with a table


def test_a_refused_table_is_told_and_the_next_may_be_good(
    make: Callable[..., KubernetesSource], server: ApiServer
) -> None:
    source, told = started(make)
    told.refuse = "subnet 10.42.1.0/24 is there twice, for n1 and n3"
    server.put(node("n3", ["10.42.1.0/24"], ["192.0.2.3"]))
    until(lambda: told.refusals == [told.refuse])
    assert source.state().error == told.refuse
    assert source.state().connected
    server.bookmark()
    told.refuse = ""
    server.put(numbered(3))
    until(lambda: told.tables[-1:] == [(row(1), row(2), row(3))])
    until(lambda: source.state().error == "")
    assert len(told.tables) == 2, "it is not tried again for nothing"


def test_no_nodes_at_all_are_no_table(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    source, told = started(make)
    server.delete("n1", "n2")
    until(lambda: told.refusals)
    assert told.tables in ([], [(row(2),)])
    assert f"API server {server.url} has no Node with a subnet" in told.refusals[0]
    server.put(numbered(1), numbered(2))
    until(lambda: told.tables[-1:] == [(row(1), row(2))])
    until(lambda: source.state().error == "")
    assert len(told.refusals) == 1


def test_a_cluster_without_ranges_yet_is_waited_for(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    server.delete("n1", "n2")
    source, told = make(), Told()
    assert source.read() is None
    assert source.state().error == "no Node is named n1, as this router's --node is"
    source.start(told)
    server.put(numbered(1))
    until(lambda: told.tables == [(row(1),)])
    assert told.states == []


def test_a_bug_in_the_listener_does_not_end_it(
    make: Callable[..., KubernetesSource], server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    _, told = started(make)
    told.fail = True
    server.put(numbered(3))
    until(lambda: told.tables)
    told.fail = False
    server.put(numbered(4))
    until(lambda: told.tables[-1] == (row(1), row(2), row(3), row(4)))
    assert "could not be told" in caplog.text


# What goes wrong with the server


@pytest.mark.parametrize("as_status", [False, True])
def test_a_version_that_is_gone_is_listed_anew(
    make: Callable[..., KubernetesSource], server: ApiServer, as_status: bool
) -> None:
    server.gone_as_status = as_status
    source = make()
    source.read()
    server.put(numbered(3))
    server.delete("n2")  # the watch will never say so
    server.compact()
    told = Told()
    source.start(told)
    until(lambda: told.tables == [(row(1), row(3))])
    assert server.lists == 2
    server.put(numbered(4))
    until(lambda: told.tables[-1] == (row(1), row(3), row(4)))
    assert told.states == []


def test_bookmarks_keep_a_version_young(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    """The Nodes stand still while much else happens; a new watch goes on from the last bookmark."""
    source, told = started(make)
    until(lambda: server.open_watches)
    server.bookmark()
    version = str(server.version)
    until(
        lambda: (
            server.count(watch="true", resourceVersion=version) or server.count(watch="True", resourceVersion=version)
        )
    )
    assert server.lists == 1
    assert told.states == []
    assert source.state().connected


def test_a_connection_that_breaks_is_no_news(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    source, told = started(make)
    for number in range(3, 6):
        until(lambda: server.open_watches)
        server.reset()
        server.put(numbered(number))
        until(lambda number=number: told.tables and row(number) in told.tables[-1])  # type: ignore[misc]
    assert told.tables[-1] == tuple(map(row, range(1, 6)))
    assert told.states == []
    assert server.lists == 1
    assert source.state().connected


def test_a_server_that_is_away_is_told_once_and_forgets_nothing(
    make: Callable[..., KubernetesSource], server: ApiServer
) -> None:
    source, told = started(make)
    until(lambda: server.open_watches)
    server.stop()
    until(lambda: told.states)
    assert not told.states[0].connected
    assert told.states[0].error == f"API server {server.url}: connection refused"
    assert source.state() == told.states[0]
    server.put(numbered(3))
    server.start()
    until(lambda: told.tables == [(row(1), row(2), row(3))])
    until(lambda: len(told.states) == 2)
    assert told.states[1].connected
    assert told.states[1].error == ""
    assert told.refusals == []


def test_a_black_hole_is_noticed(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    """Connections stay, and nothing comes: neither events nor the end of the watch."""
    source, told = started(make)
    until(lambda: server.open_watches)
    server.dead = True
    until(lambda: told.states)
    assert told.states[0].error == f"API server {server.url}: it does not answer"
    server.dead = False
    server.put(numbered(3))
    until(lambda: told.tables == [(row(1), row(2), row(3))])
    until(lambda: source.state().connected)


def test_a_server_that_ends_every_watch_at_once_is_not_pestered(
    make: Callable[..., KubernetesSource], server: ApiServer
) -> None:
    server.cut_watches = True
    _, told = started(make, pace=replace(QUICK, first_wait_s=0.1, most_wait_s=5.0))
    began_s = time.monotonic()
    until(lambda: server.watches >= 4)
    taken_s = time.monotonic() - began_s
    assert taken_s > (0.1 + 0.2 + 0.4) / 2, "between two tries at least half of 0.1, 0.2, 0.4 s"
    until(lambda: told.states)
    assert told.states[0].error == f"API server {server.url}: the connection broke off"
    server.cut_watches = False
    server.put(numbered(3))
    until(lambda: told.tables == [(row(1), row(2), row(3))])
    until(lambda: len(told.states) == 2)
    assert told.states[1].connected


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (401, "Unauthorized", "it does not know us (401, Unauthorized): mend or renew the credentials of kubeconfig "),
        (
            403,
            'nodes is forbidden: User "system:serviceaccount:x:podwire" cannot list resource "nodes"',
            'cannot list resource "nodes"): give kubeconfig ',
        ),
        (503, "etcdserver: leader changed", "it answers 503, etcdserver: leader changed"),
    ],
)
def test_what_the_server_says_is_told_in_words(
    make: Callable[..., KubernetesSource], server: ApiServer, code: int, message: str, words: str
) -> None:
    _, told = started(make)
    until(lambda: server.open_watches)
    server.refuse_with = code, message
    server.reset()
    until(lambda: told.states)
    assert words in told.states[0].error
    server.refuse_with = None
    server.put(numbered(3))
    until(lambda: told.tables == [(row(1), row(2), row(3))])
    server.refuse_with = code, message
    again = make()
    if code == 503:
        assert again.read() is None
        assert words in again.state().error
        assert not again.state().connected
    else:
        with pytest.raises(Refusal, match="API server") as refused:
            again.read()
        assert words in refused.value.message
        assert refused.value.kind is Kind.STATE


@pytest.mark.parametrize(
    "garbage",
    [b"", b"<html>", b"[]", b'{"items": []}', b'{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {}}]}'],
)
def test_a_list_that_is_none_is_no_table(
    make: Callable[..., KubernetesSource], server: ApiServer, garbage: bytes
) -> None:
    server.garbage = garbage
    source, told = make(), Told()
    assert source.read() is None
    assert f"API server {server.url}: " in source.state().error
    source.start(told)
    until(lambda: server.lists >= 3)
    assert told.tables == []
    server.garbage = None
    until(lambda: told.tables == [(row(1), row(2))])


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        ("ADDED", {"metadata": {"name": "n3"}}),
        ("ADDED", {"metadata": {"resourceVersion": "7"}}),
        ("MODIFIED", None),
        ("ERROR", {"kind": "Status", "code": "much"}),
        ("ERROR", {"kind": "Status", "code": 500, "message": "boom"}),
        ("HELLO", {"metadata": {"resourceVersion": "7", "name": "n3"}}),
    ],
)
def test_an_event_that_is_none_is_survived(
    make: Callable[..., KubernetesSource], server: ApiServer, kind: str, item: object
) -> None:
    source, told = started(make)
    server.send(kind, item)
    until(lambda: source.state().error)
    assert f"API server {server.url}: " in source.state().error
    server.compact()
    server.put(numbered(3))
    until(lambda: told.tables == [(row(1), row(2), row(3))])


# Start and end


def test_a_server_that_is_not_there_does_not_keep_a_router_from_starting(
    make: Callable[..., KubernetesSource], server: ApiServer
) -> None:
    server.stop()
    source, told = make(), Told()
    assert source.read() is None
    assert (source.state().connected, source.state().confirmed_s) == (False, 0.0)
    source.start(told)
    server.start()
    until(lambda: told.tables == [(row(1), row(2))])
    until(lambda: [state.connected for state in told.states] == [True])


def test_a_server_that_does_not_answer_is_not_waited_for(
    make: Callable[..., KubernetesSource], server: ApiServer
) -> None:
    server.dead = True
    source = make()
    began_s = time.monotonic()
    assert source.read() is None
    assert time.monotonic() - began_s < 10, "it takes 0.6 s"
    assert source.state().error == f"API server {server.url}: it does not answer"


def test_stop_is_quick_and_final(make: Callable[..., KubernetesSource], server: ApiServer) -> None:
    source, told = started(make, pace=replace(QUICK, watch_s=60.0))
    until(lambda: server.open_watches)
    began_s = time.monotonic()
    source.stop()
    assert time.monotonic() - began_s < 10, "it takes some milliseconds; the watch would go on for a minute"
    server.put(numbered(3))
    source.stop()
    assert told.tables == []
    assert not any(thread.name.startswith("kubernetes-") for thread in threading.enumerate())
    make().stop()  # one that was never started


def test_over_tls_the_authority_counts(tmp_path: Path) -> None:
    server = ApiServer(tmp_path, tls=True)
    server.put(numbered(1))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    try:
        source = KubernetesSource(Kubernetes(str(server.kubeconfig())), "n1", SELF, NETWORKS, QUICK)
        told = Told()
        assert source.read() == (row(1),)
        source.start(told)
        server.put(numbered(2))
        until(lambda: told.tables == [(row(1), row(2))])
        until(lambda: server.open_watches)
        source.stop()
        other = ApiServer(stranger, tls=True)
        wrong = server.kubeconfig(authority=other.folder / "server.pem")
        source = KubernetesSource(Kubernetes(str(wrong)), "n1", SELF, NETWORKS, QUICK)
        assert source.read() is None
        assert "certificate verify failed" in source.state().error
        source.stop()
        other.stop()
    finally:
        server.stop()


def test_the_context_is_chosen(make: Callable[..., KubernetesSource]) -> None:
    source = make(context="elsewhere")
    assert source.read() is None
    assert source.state().where == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("content", "context", "words"),
    [
        (None, "", "cannot read kubeconfig .*: No such file"),
        ("{}", "", "kubeconfig .* cannot be used: "),
        ("", "", "kubeconfig .* cannot be used: "),
        ("a: [", "", "kubeconfig .* cannot be used: "),
        ("good", "other", "kubeconfig .* cannot be used: .*other"),
    ],
)
def test_a_wrong_kubeconfig_is_refused(
    server: ApiServer, tmp_path: Path, content: str | None, context: str, words: str
) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(server.kubeconfig().read_text() if content == "good" else content)
    with pytest.raises(Refusal, match=words) as refused:
        KubernetesSource(Kubernetes(str(path), context), "n1", SELF, NETWORKS)
    assert refused.value.kind is Kind.INVALID


def test_in_cluster_is_for_pods() -> None:
    with pytest.raises(Refusal, match="this Pod's service account cannot be used: Service host/port is not set"):
        KubernetesSource(Kubernetes("in-cluster"), "n1", SELF, NETWORKS)


def test_without_the_library_it_says_how_to_get_it(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(Refusal, match=r'pip install "podwire\[kubernetes\]"') as refused:
        KubernetesSource(Kubernetes(str(server.kubeconfig())), "n1", SELF, NETWORKS)
    assert refused.value.kind is Kind.STATE


def test_the_library_is_loaded_for_those_who_use_it_only() -> None:
    code = "import sys, router.subnets.kubernetes, router.daemon; print('kubernetes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
