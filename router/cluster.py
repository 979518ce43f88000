"""What this node knows of the cluster: the subnet table from its source, what probes find of the peers, one snapshot of both.

source → table, checked and in force (subnets/tables.py) ─┐
                                                          ├─→ snapshot → engine
probes → which peers answer, what their paths carry ──────┘
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from router import overlay
from router.config import Settings
from router.engine.interface import Engine, Snapshot
from router.errors import Refusal
from router.events import EventKind, EventLog
from router.journal import Journal
from router.model import DropReason, Endpoint, Node, Prefix, SubnetTable, Tally
from router.peers.health import PeerState
from router.peers.prober import Change, Prober, Report
from router.peers.reach import Reach
from router.routes import Routes
from router.subnets.choose import open_source
from router.subnets.source import Lease, SourceState
from router.subnets.tables import Tables

_log = logging.getLogger(__name__)

_MOST_NAMED = 16
_ASK_AGAIN_S = 5.0
_COUNTED_FOR_S = 0.2
"""How long a count of the engine's is good for the question whether a peer was heard of."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """What probing needs to know of the tunnel."""

    socket: socket.socket
    mtu_bytes: int
    """Overlay MTU."""
    path_mtu_bytes: Callable[[Endpoint], int]
    """The kernel's opinion of a path, as an inner packet."""


class Cluster:
    """Keeps the engine's snapshot true to table and peers. Thread-safe; a `subnets.source.Listener`."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        events: EventLog,
        identity: str,
        take_subnets: Callable[[tuple[Prefix, ...], Collection[Node]], None],
        hold_addresses: Callable[[str], None],
        *,
        again: bool = False,
    ) -> None:
        """`again`: a router of these settings ran here a moment ago, so its table will do until the source has been asked.

        `take_subnets` makes this node's own subnets actual, beside those of others, or raises; `hold_addresses` stops giving out addresses, or (empty) goes on.
        """
        self._settings = settings
        self._events = events
        self._take_subnets = take_subnets
        self._hold_addresses = hold_addresses
        self._open_source = partial(open_source, settings, journal, identity)
        self._tables = Tables(settings, journal, self._apply, self._announce)
        again = again and settings.subnets_file is None and bool(self._tables.current.nodes)
        self._late = again and self._leased_as_in_table(journal)
        """Whether the source is asked only when packets flow: its client alone takes a fifth of a second to import."""
        self._source = None if self._late else self._open_source()
        self._file = settings.subnets_file is not None
        self._routes = Routes(settings.node, settings.networks, settings.egress)
        self._reach = Reach(settings.underlay)
        self._changing = threading.Lock()
        """Of the snapshot in force. Taken after the tables' own lock, never before it."""
        self._enacted = SubnetTable(0)
        self._lease: Lease | None = None
        """As the source said last; None for one that leases nothing."""
        self._engine: Engine | None = None
        self._prober: Prober | None = None
        self._counted: tuple[float, dict[Endpoint, int]] = (float("-inf"), {})

    # Start and end

    def first(self) -> Snapshot:
        """Read the first table, or take the last one that was in force; return what an engine begins with. Raise Refusal."""
        table = self._first_table()
        self._enacted = table
        return self._routes.snapshot(table, {})

    def _first_table(self) -> SubnetTable:
        if self._source is None:
            return self._tables.confirm()
        try:
            nodes = self._source.read()
        except Refusal as refusal:
            if not self._file or not self._tables.current.nodes:
                raise
            last = self._tables.confirm()
            self.table_refused(refusal.message)
            return last
        return self._tables.confirm() if nodes is None else self._tables.prepare(nodes)

    def start(self, engine: Engine, underlay: Underlay) -> None:
        """Follow the source and ask the peers from now on; the engine has the first snapshot."""
        self._engine = engine
        self._prober = Prober(
            underlay.socket,
            self._settings.vni,
            underlay.mtu_bytes,
            overlay.least_mtu_bytes(self._settings),
            heard=self._heard,
            path_mtu_bytes=underlay.path_mtu_bytes,
            changed=self._peers_changed,
        )
        self._prober.watch(self._others(self._enacted))
        self._prober.start()
        if self._late:
            self._ask_source()
        self._follow()

    def _ask_source(self) -> None:
        """Ask the source what the table is, while another is in force. Raise Refusal."""
        self._source = self._open_source()
        if self._source is not None and (nodes := self._source.read()) is not None:
            self._tables.adopt(nodes)

    def _follow(self) -> None:
        """Be told by the source from now on, which was read."""
        if self._source is not None:
            state = self._source.state()
            with self._changing:
                self._lease = state.lease
                self._hold_or_give()
            if not state.connected and not self._file:
                self.connection_changed(state)
            self._source.start(self)

    # While a successor tries to take over

    def pause(self) -> None:
        """Change nothing of the table any more, and have all of it in the journal. What is leased stays so."""
        if self._source is not None:
            self._source.stop()
            if self._source.state().lease is not None:
                self._hold_addresses("its lease was not renewed while a successor tried to take over")
        self._tables.flush()

    def resume(self, ended: threading.Event) -> None:
        """Follow the source again; try until it lets us, or `ended` is set."""
        while not ended.is_set():
            try:
                if self._source is not None:
                    self._source.stop()  # it may run still: a successor is refused before anything pauses, too
                self._ask_source()
                self._follow()
            except Refusal as refusal:
                self.table_refused(refusal.message)
                ended.wait(_ASK_AGAIN_S)
            else:
                return

    def stop(self) -> None:
        """End what runs; may be called twice. What is leased stays so for the next router."""
        if self._source is not None:
            self._source.stop()
        if self._prober is not None:
            self._prober.stop()
        self._tables.close()

    # The table

    @property
    def table(self) -> SubnetTable:
        """The table in force."""
        return self._tables.current

    @property
    def tables(self) -> Tables:
        """The table's keeper: to change it, and to ask for its age and why the newest was refused."""
        return self._tables

    def own_subnets(self) -> tuple[Prefix, ...]:
        """Return this node's subnets."""
        return self._tables.own_subnets()

    def others(self) -> list[Node]:
        """Return every other node of the table."""
        return self._others(self._tables.current)

    def _others(self, table: SubnetTable) -> list[Node]:
        return [node for node in table.nodes if node.name != self._settings.node]

    def _apply(self, table: SubnetTable) -> None:
        """Put a checked table into force."""
        assert self._engine is not None
        others = self._others(table)
        with self._changing:
            snapshot = self._routes.snapshot(table, self._found())
            self._take_subnets(self._tables.own_subnets(table), others)
            self._engine.replace_routes(snapshot)
            self._enacted = table
            self._hold_or_give()
        if self._prober is not None:
            self._prober.watch(others)

    def _announce(self, table: SubnetTable) -> None:
        """Tell of a table that is in force."""
        message = f"version {table.version}, {len(table.nodes)} nodes"
        _log.info("subnet table: %s", message)
        self._record(EventKind.TABLE_CHANGED, message)

    # What the source tells (subnets.source.Listener)

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        """Put what the source says into force. Raise Refusal."""
        self._tables.adopt(nodes)

    def table_refused(self, message: str) -> None:
        """Note a table that did not come into force."""
        self._tables.error = message
        _log.error("subnet table refused, the last one stays in force: %s", message)
        self._record(EventKind.TABLE_REFUSED, message)

    def connection_changed(self, state: SourceState) -> None:
        """Note a store that went away or is back."""
        if state.connected:
            _log.info("%s is back", state.kind)
            self._record(EventKind.SOURCE_FOUND, f"{state.kind} {state.where}")
        else:
            _log.warning("%s: %s; the last table stays in force", state.kind, state.error)
            self._record(EventKind.SOURCE_LOST, f"{state.kind}: {state.error}; the last table stays in force")

    def lease_changed(self, lease: Lease) -> None:
        """Give out addresses only while the subnets are this node's for sure."""
        subnets = ", ".join(map(str, lease.subnets)) or "no subnet"
        with self._changing:
            self._lease = lease
            self._hold_or_give()
        if lease.held:
            _log.info("lease of %s, epoch %d", subnets, lease.epoch)
            self._record(EventKind.LEASE_TAKEN, f"{subnets}, epoch {lease.epoch}")
        else:
            _log.error("lease of %s is not held: %s; no address is given out", subnets, lease.why)
            self._record(EventKind.LEASE_LOST, f"{subnets}: {lease.why}; no address is given out")

    def _hold_or_give(self) -> None:
        """Give out addresses of the subnets in force while it is these that are leased for sure; under `_changing`."""
        lease = self._lease
        if lease is None:
            return
        if not lease.held:
            self._hold_addresses(_why_held_back(lease))
        elif set(lease.subnets) != set(self._tables.own_subnets(self._enacted)):
            self._hold_addresses("this node's lease is of other subnets than the table in force gives it")
        else:
            self._hold_addresses("")

    def _leased_as_in_table(self, journal: Journal) -> bool:
        """Tell whether what is remembered of a lease is of the subnets that the last table has."""
        if self._settings.etcd is None:
            return True
        last = journal.memory("etcd").load()
        return last is not None and {*map(str, self._tables.own_subnets())} == {*map(str, last.get("subnets", ()))}

    # Peers

    def probe_answered(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> None:
        """Take a peer's answer, from an engine's thread."""
        if self._prober is not None:
            self._prober.take(endpoint, answer, received_ns)

    def _peers_changed(self, changes: list[Change]) -> None:
        """Send packets to those that answer, reject those to the others; from the prober's thread."""
        assert self._engine is not None
        with self._changing:
            self._engine.replace_routes(self._routes.snapshot(self._enacted, self._found()))
        for kind, state in ((EventKind.PEER_DOWN, PeerState.DOWN), (EventKind.PEER_UP, PeerState.UP)):
            those = [change for change in changes if change.state is state and change.flipped]
            if len(those) > _MOST_NAMED:
                named = ", ".join(change.name for change in those[:_MOST_NAMED])
                self._record(kind, f"{len(those)} at once: {named}, …")
                continue
            for change in those:
                self._record(kind, change.why, change.name)

    def _found(self) -> Mapping[str, tuple[bool, int]]:
        return self._prober.found() if self._prober is not None else {}

    def _heard(self, endpoint: Endpoint) -> int:
        """Return how many packets came from a peer so far, as counted a moment ago."""
        assert self._engine is not None
        at_s, counts = self._counted
        if time.monotonic() - at_s > _COUNTED_FOR_S:
            peers = self._engine.counters().peers
            counts = {each: _of_this_network(tally) for each, tally in peers.items()}
            self._counted = time.monotonic(), counts
        return counts.get(endpoint, 0)

    # Reports

    def peers(self) -> list[tuple[Node, Report | None]]:
        """Return every other node and what is known of its router."""
        reports = self._prober.reports() if self._prober is not None else {}
        return [(node, reports.get(node.name)) for node in self.others()]

    def round_trips(self) -> dict[Endpoint, float]:
        """Return the smoothed round trip to each peer in seconds, where it is known."""
        found = ((node.endpoint, report.rtt_s) for node, report in self.peers() if report is not None)
        return {endpoint: rtt_s for endpoint, rtt_s in found if rtt_s is not None}

    def silence_of(self, name: str) -> str:
        """Return why a peer is down; empty when it is not, or is not asked."""
        report = self._prober.reports().get(name) if self._prober is not None else None
        return report.why if report is not None else ""

    def unreachable(self) -> tuple[int, tuple[str, ...]]:
        """Return how many peers do not answer or have no way to them, and some of them with the reason."""
        peers = self.peers()
        no_way = self._reach.unreachable([node for node, _ in peers])
        found = []
        for node, report in peers:
            why = no_way.get(node.name) or (report.why if report is not None else "")
            if why:
                found.append(f"{node.name} at {node.endpoint}: {why}")
        return len(found), tuple(found[:_MOST_NAMED])

    def narrow_paths(self, overlay_mtu_bytes: int) -> tuple[str, ...]:
        """Return which paths carry less than the overlay's MTU, some of them, a sentence each."""
        found = [
            f"the path to {node.name} carries {report.mtu_bytes} bytes of the overlay MTU {overlay_mtu_bytes}: the underlay "
            f"there is smaller, or has an MTU hole; Pods are told (`podwire trace` says more)"
            for node, report in self.peers()
            if report is not None and 0 < report.mtu_bytes < overlay_mtu_bytes
        ]
        return tuple(found[:_MOST_NAMED])

    def source_state(self) -> SourceState:
        """Say how the source stands."""
        if self._source is None:
            return SourceState("grpc", "", True, time.monotonic())
        return self._source.state()

    def _record(self, kind: EventKind, message: str, node: str = "") -> None:
        self._events.record(kind, message, node=node or self._settings.node)


def _of_this_network(tally: Tally) -> int:
    """Return how many packets speak for a peer's being there: not what it says to another network."""
    strange = (DropReason.WRONG_NETWORK, DropReason.BAD_ENCAPSULATION)
    return tally.received_packets - sum(tally.dropped.get(reason, 0) for reason in strange)


def _why_held_back(lease: Lease) -> str:
    return f"this node's lease of its subnets is not held: {lease.why or 'it was not taken yet'}"
