"""The daemon: what people and runtimes asked for, made true on this node.

    journal → subnet table → engine with its routes → podwire0 → attachments of the last run → control

It owns every fd and every thread but the engine's own; `control` only translates.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path

from router import collector, overlay
from router.attachments import Attachments
from router.cluster import Cluster, Underlay
from router.config import Settings
from router.engine.choose import AUTO, BUILD, NAMES, choose
from router.engine.interface import Engine, EngineSettings
from router.errors import Kind, Refusal
from router.events import EventKind, EventLog
from router.journal import Identity, Journal
from router.kernel import underlay
from router.kernel.links import local_prefixes
from router.model import NODE_KEY, Attachment, AttachmentKey, Endpoint, Node, Prefix, SubnetTable
from router.observe.names import Names
from router.observe.observatory import Observatory
from router.ports import Ports
from router.reconcile import Reconciler
from router.status import AttachRequest, CheckRequest, Counters, PeerStatus, Status
from router.subnets.check import overlap_with_local
from router.tombstones import Tombstones
from router.uplink import Uplink, node_interfaces

_log = logging.getLogger(__name__)

_CORES_FOR_TWO_THREADS = 4


class Daemon:
    """One router. Made running; `close` ends it and leaves every device as it is for the next."""

    def __init__(self, settings: Settings) -> None:
        """Start everything, or raise Refusal with nothing left behind."""
        self._settings = settings
        self._started_at_s = time.time()
        self._notes: list[str] = []
        self.events = EventLog()
        engine_name, factory = choose(settings.engine)
        if settings.engine == AUTO and engine_name != NAMES[0]:
            _log.info("engine %s, as the %s one is not built here: build it with %s", engine_name, NAMES[0], BUILD)
        with ExitStack() as undo:
            overlap_with_local(settings.networks, local_prefixes(besides=NODE_KEY.if_name))
            self._mtu_bytes = overlay.mtu_bytes(settings)
            self._offloads, notes = overlay.offloads(settings)
            self._note(notes)
            self._journal = Journal(settings.state_dir / "router.db")
            undo.callback(self._journal.close)
            undo.push(_if_failed(self._journal.withdraw))
            identity = self._identify()
            self._epoch = identity.counters_epoch
            self._cluster = Cluster(
                settings, self._journal, self.events, identity.epoch, self._take_subnets, self._hold
            )
            undo.callback(self._cluster.stop)  # a source may run from its first reading on
            first = self._cluster.first()
            socket = underlay.open_underlay(settings.underlay, self._offloads)
            undo.callback(socket.close)
            self._engine: Engine = factory(
                EngineSettings(
                    vni=settings.vni,
                    mtu_bytes=self._mtu_bytes,
                    overhead_bytes=underlay.overhead_bytes(settings.underlay),
                    offloads=self._offloads,
                    threads=settings.engine_threads or _threads(),
                    spin_us=settings.spin_us,
                    spin_percent=settings.spin_percent,
                ),
                first,
                socket,
                self,
            )
            self._ports = Ports(settings.networks, settings.egress)
            self._attachments = Attachments(
                self._journal,
                self._engine,
                self.events,
                self._ports,
                self._mtu_bytes,
                self._offloads,
                settings.address_rest_s,
            )
            undo.callback(self._attachments.close)
            tombstones = Tombstones(settings.socket_path.parent / "tombstones")
            self._reconciler = Reconciler(self._attachments, tombstones)
            self._uplink = Uplink(
                settings.networks, self._mtu_bytes, self._offloads, settings.egress, settings.masquerade
            )
            undo.callback(self._uplink.close)
            undo.push(_if_failed(self._uplink.withdraw))
            own = self._cluster.own_subnets()
            self._attachments.restore(own)
            self._note(self._uplink.apply(own, self._engine))
            self._reconciler.round()
            undo.callback(self._engine.close)
            undo.callback(self._engine.stop)
            self._engine.start()
            undo.callback(self._reconciler.stop)
            self._reconciler.start()
            undo.callback(self._cluster.stop)
            self._cluster.start(self._engine, Underlay(socket, self._mtu_bytes, self._path_carries))
            self.observatory = Observatory(Names(settings.node, self.attachments, self._cluster.others), self._engine)
            undo.callback(self.observatory.close)
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

    def _identify(self) -> Identity:
        """Say whose journal it is, refuse another node's, and begin a new epoch of counters."""
        name = self._settings.node
        known = self._journal.node()
        if known is not None and known.name != name:
            raise Refusal(
                Kind.STATE,
                f"state directory {self._settings.state_dir} belongs to node {known.name!r}, this is {name!r}: "
                "use another --state-dir, or remove it if that node is no more",
            )
        identity = Identity(name, known.epoch if known else str(uuid.uuid4()), str(uuid.uuid4()))
        self._journal.set_node(identity)
        return identity

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
        return self._cluster.tables.replace(nodes, expected_version)

    def upsert_subnets(self, node: Node) -> SubnetTable:
        """Add or replace one node of the table."""
        return self._cluster.tables.upsert(node)

    def remove_subnets(self, name: str) -> SubnetTable:
        """Take one node out of the table."""
        return self._cluster.tables.remove(name)

    # Attachments

    def _hold(self, why: str) -> None:
        self._attachments.addresses.hold(why)

    def attach(self, request: AttachRequest) -> Attachment:
        """Give a Pod its interface. Idempotent."""
        with collector.sweeping():
            return self._attachments.attach(request)

    def detach(self, key: AttachmentKey) -> bool:
        """Take it away; False when there was none."""
        with collector.sweeping():
            return self._attachments.detach(key)

    def sync(self, live: Collection[AttachmentKey], owner: str, as_of_ns: int) -> tuple[AttachmentKey, ...]:
        """Release all of an owner but the live set, as it was at a time."""
        with collector.sweeping():
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
            version=metadata.version("podwire"),
            started_at_s=self._started_at_s,
            networks=self._settings.networks,
            subnets=own,
            node_addresses=tuple(interface.ip for interface in node_interfaces(own)),
            endpoint=self._settings.underlay,
            mtu_bytes=self._mtu_bytes,
            vni=self._settings.vni,
            offloads=self._offloads,
            notes=(*self._notes, *lost),
            attachments=len(self._attachments.list()),
            peers=sum(node.name != self._settings.node for node in table.nodes),
            table_version=table.version,
            table_age_s=self._cluster.tables.age_s,
            free_addresses=self._attachments.addresses.free(),
            resident_bytes=_resident_bytes(),
            table_error=self._cluster.tables.error,
            peers_unreachable=count_unreachable,
            unreachable=unreachable,
            source=self._cluster.source_state(),
        )

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        """Return the table and, of every other node in it, how its router stands."""
        table = self._cluster.table
        tallies = self._engine.counters().peers
        found = self._cluster.peers()
        return table, tuple(PeerStatus(node, report, tallies.get(node.endpoint)) for node, report in found)

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


def _threads() -> int:
    """Return how many engine threads this machine is worth.

    Threads of Python wait for each other's lock at every system call: on two cores, shared with the Pods, one thread
    spends a third less CPU a gigabyte than two (docs/decisions/0011-engine-threads.md).
    """
    return 1 if len(os.sched_getaffinity(0)) < _CORES_FOR_TWO_THREADS else 2


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
