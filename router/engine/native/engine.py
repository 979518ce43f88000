"""The native engine: the contract (router/engine/interface.py) over compiled threads, which never wait for the interpreter.

    engine.py     attachments and peers get slots; snapshots, verdicts and counts are put into plain numbers and back
    slow_path.py  what the threads cannot finish alone: ICMP errors, path MTUs, what the daemon is to be told
    seen.py       what the threads tell of single packets: drops and sightings, their parties by name
    src/          the threads themselves, in Rust; scripts/build-native.sh makes `_core` of them

A thread that meets a bug begins afresh with the fds it was lent: what was in its batch is counted as ENGINE_FAILED.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Mapping

from router.engine.interface import (
    DroppedFlow,
    EngineCounters,
    EngineSettings,
    Host,
    Sighting,
    Snapshot,
    Source,
    Tap,
)
from router.engine.native import _core
from router.engine.native.seen import REASONS, Holders, dropped_flow, sighting, tap_row
from router.engine.native.slots import PeerId, Slots
from router.engine.native.slow_path import SlowPath
from router.model import (
    NODE_KEY,
    Attachment,
    AttachmentKey,
    Endpoint,
    Limit,
    NextHop,
    Tally,
    Verdict,
    VerdictKind,
    Zone,
)
from router.wire.packet import Buffer

_PORT, _PEER = 0, 1
_ZONES = {Zone.OWN_SUBNET: 1, Zone.CLUSTER: 2, Zone.NEVER: 3}
_LEADS_TO_PEER = 4


class NativeEngine:
    """See `router.engine.interface.Engine`."""

    name = "native"

    def __init__(self, settings: EngineSettings, snapshot: Snapshot, underlay: socket.socket, host: Host) -> None:
        offloads = settings.offloads
        self._core = _core.Core(
            underlay.fileno(),
            threads=settings.threads,
            vni=settings.vni,
            mtu_bytes=settings.mtu_bytes,
            icmp_errors_per_s=settings.icmp_errors_per_s,
            max_segments=offloads.max_segments,
            tun_checksum=offloads.tun_checksum,
            tun_tso=offloads.tun_tso,
            tun_uso=offloads.tun_uso,
            udp_segment=offloads.udp_segment,
            spin_ns=settings.spin_us * 1000,
            spin_percent=settings.spin_percent,
        )
        self._changing = threading.RLock()
        self._ports: Slots[AttachmentKey] = Slots()
        self._peers: Slots[PeerId] = Slots()
        self._hops: dict[PeerId, NextHop] = {}
        """What the snapshot in force says of them."""
        self._by_endpoint: dict[Endpoint, PeerId] = {}
        self._holders = Holders(self._core)
        self._serials = itertools.count(1)
        self._slow_path = SlowPath(self._core, settings, host, self._ports, self._peers)
        self._set_routes(snapshot)

    # Routes

    def replace_routes(self, snapshot: Snapshot) -> None:
        """Swap the whole snapshot in."""
        with self._changing:
            self._set_routes(snapshot)

    def _set_routes(self, snapshot: Snapshot) -> None:
        peers = {next_hop.endpoint: next_hop for next_hop in snapshot.peers}
        hops: dict[PeerId, NextHop] = {}
        rows = []
        slots: dict[Endpoint, int] = {}
        for endpoint, next_hop in peers.items():
            peer = PeerId.of(next_hop)
            slot, serial = self._peers.find(peer) or self._peers.add(peer, next(self._serials))
            epoch = next_hop.epoch & 0xFF if next_hop.epoch else None
            known = (next_hop.offload, epoch, next_hop.up, next_hop.mtu_bytes)
            rows.append((slot, serial, endpoint.address.packed, endpoint.port, *known))
            slots[endpoint] = slot
            hops[peer] = next_hop
        leads: list[tuple[int, int]] = [(0, 0)]
        prefixes = []
        numbers: dict[int, int] = {}  # by identity: to hash a hundred thousand next hops takes most of a second
        for prefix, value in snapshot.table.items():
            number = numbers.get(id(value))
            if number is None:
                number = numbers[id(value)] = len(leads)
                leads.append((_ZONES[value], 0) if isinstance(value, Zone) else (_LEADS_TO_PEER, slots[value.endpoint]))
            prefixes.append((prefix.network_address.packed, prefix.prefixlen, number))
        node_addresses = [address.packed for address in snapshot.node_addresses]
        self._core.replace_routes(prefixes, leads, rows, snapshot.egress, node_addresses, snapshot.epoch & 0xFF)
        for peer in self._peers:  # only now: until here a thread may have meant them by their slots
            if peer not in hops:
                self._peers.remove(peer)
        self._hops = hops
        self._by_endpoint = {peer.endpoint: peer for peer in hops}
        self._slow_path.node_addresses = snapshot.node_addresses

    # Attachments

    def attach(self, attachment: Attachment, fd: int) -> None:
        """Carry packets of an attachment; ValueError if it is there already."""
        key, limits = attachment.key, attachment.limits
        with self._changing:
            if key in self._ports:
                raise ValueError(f"attachment {key} is there already")
            slot, _ = self._ports.add(key, 0)
            try:
                serial = self._core.attach(
                    slot,
                    self._holders.came(key),
                    fd,
                    [interface.ip.packed for interface in attachment.addresses],
                    key == NODE_KEY,
                    attachment.mtu_bytes,
                    _rate(limits.ingress),
                    _rate(limits.egress),
                )
            except BaseException:
                self._ports.remove(key)
                self._holders.left(key)
                raise
            self._ports.mark(key, serial)

    def detach(self, key: AttachmentKey) -> Tally:
        """Stop carrying and return the final count; KeyError if it is not there."""
        with self._changing:
            tally = _tally(self._core.detach(self._ports.slot(key)))
            self._ports.remove(key)
            self._holders.left(key)
            return tally

    # Decisions

    def decide(self, packet: Buffer, source: Source) -> Verdict:
        """Say what would become of an IP packet from that source; KeyError for a source not known."""
        with self._changing:
            if isinstance(source, AttachmentKey):
                kind, slot = _PORT, self._ports.slot(source)
            else:
                kind, slot = _PEER, self._peers.slot(self._peer(source))
            word, target = self._core.decide(bytes(packet), kind, slot)
            verdict = VerdictKind(word)
            if verdict is VerdictKind.LOCAL:
                return Verdict(verdict, self._ports.at(target))
            if verdict is VerdictKind.TUNNEL:
                return Verdict(verdict, self._hops[self._peers.at(target)])
            return Verdict(verdict, None, REASONS[target])

    def _peer(self, endpoint: Endpoint) -> PeerId:
        return self._by_endpoint[endpoint]

    # Running

    def start(self) -> None:
        """Forward in threads of its own until `stop`."""
        self._slow_path.start()
        self._core.start()

    def stop(self) -> None:
        """End the threads."""
        self._core.stop()
        self._slow_path.stop()

    def forward(self, budget: int) -> int:
        """Handle at most `budget` waiting reads in this thread; only while not started."""
        reads = self._core.forward(budget)
        self._slow_path.drain()
        return reads

    def close(self) -> None:
        """Free what the engine itself made; it was stopped before."""
        # Its epoll fds go with the object.

    def sabotage(self) -> None:
        """Let the next batch meet a bug: for tests of what happens then."""
        self._core.sabotage()

    # Counters

    def counters(self) -> EngineCounters:
        """Return everything counted so far, each thread between two batches."""
        with self._changing:
            ports, peers, strangers, gone, suppressed, restarts, socket_drops, batches = self._core.counters()
            return EngineCounters(
                attachments={key: _tally(ports[self._ports.slot(key)]) for key in self._ports},
                peers={peer.endpoint: _tally(peers[self._peers.slot(peer)]) for peer in self._peers},
                strangers=_tally(strangers),
                gone=_tally(gone),
                icmp_suppressed=suppressed,
                socket_drops=socket_drops,
                restarts=restarts,
                batches=tuple(batches),
            )

    # What became of packets

    def drops(self) -> tuple[DroppedFlow, ...]:
        """Return what was dropped lately, newest first."""
        with self._changing:
            return tuple(dropped_flow(row, self._holders) for row in self._core.drops())

    def watch(self, taps: tuple[Tap, ...]) -> None:
        """See packets by these taps from now on, by no others."""
        with self._changing:
            self._core.watch([tap_row(tap, self._place(tap.party)) for tap in taps])

    def _place(self, party: Source | None) -> tuple[int, int, int] | None:
        """Return kind, slot and serial of who is there now: another that gets the slot later is not meant."""
        if isinstance(party, AttachmentKey):
            found = self._ports.find(party)
            return None if found is None else (_PORT, *found)
        try:
            return None if party is None else (_PEER, *self._peers.where(self._peer(party)))
        except KeyError:
            return None

    def sightings(self, timeout_s: float) -> tuple[tuple[Sighting, ...], Mapping[int, int]]:
        """Return what was seen since the last call, and how many were lost by tap."""
        with self._changing:
            self._holders.read(True)
        try:
            rows, lost = self._core.sightings(timeout_s)
            return tuple(sighting(row, self._holders) for row in rows), dict(lost)
        finally:
            with self._changing:
                self._holders.read(False)


def _rate(limit: Limit | None) -> tuple[int, int] | None:
    return None if limit is None else (limit.bytes_per_s, limit.burst_bytes)


def _tally(counts: _core.Counts) -> Tally:
    *numbers, drops = counts
    received, received_bytes, frames, delivered, tunnelled, *rest = numbers
    dropped = {REASONS[number]: packets for number, packets in enumerate(drops) if packets}
    return Tally(received, received_bytes, frames, delivered, tunnelled, dropped, *rest)
