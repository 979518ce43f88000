"""The Python engine: the reference, always there. One loop for both directions, or one each, over the same attachments.

egress.py   TUN fds → table → TUN fd | socket        loop.py        the thread both run in
ingress.py  socket  → table → TUN fd                 sender.py      trains to the socket
ports.py    attachments, peers, the view of a batch  exceptions.py  the slow path: drops, ICMP errors, fragments
taps.py     who watches packets, what they saw       droplog.py     what was dropped lately
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from router.decide import MALFORMED, decide_transit, same_peer
from router.engine.bucket import Bucket
from router.engine.droplog import SockAddr, newest_first
from router.engine.egress import Egress
from router.engine.ingress import Ingress
from router.engine.interface import (
    BATCH_BOUNDS,
    BATCH_BYTES,
    DroppedFlow,
    EngineCounters,
    EngineSettings,
    Host,
    Sighting,
    Snapshot,
    Source,
    Tap,
)
from router.engine.loop import Loop
from router.engine.ports import EGRESS, INGRESS, Party, Peer, Port, View
from router.engine.sender import Sender
from router.engine.taps import Sightings, Taps
from router.model import Attachment, AttachmentKey, DropReason, Endpoint, NextHop, Tally, Verdict
from router.wire.packet import Buffer, parse_ip

T = TypeVar("T")

_SO_MEMINFO, _SK_MEMINFO_DROPS = 55, 8  # linux/sock_diag.h


class PythonEngine:
    """See `router.engine.interface.Engine`."""

    name = "python"

    def __init__(self, settings: EngineSettings, snapshot: Snapshot, underlay: socket.socket, host: Host) -> None:
        self._settings = settings
        self._socket = underlay
        self._changing = threading.Lock()
        self._gone = Tally()
        self._ports: dict[AttachmentKey, Port] = {}
        self._ports_by_fd: dict[int, Port] = {}
        self._peers: dict[Endpoint, Peer] = {}
        self._egress = Egress(settings, self._new_sender(host), host)
        self._ingress = Ingress(settings, underlay, self._new_sender(host), host)
        names = ("egress", "ingress") if settings.threads > 1 else ("engine",)
        self._host = host
        self._exceptions = self._egress.exceptions, self._ingress.exceptions
        """By direction."""
        self._sightings = Sightings()
        self._batches = ([0] * len(BATCH_BOUNDS), [0] * len(BATCH_BOUNDS))
        self._loops = tuple(Loop(name, self._batch, self._recover) for name in names)
        self._outward, self._inward = self._loops[0], self._loops[-1]
        self._inward.watch(underlay.fileno())
        self._set_routes(snapshot)

    def _new_sender(self, host: Host) -> Sender:
        return Sender(self._socket, self._settings.offloads, self._settings.overhead_bytes, host)

    # Batches, each in its loop's thread

    def _batch(self, fd: int, most: int) -> int:
        port = self._ports_by_fd.get(fd)
        if port is None:
            if fd == self._socket.fileno():
                return self._counted(INGRESS, self._ingress.batch(self._view, most))
            return 0  # detached between the wake-up and now
        if port.shaper is not None:
            reads = self._shaped_batch(port, port.shaper, most)
        else:
            reads = self._egress.batch(port, self._view, most)
        if port.lost:
            self._outward.unwatch(fd)
        return self._counted(EGRESS, reads)

    def _counted(self, way: int, reads: int) -> int:
        """Count a batch in the class of its reads, whose upper bounds are the powers of two (BATCH_BOUNDS)."""
        if reads:
            self._batches[way][(reads - 1).bit_length()] += 1
        return reads

    def _shaped_batch(self, port: Port, shaper: Bucket, most: int) -> int:
        """Read what the Pod's limit lets it send; in debt, leave the rest in its interface until that is paid."""
        reads = 0
        tokens = shaper.tokens(time.monotonic())
        if tokens > 0:
            before = port.tallies[EGRESS].received_bytes
            reads = self._egress.batch(port, self._view, most, min(BATCH_BYTES, tokens))
            shaper.take(port.tallies[EGRESS].received_bytes - before)
        wait_s = shaper.wait_s()
        if wait_s > 0:
            self._outward.pause(port.fd, wait_s)
        return reads

    def _recover(self, loop: Loop, why: str) -> None:
        """Clean up behind a batch that raised, and tell of it: what it had in hand is counted as lost to the bug."""
        view = self._view
        if loop is self._outward:
            self._egress.forget()
            for port in view.ports.values():
                self._settle_failure(port.tallies[EGRESS], port, EGRESS)
                if port.lost:
                    loop.unwatch(port.fd)
        if loop is self._inward:
            self._ingress.forget()
            for peer in view.peers.values():
                self._settle_failure(peer.tallies[INGRESS], peer, INGRESS)
            self._settle_failure(self._ingress.strangers, self._ingress.came_from[:2], INGRESS)
        self._host.engine_failed(why)

    def _settle_failure(self, tally: Tally, source: Party | SockAddr, way: int) -> None:
        """Count what was received and has no fate: it was in the hands of a batch that failed."""
        lost = tally.balance
        if lost > 0:
            tally.drop(DropReason.ENGINE_FAILED, lost)
            self._exceptions[way].log.note(source, DropReason.ENGINE_FAILED, None, lost, 0)
        elif lost < 0:  # joined packets are counted after their fate may be
            tally.received_packets -= lost

    def _between_batches(self, work: Callable[[], T]) -> T:
        """Run `work` while neither loop is in a batch."""
        for loop in self._loops[1:]:
            work = partial(loop.call, work)
        return self._outward.call(work)

    # Routes

    def replace_routes(self, snapshot: Snapshot) -> None:
        """Swap the whole snapshot in."""
        with self._changing:
            self._set_routes(snapshot)

    def _set_routes(self, snapshot: Snapshot) -> None:
        old = self._peers
        peers = {}
        changed: list[tuple[Peer, NextHop]] = []
        for next_hop in snapshot.peers:
            peer = old.get(next_hop.endpoint)
            if peer is None or not same_peer(peer.next_hop, next_hop):
                peer = Peer(next_hop, self._settings.mtu_bytes)
            elif peer.next_hop is not next_hop and peer.next_hop != next_hop:
                changed.append((peer, next_hop))
            peers[next_hop.endpoint] = peer
        self._peers = peers
        view = View(snapshot, dict(self._ports), peers)
        leaving = [peer for endpoint, peer in old.items() if peers.get(endpoint) is not peer]

        def swap() -> None:
            self._view = view
            for peer, next_hop in changed:
                peer.become(next_hop)

        self._between_batches(swap)
        # From here on nobody counts on them; adding them up may take its time.
        last = Tally()
        for peer in leaving:
            last = last.plus(peer.tally)
            peer.forget_ways()

        def retire() -> None:
            self._gone = self._gone.plus(last)

        self._between_batches(retire)

    # Attachments

    def attach(self, attachment: Attachment, fd: int) -> None:
        """Carry packets of an attachment; ValueError if it is there already."""
        with self._changing:
            if attachment.key in self._ports:
                raise ValueError(f"attachment {attachment.key} is there already")
            port = Port(attachment, fd)
            self._outward.watch(fd)  # may fail, and then nothing was done
            self._ports[attachment.key] = port
            self._swap_ports()
            self._ports_by_fd[fd] = port

    def detach(self, key: AttachmentKey) -> Tally:
        """Stop carrying and return the final count; KeyError if it is not there."""
        with self._changing:
            port = self._ports.pop(key)
            self._outward.unwatch(port.fd)
            self._ports_by_fd.pop(port.fd, None)
            self._swap_ports(leaving=port)
            return port.tally

    def _swap_ports(self, leaving: Port | None = None) -> None:
        view = View(self._view.snapshot, dict(self._ports), self._peers, self._view)

        def swap() -> None:
            self._view = view
            if leaving is not None:
                self._outward.unwatch(leaving.fd)  # again, now that no batch can have resumed it
                self._gone = self._gone.plus(leaving.tally)
                leaving.forget_ways()

        self._between_batches(swap)

    # Decisions

    def decide(self, packet: Buffer, source: Source) -> Verdict:
        """Say what would become of an IP packet from that source; KeyError for a source not known."""
        view = self._view
        party: Party = view.ports[source] if isinstance(source, AttachmentKey) else view.peers[source]
        header = parse_ip(packet, 0, len(packet))
        if header is None:
            return MALFORMED
        way = view.way(header.addresses, party.origin)
        target = way.port or way.peer
        if target is None:
            return way.verdict
        nodes = party.origin.is_node or target.origin.is_node
        return decide_transit(header, len(packet), target.mtu_bytes, not nodes) or way.verdict

    # Running

    def start(self) -> None:
        """Forward in threads of its own until `stop`."""
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """End the threads."""
        for loop in self._loops:
            loop.stop()

    def forward(self, budget: int) -> int:
        """Handle at most `budget` waiting reads in this thread; only while not started."""
        done = 0
        for loop in self._loops:
            if done < budget:
                done += loop.poll(budget - done)
        return done

    def close(self) -> None:
        """Free what the engine itself made; it was stopped before."""
        for loop in self._loops:
            loop.close()

    # Counters

    def counters(self) -> EngineCounters:
        """Return everything counted so far, both loops between two batches."""
        return self._between_batches(self._count)

    def _count(self) -> EngineCounters:
        return EngineCounters(
            attachments={key: port.tally for key, port in self._view.ports.items()},
            peers={endpoint: peer.tally for endpoint, peer in self._view.peers.items()},
            strangers=self._ingress.strangers.plus(Tally()),
            gone=self._gone.plus(Tally()),
            icmp_suppressed=sum(each.suppressed for each in self._exceptions),
            socket_drops=self._socket_drops(),
            restarts=sum(loop.restarts for loop in self._loops),
            batches=tuple(map(sum, zip(*self._batches, strict=True))),
        )

    def _socket_drops(self) -> int:
        try:
            memory = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
            return int(struct.unpack_from("=I", memory, 4 * _SK_MEMINFO_DROPS)[0])
        except OSError:
            return 0

    # What became of packets

    def drops(self) -> tuple[DroppedFlow, ...]:
        """Return what was dropped lately, newest first."""
        return self._between_batches(lambda: newest_first(each.log for each in self._exceptions))

    def watch(self, taps: tuple[Tap, ...]) -> None:
        """See packets by these taps from now on, by no others."""
        with self._changing:
            there = [(tap, self._party(tap.party)) for tap in taps]
            there = [(tap, party) for tap, party in there if party is not None or tap.party is None]
            watching = Taps(there, self._sightings) if there else None

            def swap() -> None:
                for each in self._exceptions:
                    each.taps = watching

            self._between_batches(swap)
        self._sightings.wake()

    def _party(self, source: Source | None) -> Party | None:
        if isinstance(source, AttachmentKey):
            return self._ports.get(source)
        return None if source is None else self._peers.get(source)

    def sightings(self, timeout_s: float) -> tuple[tuple[Sighting, ...], Mapping[int, int]]:
        """Return what was seen since the last call, and how many were lost by tap."""
        return self._sightings.take(timeout_s)
