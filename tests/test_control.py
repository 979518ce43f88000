"""The control edge over a real socket: who may connect, what is refused and how, watches, and behaviour under load."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router.control.listen import TcpListener, UnixSocket
from router.control.server import Server, serve
from router.errors import Kind, Refusal
from router.events import EventKind
from router.model import AttachmentKey
from router.rpc.v1 import attachment_pb2, router_pb2, status_pb2, subnets_pb2
from router.rpc.v1.router_pb2_grpc import RouterServicer, RouterStub, add_RouterServicer_to_server
from shim.answers import AttachmentKey as SentKey
from shim.answers import Endpoint, Lease, Node
from shim.client import Client, ClientError
from tests.control_daemon import MemoryDaemon

PATH = "/run/netns/pod"


@pytest.fixture
def daemon() -> MemoryDaemon:
    return MemoryDaemon()


@pytest.fixture
def server(daemon: MemoryDaemon, tmp_path: Path) -> Iterator[Server]:
    made = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    made.start()
    yield made
    made.stop(0)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    with Client(str(tmp_path / "router.sock"), timeout_s=30) as made:
        yield made


@pytest.fixture
def stub(server: Server, tmp_path: Path) -> Iterator[RouterStub]:
    with grpc.insecure_channel(f"unix:{tmp_path}/router.sock") as channel:
        yield RouterStub(channel)


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


# The socket.


def test_the_socket_is_private_and_goes_with_the_server(daemon: MemoryDaemon, tmp_path: Path) -> None:
    path = tmp_path / "new" / "router.sock"
    server = serve(daemon, socket_path=str(path))
    server.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == ["router.sock"]
    finally:
        server.stop(0)
    server.stop(0)
    assert list(path.parent.iterdir()) == []


def test_the_socket_is_never_open_to_others(tmp_path: Path) -> None:
    """While it is bound with a mode of the umask's choice, its directory keeps others out."""
    seen: list[tuple[int, int]] = []

    def bind(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
        seen.append((stat.S_IMODE(Path(path).parent.stat().st_mode), stat.S_IMODE(Path(path).stat().st_mode)))
        assert not (tmp_path / "router.sock").exists()

    UnixSocket(str(tmp_path / "router.sock")).claim(bind)
    assert [directory for directory, _ in seen] == [0o700]
    assert stat.S_IMODE((tmp_path / "router.sock").stat().st_mode) == 0o600


def test_a_dead_routers_socket_is_replaced(daemon: MemoryDaemon, tmp_path: Path) -> None:
    path = tmp_path / "router.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    server = serve(daemon, socket_path=str(path))
    server.start()
    with Client(str(path)) as client:
        assert client.status().node == "here"
    server.stop(0)


def test_a_live_router_is_left_alone(client: Client, daemon: MemoryDaemon) -> None:
    with pytest.raises(Refusal, match="a router is running there already") as refused:
        serve(daemon, socket_path=client.socket_path)
    assert refused.value.kind is Kind.STATE
    assert client.status().node == "here"


def test_a_stopped_router_leaves_its_successors_socket(daemon: MemoryDaemon, tmp_path: Path) -> None:
    path = tmp_path / "router.sock"
    first = serve(daemon, socket_path=str(path))
    first.start()
    path.unlink()
    second = serve(daemon, socket_path=str(path))
    second.start()
    first.stop(0)
    with Client(str(path)) as client:
        assert client.status().node == "here"
    second.stop(0)


def test_a_file_in_the_way_is_not_removed(daemon: MemoryDaemon, tmp_path: Path) -> None:
    path = tmp_path / "router.sock"
    path.write_text("precious")
    with pytest.raises(Refusal, match="no socket is there"):
        serve(daemon, socket_path=str(path))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/tmp/" + "x" * 103, "it has 108 bytes"),
        ("", "it has 0 bytes"),
        ("/proc/nowhere/x.sock", "cannot listen there"),
    ],
)
def test_a_path_that_cannot_be_is_refused(daemon: MemoryDaemon, path: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        serve(daemon, socket_path=path)


def test_the_longest_path_works(daemon: MemoryDaemon, tmp_path: Path) -> None:
    directory = tmp_path
    while len(str(directory)) < 60:
        directory /= "d" * 20
    path = f"{directory}/{'s' * (106 - len(str(directory)))}"
    assert len(path) == 107
    server = serve(daemon, socket_path=path)
    server.start()
    with Client(path) as client:
        assert client.status().node == "here"
    server.stop(0)


def test_many_routers_start_at_one_path_and_one_wins(daemon: MemoryDaemon, tmp_path: Path) -> None:
    won: list[Server] = []
    refused: list[Refusal] = []

    def start() -> None:
        try:
            won.append(serve(daemon, socket_path=str(tmp_path / "router.sock")))
        except Refusal as refusal:
            refused.append(refusal)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5)
    won[0].start()
    won[0].stop(0)


# Conversion.


def test_attach_carries_everything_there_and_back(client: Client, daemon: MemoryDaemon) -> None:
    labels = {"name": "web", "namespace": "prod"}
    made = client.attach("pod", "eth0", PATH, addresses=["10.1.1.7", "fd00::0:7"], mtu_bytes=1400, labels=labels)
    asked = daemon.asked[0]
    assert asked.key == AttachmentKey("pod", "eth0")
    assert asked.addresses == (ip_address("10.1.1.7"), ip_address("fd00::7"))
    assert asked.labels == (("name", "web"), ("namespace", "prod"))
    assert (made.key, made.netns_path, made.mtu_bytes) == (SentKey("pod", "eth0"), PATH, 1400)
    assert made.addresses == ("10.1.1.7/24", "fd00::7/24")
    assert made.labels == labels
    assert client.attachments() == (made,)
    assert client.detach("pod", "eth0")
    assert not client.detach("pod", "eth0")


def test_sync_releases_all_but_the_live(client: Client) -> None:
    for name in "abc":
        client.attach(name, "eth0", PATH)
    assert client.sync([SentKey("b", "eth0"), SentKey("unknown", "eth0")]) == (
        SentKey("a", "eth0"),
        SentKey("c", "eth0"),
    )
    assert [attachment.key.sandbox_id for attachment in client.attachments()] == ["b"]


def test_the_table_can_be_read_and_changed(client: Client) -> None:
    table = client.subnets()
    assert [node.name for node in table.nodes] == ["here", "there"]
    assert client.upsert_subnets(table.nodes[1]).nodes == table.nodes
    assert table.nodes[1] == Node("there", Endpoint("2001:db8::2", 7000), ("10.1.2.0/24",), offload=False, epoch=3)
    table = client.upsert_subnets(Node("new", Endpoint("192.0.2.3"), ("10.1.3.0/24", "fd00:0:0:3::/64")))
    assert table.nodes[-1].endpoint == Endpoint("192.0.2.3", 6081)
    with pytest.raises(ClientError, match="use 0 to 9223372036854775807"):
        client.upsert_subnets(replace(table.nodes[1], epoch=2**63))
    with pytest.raises(ClientError, match="version 1 is not in force") as refused:
        client.replace_subnets((), expected_version=1)
    assert refused.value.code == "ABORTED"
    assert client.replace_subnets(table.nodes[:1], table.version).nodes == table.nodes[:1]
    with pytest.raises(ClientError) as missing:
        client.remove_subnets("there")
    assert (missing.value.code, missing.value.exit_status) == ("NOT_FOUND", 1)


def test_counters_carry_balance_drops_and_names(client: Client) -> None:
    found = client.counters()
    assert (found.epoch, found.icmp_suppressed, found.socket_drops, found.engine_restarts) == ("epoch-1", 8, 9, 10)
    assert [each.key.sandbox_id for each in found.attachments] == ["", "pod"]
    pod = found.attachments[1]
    assert pod.kernel_drops == 6
    assert pod.tally.dropped == {"no_route": 2, "spoofed_source": 1}
    assert (pod.tally.balance, pod.tally.sent_bytes, pod.tally.icmp_errors) == (0, 500, 1)
    assert [(peer.node, peer.tally.balance) for peer in found.peers] == [("there", 0), ("", 1)]


def test_status_carries_everything(client: Client) -> None:
    found = client.status()
    assert found.free_addresses[1].free == 2**64 - 2
    assert (found.offloads.tun_tso, found.offloads.tun_uso, found.offloads.max_segments) == (True, False, 64)
    assert found.endpoint == Endpoint("192.0.2.1", 6081)
    assert found.subnets == ("10.1.1.0/24", "fd00:0:0:1::/64")
    assert found.confinement == "capabilities net_admin; system calls filtered; no new privileges"
    source = found.source
    assert source is not None
    assert (source.kind, source.where, source.connected) == ("etcd", "http://192.0.2.10:2379", False)
    assert source.confirmed_age_s > 0
    assert source.lease == Lease(False, 7, 0.0, False, "etcd has not confirmed it for 31 s")


def test_peers_carry_what_probes_found(client: Client) -> None:
    found = client.peers()
    (peer,) = found.peers
    assert (found.version, peer.node.name, peer.node.epoch, peer.state) == (1, "there", 3, "down")
    assert (peer.heard_age_s, peer.rtt_s, peer.rtt_min_s, peer.loss) == (12.5, 0.0015, 0.001, 0.25)
    assert (peer.mtu_bytes, peer.why) == (1400, "it has not answered for 12 s")
    assert peer.tally is not None
    assert peer.tally.control_packets == 3


# What is refused.


@pytest.mark.parametrize("sandbox_id", ["", "x" * 257, "a b", "a/b", "a\nb", "a\0b", "a\u00a0b"])
def test_a_bad_sandbox_id_is_refused(client: Client, sandbox_id: str) -> None:
    with pytest.raises(ClientError, match=r"^sandbox_id ") as refused:
        client.attach(sandbox_id, "eth0", PATH)
    assert refused.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("if_name", ["", ".", "..", "a/b", "a:b", "a b", "x" * 16, "ä" * 8, "a\tb", "a\x7fb"])
def test_a_bad_interface_name_is_refused(client: Client, daemon: MemoryDaemon, if_name: str) -> None:
    for call in (lambda: client.attach("pod", if_name, PATH), lambda: client.detach("pod", if_name)):
        with pytest.raises(ClientError, match=r"^if_name ") as refused:
            call()
        assert refused.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ClientError, match=r"^if_name "):
        client.sync([SentKey("pod", if_name)])
    assert not daemon.asked


@pytest.mark.parametrize("path", ["", "relative", "/a\0b", "/" + "x" * 4095])
def test_a_bad_namespace_is_refused(client: Client, path: str) -> None:
    with pytest.raises(ClientError, match=r"^netns_path "):
        client.attach("pod", "eth0", path)


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        (["10.1.1"], "no IPv4 or IPv6 address"),
        (["10.1.1.1/24"], "leave the prefix length away"),
        (["fe80::1%eth0"], "leave the zone"),
        (["10.1.1.1", "10.1.1.1"], "it is there twice"),
        (["fd00::1", "fd00:0::1"], "it is there twice"),
        ([f"10.1.1.{n}" for n in range(17)], "17 are too many; send at most 16"),
    ],
)
def test_bad_addresses_are_refused(client: Client, addresses: list[str], why: str) -> None:
    with pytest.raises(ClientError, match=r"^addresses") as refused:
        client.attach("pod", "eth0", PATH, addresses=addresses)
    assert why in refused.value.message


@pytest.mark.parametrize("mtu_bytes", [1, 575, 65536, 2**32 - 1])
def test_a_bad_mtu_is_refused(client: Client, mtu_bytes: int) -> None:
    with pytest.raises(ClientError, match="use 576 to 65535"):
        client.attach("pod", "eth0", PATH, mtu_bytes=mtu_bytes)


@pytest.mark.parametrize("labels", [{"": "x"}, {"k" * 129: ""}, {"k": "v" * 1025}, {"k": "a\nb"}, {"a\nb": ""}])
def test_bad_labels_are_refused(client: Client, labels: dict[str, str]) -> None:
    with pytest.raises(ClientError, match=r"^labels"):
        client.attach("pod", "eth0", PATH, labels=labels)
    with pytest.raises(ClientError, match="65 are too many"):
        client.attach("pod", "eth0", PATH, labels={str(n): "" for n in range(65)})


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (Node("", Endpoint("192.0.2.1"), ()), "it has 0 characters"),
        (Node("a/b", Endpoint("192.0.2.1"), ()), "without whitespace"),
        (Node("a", Endpoint(""), ()), "no IPv4 or IPv6 address"),
        (Node("a", Endpoint("224.0.0.1"), ()), "of one node"),
        (Node("a", Endpoint("::"), ()), "of one node"),
        (Node("a", Endpoint("192.0.2.1", 65536), ()), "use 1 to 65535"),
        (Node("a", Endpoint("192.0.2.1"), ("10.1.2.3/24",)), "write 10.1.2.0/24"),
        (Node("a", Endpoint("192.0.2.1"), ("10.1.2.0",)), "write address/length"),
        (Node("a", Endpoint("192.0.2.1"), ("10.1.2.0/255.255.255.0",)), "write address/length"),
        (Node("a", Endpoint("192.0.2.1"), ("10.1.2.0/33",)), "no IPv4 or IPv6 prefix"),
        (Node("a", Endpoint("192.0.2.1"), ("fe80::%1/64",)), "write address/length"),
    ],
)
def test_a_bad_node_is_refused_by_name(client: Client, node: Node, why: str) -> None:
    for call in (lambda: client.upsert_subnets(node), lambda: client.replace_subnets([node])):
        with pytest.raises(ClientError) as refused:
            call()
        assert refused.value.code == "INVALID_ARGUMENT"
        assert why in refused.value.message
        assert "\n" not in refused.value.message


def test_a_message_unset_is_refused_like_an_empty_one(stub: RouterStub) -> None:
    for call in (
        lambda: stub.Attach(router_pb2.AttachRequest()),
        lambda: stub.Detach(router_pb2.DetachRequest()),
        lambda: stub.UpsertSubnets(router_pb2.UpsertSubnetsRequest()),
        lambda: stub.UpsertSubnets(router_pb2.UpsertSubnetsRequest(node=subnets_pb2.Node(name="a"))),
        lambda: stub.RemoveSubnets(router_pb2.RemoveSubnetsRequest()),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_offload_unset_stands_for_true(stub: RouterStub) -> None:
    row = subnets_pb2.Node(name="a", endpoint=subnets_pb2.Endpoint(address="192.0.2.7"))
    table = stub.UpsertSubnets(router_pb2.UpsertSubnetsRequest(node=row))
    assert table.nodes[-1].offload
    assert table.nodes[-1].HasField("offload")


def test_a_message_that_is_too_large_is_refused(client: Client) -> None:
    keys = [SentKey("x" * 250, f"eth{n}") for n in range(260_000)]
    with pytest.raises(ClientError) as refused:
        client.sync(keys)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert client.status().node == "here"


@pytest.mark.parametrize("kind", Kind)
def test_a_refusal_keeps_kind_and_message(client: Client, daemon: MemoryDaemon, kind: Kind) -> None:
    def refuse() -> None:
        raise Refusal(kind, "what is wrong;\n what to do")

    daemon.on_status = refuse
    with pytest.raises(ClientError) as refused:
        client.status()
    assert (refused.value.code, refused.value.message) == (kind.value, "what is wrong; what to do")


def test_a_long_refusal_arrives_cut(client: Client, daemon: MemoryDaemon) -> None:
    def refuse() -> None:
        raise Refusal(Kind.STATE, "ü" * 100_000)

    daemon.on_status = refuse
    with pytest.raises(ClientError) as refused:
        client.status()
    assert refused.value.code == "FAILED_PRECONDITION"
    assert refused.value.message.startswith("üüü")


def test_a_bug_is_internal_and_logged(client: Client, daemon: MemoryDaemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.on_status = lambda: {}["missing"]
    with pytest.raises(ClientError, match="GetStatus failed in the router") as failed:
        client.status()
    assert (failed.value.code, failed.value.exit_status) == ("INTERNAL", 70)
    assert "KeyError" in caplog.text
    assert "Traceback" in caplog.text


# Watches.


def test_a_subnet_watch_brings_the_table_then_each_change(client: Client, daemon: MemoryDaemon) -> None:
    changes = client.watch_subnets()
    first = next(changes)
    assert (first.version, first.whole, [node.name for node in first.upserted]) == (1, True, ["here", "there"])
    new = Node("new", Endpoint("192.0.2.3", 6081), ("10.1.3.0/24",))
    client.upsert_subnets(new)
    second = next(changes)
    assert (second.version, second.whole, second.upserted, second.removed) == (2, False, (new,), ())
    daemon.events.record(EventKind.ATTACHED)  # brings no change
    client.remove_subnets("there")
    third = next(changes)
    assert (third.version, third.upserted, third.removed) == (3, (), ("there",))
    changes.close()  # type: ignore[attr-defined]


def test_an_event_watch_replays_then_follows(client: Client, daemon: MemoryDaemon) -> None:
    client.attach("one", "eth0", PATH)
    events = client.watch_events(0)
    fresh = client.watch_events()
    client.attach("two", "eth0", PATH)
    found = [next(events), next(events)]
    assert [(event.sequence, event.kind, event.key) for event in found] == [
        (1, "attached", SentKey("one", "eth0")),
        (2, "attached", SentKey("two", "eth0")),
    ]
    assert next(fresh).sequence == 2
    daemon.events.record(EventKind.TABLE_REFUSED, "why", node="here")
    last = next(fresh)
    assert (last.kind, last.key, last.node, last.message) == ("table_refused", None, "here", "why")


def test_an_event_list_ends(client: Client, daemon: MemoryDaemon) -> None:
    assert list(client.watch_events(0, follow=False)) == []
    for _ in range(3):
        daemon.events.record(EventKind.STARTED)
    assert [event.sequence for event in client.watch_events(1, follow=False)] == [2, 3]


def test_watchers_are_counted_and_places_given_back(server: Server, stub: RouterStub, tmp_path: Path) -> None:
    calls = []
    try:
        for _ in range(32):
            call = stub.WatchEvents(router_pb2.WatchEventsRequest())
            call.initial_metadata()
            calls.append(call)
        one_more = stub.WatchEvents(router_pb2.WatchEventsRequest())
        with pytest.raises(grpc.RpcError) as refused:
            next(one_more)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "end one and try again" in refused.value.details()
        # However many watch, calls are answered.
        assert stub.GetStatus(router_pb2.GetStatusRequest(), timeout=20).node == "here"
        calls.pop().cancel()

        def has_room() -> bool:
            call = stub.WatchSubnets(router_pb2.WatchSubnetsRequest())
            try:
                return bool(next(call).whole)
            except grpc.RpcError:
                return False
            finally:
                call.cancel()

        eventually(has_room)
    finally:
        for call in calls:
            call.cancel()


def test_stopping_ends_watches_and_says_so(daemon: MemoryDaemon, tmp_path: Path) -> None:
    path = str(tmp_path / "router.sock")
    server = serve(daemon, socket_path=path)
    server.start()
    with Client(path) as client:
        events, changes = client.watch_events(), client.watch_subnets()
        next(changes)
        daemon.events.record(EventKind.STOPPING)
        assert next(events).kind == "stopping"
        stopper = threading.Thread(target=server.stop, args=(20.0,))
        stopper.start()
        for watch in (events, changes):
            with pytest.raises(ClientError) as ended:
                next(watch)
            assert (ended.value.code, ended.value.exit_status) == ("UNAVAILABLE", 69)
        stopper.join(15)
        assert not stopper.is_alive(), "watches kept the server from stopping"


def test_stopping_lets_a_call_finish(daemon: MemoryDaemon, tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        leave.wait(20)

    daemon.on_status = wait
    server = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    server.start()
    answers: list[str] = []
    with Client(str(tmp_path / "router.sock"), timeout_s=30) as client:
        caller = threading.Thread(target=lambda: answers.append(client.status().node))
        caller.start()
        assert entered.wait(20)
        stopper = threading.Thread(target=server.stop, args=(20.0,))
        stopper.start()
        eventually(lambda: not (tmp_path / "router.sock").exists())
        leave.set()
        stopper.join(15)
        caller.join(15)
    assert answers == ["here"]


# Beside the contract.


def test_health_and_reflection_are_served(server: Server, tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/router.sock") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "podwire.v1.Router", "podwire.v1.Observer"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        names = {service.name for service in next(answers).list_services_response.service}
        assert names == {
            "podwire.v1.Observer",
            "podwire.v1.Router",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def test_a_call_that_a_router_cancels_as_it_ends_may_be_tried_again(tmp_path: Path) -> None:
    """So gRPC ends what came just before a server's end and was not begun yet."""

    class Ending(RouterServicer):
        def GetStatus(self, request: object, context: grpc.ServicerContext) -> status_pb2.Status:
            context.cancel()
            return status_pb2.Status()

    ending = grpc.server(ThreadPoolExecutor(1))
    add_RouterServicer_to_server(Ending(), ending)
    ending.add_insecure_port(f"unix:{tmp_path}/ending.sock")
    ending.start()
    try:
        with Client(f"{tmp_path}/ending.sock") as client, pytest.raises(ClientError, match="it is stopping") as caught:
            client.status()
        assert (caught.value.code, caught.value.exit_status) == ("UNAVAILABLE", 69)
    finally:
        ending.stop(0)


def test_calls_are_answered_while_the_interpreter_is_busy(client: Client) -> None:
    """Two threads that never let go by themselves are worse than an engine under load. Wide bounds: the machine is shared."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(200))

    spinners = [threading.Thread(target=spin) for _ in range(2)]
    for spinner in spinners:
        spinner.start()
    took_s = []
    try:
        for _ in range(20):
            began_s = time.monotonic()
            client.status()
            took_s.append(time.monotonic() - began_s)
    finally:
        stop.set()
        for spinner in spinners:
            spinner.join()
    assert sorted(took_s)[10] < 0.5


def test_the_switch_interval_is_put_back(daemon: MemoryDaemon, tmp_path: Path) -> None:
    before_s = sys.getswitchinterval()
    server = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    server.start()
    assert sys.getswitchinterval() <= 0.001
    server.stop(0)
    assert sys.getswitchinterval() == before_s


# TCP.


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a CA, a router's and a client's certificate from it, and a stranger's self-signed one."""
    directory = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    (directory / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("router", "client"):
        openssl("req", *key[:-2], "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return directory


def listener(pki: Path, **changed: str) -> TcpListener:
    paths = {"cert_path": "router.pem", "key_path": "router.key", "client_ca_path": "ca.pem"}
    return TcpListener("127.0.0.1", 0, **{name: str(pki / path) for name, path in paths.items()} | changed)


def ask(port: int, pki: Path, name: str | None) -> str:
    chain = ((pki / f"{name}.key").read_bytes(), (pki / f"{name}.pem").read_bytes()) if name else (None, None)
    credentials = grpc.ssl_channel_credentials((pki / "ca.pem").read_bytes(), *chain)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        return RouterStub(channel).GetStatus(router_pb2.GetStatusRequest(), timeout=20).node


def test_tcp_asks_for_a_certificate(daemon: MemoryDaemon, tmp_path: Path, pki: Path) -> None:
    server = serve(daemon, socket_path=str(tmp_path / "router.sock"), tcp=listener(pki))
    server.start()
    try:
        assert ask(server.tcp_port, pki, "client") == "here"
        for name in (None, "stranger"):
            with pytest.raises(grpc.RpcError) as refused:
                ask(server.tcp_port, pki, name)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with (
            grpc.insecure_channel(f"127.0.0.1:{server.tcp_port}") as plain,
            pytest.raises(grpc.RpcError),
        ):
            RouterStub(plain).GetStatus(router_pb2.GetStatusRequest(), timeout=20)
    finally:
        server.stop(0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"cert_path": ""}, "--tls-cert is missing"),
        ({"key_path": ""}, "--tls-key is missing"),
        ({"client_ca_path": ""}, "--tls-client-ca is missing"),
        ({"client_ca_path": "/nowhere"}, "--tls-client-ca /nowhere: No such file"),
        ({"cert_path": "/dev/null"}, "--tls-cert /dev/null"),
        ({"client_ca_path": "/dev/null"}, "--tls-client-ca /dev/null: no PEM"),
    ],
)
def test_tcp_without_mutual_tls_is_refused(
    daemon: MemoryDaemon, tmp_path: Path, pki: Path, changed: dict[str, str], why: str
) -> None:
    with pytest.raises(Refusal, match=why):
        serve(daemon, socket_path=str(tmp_path / "router.sock"), tcp=listener(pki, **changed))
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_another_certificate_is_refused(daemon: MemoryDaemon, tmp_path: Path, pki: Path) -> None:
    with pytest.raises(Refusal, match="no PEM pair that fits"):
        serve(daemon, socket_path=str(tmp_path / "s"), tcp=listener(pki, key_path=str(pki / "client.key")))


def test_a_tcp_port_in_use_is_refused(daemon: MemoryDaemon, tmp_path: Path, pki: Path) -> None:
    first = serve(daemon, socket_path=str(tmp_path / "a.sock"), tcp=listener(pki))
    tcp = listener(pki)
    taken = TcpListener("127.0.0.1", first.tcp_port, tcp.cert_path, tcp.key_path, tcp.client_ca_path)
    with pytest.raises(Refusal, match=r"--listen 127\.0\.0\.1:\d+: cannot listen there: Address already in use"):
        serve(daemon, socket_path=str(tmp_path / "b.sock"), tcp=taken)
    assert not (tmp_path / "b.sock").exists()
    first.start()
    first.stop(0)


def test_idle_watchers_cost_nothing(client: Client, tmp_path: Path) -> None:
    """The wake-ups of gRPC's own threads are all there is: far below a hundredth of a core."""
    watches = [client.watch_events() for _ in range(8)]
    used_s = []
    for _ in range(5):
        before_s, began_s = time.process_time(), time.monotonic()
        threading.Event().wait(0.5)
        used_s.append((time.process_time() - before_s) / (time.monotonic() - began_s))
    assert min(used_s) < 0.05
    assert len(watches) == 8


def test_nothing_leaks_with_clients_that_come_and_go(client: Client, tmp_path: Path) -> None:
    client.status()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with Client(client.socket_path) as other:
            next(other.watch_subnets())
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 4)


def test_the_contract_of_keys_is_one(stub: RouterStub) -> None:
    """Non-canonical but valid spellings are taken, and answered canonically."""
    request = router_pb2.AttachRequest(
        key=attachment_pb2.AttachmentKey(sandbox_id="pod", if_name="eth0"),
        netns_path=PATH,
        addresses=["FD00:0:0:1:0::9"],
    )
    assert stub.Attach(request).attachment.addresses == ["fd00:0:0:1::9/24"]
