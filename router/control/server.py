"""The control edge: a request is checked field by field, made into the daemon's words, and its answer into messages.

Calls run in a pool of threads. A watcher keeps one of them, and so does a capture or a watch of flows, so all are counted, and the pool has
room for the other calls beside the most of them there can be.
"""
# Names, arguments and documentation of the calls are the contract's.
# ruff: noqa: ARG002, D102, N802

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router.control import fields, messages
from router.control.calls import stream, unary
from router.control.listen import TcpListener, UnixSocket
from router.control.observe import ObserverServicer
from router.errors import Kind, Refusal
from router.events import EventLog, Subscription
from router.model import Attachment, AttachmentKey, Endpoint, Node, SubnetTable
from router.observe.capture import MOST_CAPTURES
from router.observe.flows import MOST_FLOW_WATCHES
from router.observe.observatory import Observatory
from router.rpc.v1 import counters_pb2, events_pb2, observe_pb2, router_pb2, status_pb2, subnets_pb2
from router.rpc.v1.observe_pb2_grpc import add_ObserverServicer_to_server
from router.rpc.v1.router_pb2_grpc import RouterServicer as RouterServicerBase
from router.rpc.v1.router_pb2_grpc import add_RouterServicer_to_server
from router.status import AttachRequest, CheckRequest, Counters, PeerStatus, Status

MAX_MESSAGE_BYTES = 64 << 20
MAX_WATCHERS = 32
SWITCH_INTERVAL_S = 0.0001
"""How long a thread may keep the interpreter while another waits.

CPython's 5 ms, times the hand-overs of a call, were 200 ms at worst beside a busy engine; this is 20 to 40. It works the other
way round too: while a table of 100,000 subnets is read, the engine loses the interpreter at every system call. With 1 ms it
then carried too little, and lost 1,056 packets at 5,000 a second; with this none, twice out of twice.
"""

_CALL_THREADS = 16
_SERVICES = (
    router_pb2.DESCRIPTOR.services_by_name["Router"].full_name,
    observe_pb2.DESCRIPTOR.services_by_name["Observer"].full_name,
)


class Daemon(Protocol):
    """What the control edge asks of the daemon. All methods may be called from any thread and raise Refusal."""

    @property
    def events(self) -> EventLog: ...
    @property
    def observatory(self) -> Observatory: ...
    def attach(self, request: AttachRequest) -> Attachment: ...
    def detach(self, key: AttachmentKey) -> bool: ...
    def sync(self, live: Collection[AttachmentKey], owner: str, as_of_ns: int) -> tuple[AttachmentKey, ...]: ...
    def check(self, request: CheckRequest) -> Attachment: ...
    def attachments(self) -> tuple[Attachment, ...]: ...
    def subnets(self) -> SubnetTable: ...
    def replace_subnets(self, nodes: tuple[Node, ...], expected_version: int | None) -> SubnetTable: ...
    def upsert_subnets(self, node: Node) -> SubnetTable: ...
    def remove_subnets(self, name: str) -> SubnetTable: ...
    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]: ...
    def counters(self) -> Counters: ...
    def status(self) -> Status: ...


class Server:
    """A router's control server: bound when made, answering from `start` to `stop`."""

    def __init__(self, server: grpc.Server, servicer: RouterServicer, unix: UnixSocket, tcp_port: int) -> None:
        self._server, self._servicer, self._unix = server, servicer, unix
        self._switch_interval_s = sys.getswitchinterval()
        self.tcp_port = tcp_port
        """Port of the TCP listener; 0 when there is none."""

    def start(self) -> None:
        """Answer calls, from threads of its own."""
        # A busy engine gives the interpreter up only when made to; see SWITCH_INTERVAL_S.
        sys.setswitchinterval(min(self._switch_interval_s, SWITCH_INTERVAL_S))
        self._server.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """End watches at once and calls under way after the grace; return when all have ended. Can be repeated."""
        self._servicer.stop()
        # Unlinked first: whoever finds the socket from now on finds that of a successor.
        self._unix.release()
        self._server.stop(grace_s).wait()
        sys.setswitchinterval(self._switch_interval_s)


def serve(daemon: Daemon, *, socket_path: str, tcp: TcpListener | None = None, replacing: bool = False) -> Server:
    """Bind a control server for the daemon; it answers once started. Refusal when it cannot listen.

    `replacing` takes the socket's path though a router listens there, who is about to end.
    """
    server = grpc.server(
        ThreadPoolExecutor(
            MAX_WATCHERS + MOST_CAPTURES + MOST_FLOW_WATCHES + _CALL_THREADS, thread_name_prefix="control"
        ),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # two routers on one port are a mistake, not a load balancer
            ("grpc.keepalive_time_ms", 60_000),  # a watcher behind a dead TCP connection gives its place back
        ],
    )
    servicer = RouterServicer(daemon)
    add_RouterServicer_to_server(servicer, server)
    add_ObserverServicer_to_server(ObserverServicer(daemon.observatory), server)
    # Not blocking: a health watch then keeps no thread.
    healthy = health.HealthServicer(experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1))
    for service in ("", *_SERVICES):
        healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    unix = UnixSocket(socket_path)
    tcp_port = _listen_tcp(server, tcp) if tcp else 0

    def bind(path: str) -> None:
        _add_port(f"--socket {socket_path}", lambda: server.add_insecure_port(f"unix:{path}"))

    unix.claim(bind, replacing)
    return Server(server, servicer, unix, tcp_port)


def _listen_tcp(server: grpc.Server, tcp: TcpListener) -> int:
    key, cert, client_ca = tcp.read()
    tcp.check_free()
    credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=client_ca, require_client_auth=True)
    return _add_port(f"--listen {tcp}", lambda: server.add_secure_port(str(tcp), credentials))


def _add_port(flag: str, add: Callable[[], int]) -> int:
    try:
        if port := add():
            return port
    except RuntimeError as error:
        raise Refusal(Kind.STATE, f"{flag}: cannot listen there: {error}") from None
    raise Refusal(Kind.STATE, f"{flag}: cannot listen there")


class RouterServicer(RouterServicerBase):
    """podwire.v1.Router, over a daemon."""

    def __init__(self, daemon: Daemon, max_watchers: int = MAX_WATCHERS) -> None:
        self._daemon = daemon
        self._max_watchers = max_watchers
        self._lock = threading.Lock()
        self._watches: set[Subscription] = set()
        self._stopping = False
        self._names: tuple[SubnetTable, dict[Endpoint, str]] = (SubnetTable(0), {})

    def stop(self) -> None:
        """End every watch, and refuse new ones."""
        with self._lock:
            self._stopping = True
            watches = tuple(self._watches)
        for watch in watches:
            watch.close()
        self._daemon.observatory.close()

    @unary
    def Attach(self, request: router_pb2.AttachRequest, context: grpc.ServicerContext) -> router_pb2.AttachResponse:
        return router_pb2.AttachResponse(
            attachment=messages.attachment_message(self._daemon.attach(messages.attach_request(request)))
        )

    @unary
    def Detach(self, request: router_pb2.DetachRequest, context: grpc.ServicerContext) -> router_pb2.DetachResponse:
        return router_pb2.DetachResponse(detached=self._daemon.detach(messages.key(request.key)))

    @unary
    def Sync(self, request: router_pb2.SyncRequest, context: grpc.ServicerContext) -> router_pb2.SyncResponse:
        fields.count("live", len(request.live), fields.MAX_ATTACHMENTS)
        released = self._daemon.sync(
            frozenset(messages.key(key) for key in request.live),
            fields.owner(request.owner),
            fields.moment("as_of_ns", request.as_of_ns),
        )
        return router_pb2.SyncResponse(released=[messages.key_message(key) for key in released])

    @unary
    def Check(self, request: router_pb2.CheckRequest, context: grpc.ServicerContext) -> router_pb2.CheckResponse:
        return router_pb2.CheckResponse(
            attachment=messages.attachment_message(self._daemon.check(messages.check_request(request)))
        )

    @unary
    def ListAttachments(
        self, request: router_pb2.ListAttachmentsRequest, context: grpc.ServicerContext
    ) -> router_pb2.ListAttachmentsResponse:
        found = sorted(self._daemon.attachments(), key=lambda attachment: attachment.key)
        return router_pb2.ListAttachmentsResponse(attachments=[messages.attachment_message(each) for each in found])

    @unary
    def ListSubnets(
        self, request: router_pb2.ListSubnetsRequest, context: grpc.ServicerContext
    ) -> subnets_pb2.SubnetTable:
        return messages.table_message(self._daemon.subnets())

    @unary
    def ReplaceSubnets(
        self, request: router_pb2.ReplaceSubnetsRequest, context: grpc.ServicerContext
    ) -> subnets_pb2.SubnetTable:
        fields.count("nodes", len(request.nodes), fields.MAX_NODES)
        fields.count("subnets", sum(len(node.subnets) for node in request.nodes), fields.MAX_SUBNETS)
        expected = request.expected_version if request.HasField("expected_version") else None
        return messages.table_message(
            self._daemon.replace_subnets(tuple(messages.node(node) for node in request.nodes), expected)
        )

    @unary
    def UpsertSubnets(
        self, request: router_pb2.UpsertSubnetsRequest, context: grpc.ServicerContext
    ) -> subnets_pb2.SubnetTable:
        fields.count("node.subnets", len(request.node.subnets), fields.MAX_SUBNETS)
        return messages.table_message(self._daemon.upsert_subnets(messages.node(request.node)))

    @unary
    def RemoveSubnets(
        self, request: router_pb2.RemoveSubnetsRequest, context: grpc.ServicerContext
    ) -> subnets_pb2.SubnetTable:
        return messages.table_message(self._daemon.remove_subnets(fields.node_name(request.name)))

    @stream
    def WatchSubnets(
        self, request: router_pb2.WatchSubnetsRequest, context: grpc.ServicerContext
    ) -> Iterator[subnets_pb2.SubnetChange]:
        with self._watch(context, None) as events:
            # Subscribed before the table is read: no change falls in between.
            sent = self._daemon.subnets()
            yield subnets_pb2.SubnetChange(
                version=sent.version, whole=True, upserted=map(messages.node_message, sent.nodes)
            )
            for _ in events:
                table = self._daemon.subnets()
                if table.version != sent.version:
                    yield messages.change_message(sent, table)
                    sent = table
            self._ended(context)

    @unary
    def ListPeers(
        self, request: router_pb2.ListPeersRequest, context: grpc.ServicerContext
    ) -> router_pb2.ListPeersResponse:
        table, peers = self._daemon.peers()
        return router_pb2.ListPeersResponse(version=table.version, peers=map(messages.peer_message, peers))

    @unary
    def GetCounters(
        self, request: router_pb2.GetCountersRequest, context: grpc.ServicerContext
    ) -> counters_pb2.Counters:
        return messages.counters_message(self._daemon.counters(), self._node_names())

    @unary
    def GetStatus(self, request: router_pb2.GetStatusRequest, context: grpc.ServicerContext) -> status_pb2.Status:
        return messages.status_message(self._daemon.status())

    @stream
    def WatchEvents(
        self, request: router_pb2.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[events_pb2.Event]:
        after = request.after_sequence if request.HasField("after_sequence") else None
        with self._watch(context, after) as events:
            if request.no_follow:
                while (event := events.next(0)) is not None:
                    yield messages.event_message(event)
                return
            yield from map(messages.event_message, events)
            self._ended(context)

    @contextmanager
    def _watch(self, context: grpc.ServicerContext, after: int | None) -> Iterator[Subscription]:
        """Subscribe for a watcher until it cancels or the router stops; its place is given back at the end."""
        with self._daemon.events.subscribe(after) as watch:
            with self._lock:
                if self._stopping:
                    raise Refusal(Kind.UNAVAILABLE, "the router is stopping; connect again when it has started")
                if len(self._watches) >= self._max_watchers:
                    message = f"{self._max_watchers} watchers are connected, and no more fit; end one and try again"
                    raise Refusal(Kind.EXHAUSTED, message)
                self._watches.add(watch)
            try:
                if not context.add_callback(watch.close):
                    watch.close()  # cancelled before it began
                # The answer has begun: a watcher knows from now on that it misses nothing.
                context.send_initial_metadata(())
                yield watch
            finally:
                with self._lock:
                    self._watches.discard(watch)

    def _ended(self, context: grpc.ServicerContext) -> None:
        """Tell a watcher who did not cancel that the router goes."""
        if context.is_active():
            raise Refusal(Kind.UNAVAILABLE, "the router is stopping; connect again when it has started")

    def _node_names(self) -> dict[Endpoint, str]:
        """Return which node has which endpoint; made once a table, since a table can be large."""
        table, names = self._names
        current = self._daemon.subnets()
        if current is not table:
            names = {node.endpoint: node.name for node in current.nodes}
            self._names = (current, names)
        return names
