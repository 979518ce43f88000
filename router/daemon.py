"""The daemon: what people and runtimes asked for, made true on this node.

    journal → subnet table → engine with its routes → podwire0 and attachments of the last run → packets flow → all else
    that is made good, asked and watched → control

What an earlier router left is carried again before anything is imported or looked at that can wait (docs/restarts.md).

It owns every fd and every thread but the engine's own; `control` only translates.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from router import collector, overlay, process
from router.attachments import Attachments
from router.cluster import Cluster, Underlay
from router.config import Settings
from router.engine.choose import AUTO, BUILD, NAMES, choose
from router.engine.interface import Engine, EngineSettings
from router.errors import Kind, Refusal
from router.events import EventKind, EventLog
from router.journal import Identity, Journal
from router.kernel import confine, underlay
from router.kernel.links import local_prefixes
from router.last_start import LastStart
from router.model import NODE_KEY, Address, Attachment, AttachmentKey, Endpoint, Node, Prefix, SubnetTable
from router.observe.refused import RefusedPods
from router.owner import Owner
from router.ports import Ports
from router.reconcile import Reconciler
from router.status import AttachRequest, CheckRequest, Counters, PeerStatus, Status
from router.subnets.check import overlap_with_local
from router.takeover import counts
from router.takeover.continued import ContinuedEngine
from router.takeover.fdstore import FdStore
from router.takeover.gate import Gate
from router.takeover.inherited import UNDERLAY, Inherited, Relief, name_of
from router.tombstones import Tombstones
from router.uplink import Uplink, node_interfaces

if TYPE_CHECKING:
    import socket as sockets

    from router.observe.observatory import Observatory
    from router.observe.trace.questions import Questions

_log = logging.getLogger(__name__)


class Daemon:
    """One router. Made running; `close` ends it and leaves every device as it is for the next."""

    def __init__(self, settings: Settings, inherited: Inherited, relief: Relief, store: FdStore) -> None:
        """Start everything, or raise Refusal with nothing left behind.

        What an earlier process left open is `inherited`; `relief` says when nobody else carries its packets any more.
        """
        self._settings = settings
        self._started_at_s = time.time()
        self._notes: list[str] = []
        self.events = EventLog()
        engine_name, factory = choose(settings.engine)
        if settings.engine == AUTO and engine_name != NAMES[0]:
            _log.info("engine %s, as the %s one is not built here: build it with %s", engine_name, NAMES[0], BUILD)
        self.gate, self._refused = Gate(), RefusedPods()
        self._questions: Questions | None = None
        if inherited.live:
            self.gate.close(0)  # until its owner has left: whoever takes the work back must find it as it was
        with ExitStack() as undo:
            undo.callback(inherited.close)
            overlap_with_local(settings.networks, local_prefixes(besides=NODE_KEY.if_name))
            self._mtu_bytes = overlay.mtu_bytes(settings)
            self._journal = Journal(settings.state_dir / "router.db", inherited.take_lock())
            undo.callback(self._journal.close)
            undo.push(_if_failed(self._journal.withdraw))
            identity = self._identify(inherited.counters_epoch)
            memory = self._journal.memory("start")
            last = LastStart.of(settings, memory, self._journal.memory("etcd").load())
            self._offloads, notes = last.offloads(inherited.offloads)
            self._note(notes)
            self._cluster = Cluster(
                settings,
                self._journal,
                self.events,
                identity.epoch,
                self._take_subnets,
                self._hold,
                again=last.again and not inherited.live,
            )
            undo.callback(self._cluster.stop)  # a source may run from its first reading on
            first = self._cluster.first()
            socket = inherited.socket(settings.underlay) or underlay.open_underlay(settings.underlay, self._offloads)
            undo.callback(socket.close)
            store.keep(UNDERLAY, socket.fileno())
            engine = factory(
                EngineSettings(
                    vni=settings.vni,
                    mtu_bytes=self._mtu_bytes,
                    overhead_bytes=underlay.overhead_bytes(settings.underlay),
                    offloads=self._offloads,
                    threads=settings.engine_threads or process.engine_threads(),
                    spin_us=settings.spin_us,
                    spin_percent=settings.spin_percent,
                ),
                first,
                socket,
                self,
            )
            undo.callback(engine.close)
            self._engine: Engine = ContinuedEngine(engine, first) if inherited.live else engine
            self._ports = Ports(settings.networks, settings.egress)
            self._attachments = Attachments(
                self._journal,
                self._engine,
                self.events,
                self._ports,
                self._mtu_bytes,
                self._offloads,
                settings.address_rest_s,
                store,
            )
            undo.callback(self._attachments.close)
            tombstones = Tombstones(settings.socket_path.parent / "tombstones")
            self._reconciler = Reconciler(self._attachments, tombstones, self.gate)
            self._uplink = Uplink(
                settings.networks, self._mtu_bytes, self._offloads, settings.egress, settings.masquerade
            )
            undo.callback(self._uplink.close)
            undo.push(_if_failed(self._uplink.withdraw))
            own = self._cluster.own_subnets()
            self._attachments.restore(own, inherited)
            self._uplink.take_up(own, self._engine, inherited)
            inherited.close()
            relief.before_start((*self._attachments.fds().values(), self._uplink.fd), self._offloads, socket)
            undo.callback(self._engine.stop)
            self._engine.start()
            self._go_on_counting(relief.after_start(), inherited.same_socket)
            self.observatory = self._observe(undo, socket)
            self._attachments.mend()
            self._note(self._uplink.apply(own, self._engine))
            if self._uplink.fd >= 0:
                store.keep(name_of(NODE_KEY), self._uplink.fd)
            self._reconciler.round()
            undo.callback(self._reconciler.stop)
            self._reconciler.start()
            undo.callback(self._cluster.stop)
            self._cluster.start(self._engine, Underlay(socket, self._mtu_bytes, self._path_carries))
            self.owner = Owner(
                settings, self._epoch, self._offloads, self._journal, self._cluster, self._attachments, self._uplink,
                self._engine, socket, self.gate,
            )  # fmt: skip
            last.remember(memory, self._offloads, notes)
            self._undo = undo.pop_all()
        _log.info(
            "node %s: engine %s, underlay %s, overlay MTU %d, subnets %s",
            settings.node, engine_name, settings.underlay, self._mtu_bytes,
            ", ".join(map(str, own)) or "none yet",
        )  # fmt: skip
        self.events.record(EventKind.STARTED, f"engine {engine_name}", node=settings.node)

    def announce_stop(self) -> None:
        """Tell who watches that this router ends."""
        self.events.record(EventKind.STOPPING, node=self._settings.node)

    def close(self) -> None:
        """End every thread and let go of every fd; devices, addresses and rules stay for the next router."""
        self._undo.close()
        self.events.close()

    def withdraw(self) -> None:
        """End a start that came to nothing: as `close`, and what it made on this node is gone too."""
        with suppress(_Withdrawn), self._undo:
            raise _Withdrawn
        self.events.close()

    # Start

    def _identify(self, counters_epoch: str = "") -> Identity:
        """Say whose journal it is, refuse another node's, and begin a new epoch of counters unless one goes on."""
        name = self._settings.node
        known = self._journal.node()
        if known is not None and known.name != name:
            raise Refusal(
                Kind.STATE,
                f"state directory {self._settings.state_dir} belongs to node {known.name!r}, this is {name!r}: "
                "use another --state-dir, or remove it if that node is no more",
            )
        self._epoch = counters_epoch or str(uuid.uuid4())
        identity = Identity(name, known.epoch if known else str(uuid.uuid4()), self._epoch)
        self._journal.set_node(identity)
        return identity

    def _go_on_counting(self, before: dict[str, Any] | None, same_socket: bool) -> None:
        """Let counters go on where a predecessor's ended; when nobody can say where, they begin a new epoch."""
        if not isinstance(self._engine, ContinuedEngine):
            return
        self._journal.claim()
        try:
            if before is not None:
                self._engine.go_on_from(counts.decode(before), same_socket)
                return
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("the counters of the router before cannot be read (%r), and begin anew", error)
        self._identify()

    def _observe(self, undo: ExitStack, socket: sockets.socket) -> Observatory:
        """Make what answers questions about packets, the peers' too."""
        # Late: half as much to import as all that comes before.
        from router.observe.names import Names
        from router.observe.observatory import Observatory
        from router.observe.trace.questions import Questions
        from router.observe.trace.tracer import Tracer

        here, cluster = self._settings.underlay, self._cluster
        names = Names(self._settings.node, self.attachments, cluster.others, self._own_addresses, self._refused.why)
        questions = Questions(socket, self._settings.vni, names)
        undo.callback(questions.stop)
        questions.start(self._engine)
        self._questions = questions
        tracer = Tracer(self._engine, questions, cluster, here.address, self._mtu_bytes)
        made = Observatory(names, self._engine, self.events, here, cluster.round_trips, tracer)
        undo.callback(made.close)
        return made

    def _note(self, notes: Collection[str]) -> None:
        for note in notes:
            _log.warning("%s", note)
        self._notes.extend(notes)

    # Subnet table

    def _take_subnets(self, own: tuple[Prefix, ...], others: Collection[Node]) -> None:
        """Make this node's subnets actual; what Pods hold in another node's is theirs no more."""
        self._note(self._uplink.apply(own, self._engine))
        self._attachments.set_subnets(own, others)

    def subnets(self) -> SubnetTable:
        """Return the table in force."""
        return self._cluster.table

    def replace_subnets(self, nodes: tuple[Node, ...], expected_version: int | None) -> SubnetTable:
        """Replace the table whole. Raise Refusal: CONFLICT when the version has moved, STATE when a source rules."""
        with self.gate.passing():
            return self._cluster.tables.replace(nodes, expected_version)

    def upsert_subnets(self, node: Node) -> SubnetTable:
        """Add or replace one node of the table."""
        with self.gate.passing():
            return self._cluster.tables.upsert(node)

    def remove_subnets(self, name: str) -> SubnetTable:
        """Take one node out of the table."""
        with self.gate.passing():
            return self._cluster.tables.remove(name)

    # Attachments

    def _hold(self, why: str) -> None:
        self._attachments.addresses.hold(why)

    def attach(self, request: AttachRequest) -> Attachment:
        """Give a Pod its interface. Idempotent."""
        with self.gate.passing(), collector.sweeping(), self._refused.noting(request.key, request.labels):
            return self._attachments.attach(request)

    def detach(self, key: AttachmentKey) -> bool:
        """Take it away; False when there was none."""
        with self.gate.passing(), collector.sweeping():
            return self._attachments.detach(key)

    def sync(self, live: Collection[AttachmentKey], owner: str, as_of_ns: int) -> tuple[AttachmentKey, ...]:
        """Release all of an owner but the live set, as it was at a time."""
        with self.gate.passing(), collector.sweeping():
            return self._attachments.sync(live, owner, as_of_ns)

    def check(self, request: CheckRequest) -> Attachment:
        """Return an attachment that is as it was made."""
        with collector.sweeping():
            return self._attachments.check(request)

    def attachments(self) -> tuple[Attachment, ...]:
        """Return every attachment."""
        return self._attachments.list()

    # Reports

    def counters(self) -> Counters:
        """Return what the engine and the kernel counted."""
        drops = self._attachments.ring_drops() | self._uplink.ring_drops()
        return Counters(self._engine.counters(), drops, self._epoch)

    def status(self) -> Status:
        """Return this router at a glance."""
        table = self._cluster.table
        count_unreachable, unreachable = self._cluster.unreachable()
        own = self._cluster.own_subnets()
        lost = tuple(
            "podwire0 is gone: restart the router to have it back" if key == NODE_KEY
            else f"attachment {key} lost its device; detach it, or attach it again"
            for key in sorted(self._attachments.lost())
        )  # fmt: skip
        return Status(
            node=self._settings.node,
            engine=self._engine.name,
            version=process.version(),
            started_at_s=self._started_at_s,
            networks=self._settings.networks,
            subnets=own,
            node_addresses=tuple(interface.ip for interface in node_interfaces(own)),
            endpoint=self._settings.underlay,
            mtu_bytes=self._mtu_bytes,
            vni=self._settings.vni,
            offloads=self._offloads,
            notes=(*self._notes, *lost, *self._cluster.narrow_paths(self._mtu_bytes)),
            attachments=len(self._attachments.list()),
            peers=sum(node.name != self._settings.node for node in table.nodes),
            table_version=table.version,
            table_age_s=self._cluster.tables.age_s,
            free_addresses=self._attachments.addresses.free(),
            resident_bytes=process.resident_bytes(),
            table_error=self._cluster.tables.error,
            peers_unreachable=count_unreachable,
            unreachable=unreachable,
            source=self._cluster.source_state(),
            confinement=confine.in_force(),
        )

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        """Return the table and, of every other node in it, how its router stands."""
        table = self._cluster.table
        tallies = self._engine.counters().peers
        found = self._cluster.peers()
        return table, tuple(PeerStatus(node, report, tallies.get(node.endpoint)) for node, report in found)

    def _own_addresses(self) -> tuple[Address, ...]:
        return tuple(interface.ip for interface in node_interfaces(self._cluster.own_subnets()))

    # What the engine asks and tells (engine.interface.Host)

    def path_mtu(self, endpoint: Endpoint) -> int:
        """Return the kernel's path MTU to an endpoint; what is configured when it cannot say."""
        try:
            return underlay.path_mtu(self._settings.underlay, endpoint)
        except OSError:
            return self._mtu_bytes + underlay.overhead_bytes(self._settings.underlay)

    def _path_carries(self, endpoint: Endpoint) -> int:
        return self.path_mtu(endpoint) - underlay.overhead_bytes(self._settings.underlay)

    def probe_answered(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> None:
        """Take a peer's answer to a probe."""
        self._cluster.probe_answered(endpoint, answer, received_ns)

    def attachment_lost(self, key: AttachmentKey, why: str) -> None:
        """Note a device that is gone."""
        self._attachments.lose(key, why)

    def offload_failed(self, feature: str, why: str) -> None:
        """Note an offload that failed at run time."""
        self._note([f"{feature} is off: {why}"])
        self.events.record(EventKind.OFFLOAD_OFF, f"{feature}: {why}", node=self._settings.node)

    def question_came(self, endpoint: Endpoint, datagram: bytes, received_ns: int) -> None:
        """Take a peer's question about a packet, or its reply."""
        if self._questions is not None:  # or it has only just started
            self._questions.take(endpoint, datagram, received_ns)

    def engine_failed(self, why: str) -> None:
        """Note a bug of the engine's."""
        _log.error("engine: %s", why)
        self.events.record(EventKind.ENGINE_ERROR, why, node=self._settings.node)


class _Withdrawn(Exception):
    """Makes an ExitStack unwind as after a failure."""


def _if_failed(action: Callable[[], None]) -> Callable[[type[BaseException] | None, object, object], None]:
    """Return an exit callback that acts only when the stack unwinds because of an exception."""

    def leave(kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        if kind is not None:
            action()

    return leave
