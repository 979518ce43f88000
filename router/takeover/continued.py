"""An engine whose counters go on where those of another process's stood."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from router.engine.interface import DroppedFlow, Engine, EngineCounters, Sighting, Snapshot, Source, Tap
from router.model import Attachment, AttachmentKey, Tally, Verdict
from router.wire.packet import Buffer

T = TypeVar("T")


class ContinuedEngine:
    """See `router.engine.interface.Engine`. What was counted before belongs to who is still there, else to `gone`."""

    def __init__(self, engine: Engine, snapshot: Snapshot) -> None:
        self._engine = engine
        self.name = engine.name
        self._lock = threading.Lock()
        self._before = EngineCounters({}, {}, Tally(), Tally())
        self._nodes = {peer.endpoint: peer.node for peer in snapshot.peers}
        """Who was where when it was counted: a peer is node and endpoint."""
        self._snapshot = snapshot

    def go_on_from(self, before: EngineCounters, same_socket: bool) -> None:
        """Take over what was counted before; the kernel's count of a socket's drops goes with the socket."""
        with self._lock:
            self._before = replace(
                before,
                attachments=dict(before.attachments),
                peers=dict(before.peers),
                socket_drops=0 if same_socket else before.socket_drops,
            )
            self._retire_peers(self._snapshot)

    def replace_routes(self, snapshot: Snapshot) -> None:
        """Swap the whole snapshot in."""
        with self._lock:
            self._engine.replace_routes(snapshot)
            self._snapshot = snapshot
            if self._before.peers:
                self._retire_peers(snapshot)

    def _retire_peers(self, snapshot: Snapshot) -> None:
        present = {peer.endpoint: peer.node for peer in snapshot.peers}
        left = {each for each in self._before.peers if present.get(each, "") != self._nodes.get(each)}
        if left:
            peers = {each: tally for each, tally in self._before.peers.items() if each not in left}
            gone = self._before.gone
            for each in left:
                gone = gone.plus(self._before.peers[each])
            self._before = replace(self._before, peers=peers, gone=gone)

    def attach(self, attachment: Attachment, fd: int) -> None:
        """Carry packets of an attachment; ValueError if it is there already."""
        self._engine.attach(attachment, fd)

    def detach(self, key: AttachmentKey) -> Tally:
        """Stop carrying and return the final count, from before on; KeyError if it is not there."""
        with self._lock:
            tally = self._engine.detach(key)
            before = self._before.attachments.get(key)
            if before is None:
                return tally
            others = {each: tally for each, tally in self._before.attachments.items() if each != key}
            self._before = replace(self._before, attachments=others, gone=self._before.gone.plus(before))
            return before.plus(tally)

    def decide(self, packet: Buffer, source: Source) -> Verdict:
        """Say what would become of an IP packet from that source."""
        return self._engine.decide(packet, source)

    def start(self) -> None:
        """Forward in threads of the engine's own until `stop`."""
        self._engine.start()

    def stop(self) -> None:
        """End the threads."""
        self._engine.stop()

    def close(self) -> None:
        """Free what the engine itself made."""
        self._engine.close()

    def forward(self, budget: int) -> int:
        """Handle at most `budget` waiting reads in the caller's thread."""
        return self._engine.forward(budget)

    def counters(self) -> EngineCounters:
        """Return everything counted, from before on."""
        with self._lock:
            now, before = self._engine.counters(), self._before
        attachments, gone = _sums(now.attachments, before.attachments, now.gone.plus(before.gone))
        peers, gone = _sums(now.peers, before.peers, gone)
        batches = now.batches
        if len(batches) == len(before.batches):
            batches = tuple(map(sum, zip(now.batches, before.batches, strict=True)))
        return replace(
            now,
            attachments=attachments,
            peers=peers,
            strangers=now.strangers.plus(before.strangers),
            gone=gone,
            icmp_suppressed=now.icmp_suppressed + before.icmp_suppressed,
            socket_drops=now.socket_drops + before.socket_drops,
            restarts=now.restarts + before.restarts,
            batches=batches,
        )

    def drops(self) -> tuple[DroppedFlow, ...]:
        """Return what was dropped lately, since this process began."""
        return self._engine.drops()

    def watch(self, taps: tuple[Tap, ...]) -> None:
        """See packets by these taps from now on."""
        self._engine.watch(taps)

    def sightings(self, timeout_s: float) -> tuple[tuple[Sighting, ...], Mapping[int, int]]:
        """Return what was seen since the last call."""
        return self._engine.sightings(timeout_s)


def _sums(now: Mapping[T, Tally], before: Mapping[T, Tally], gone: Tally) -> tuple[dict[T, Tally], Tally]:
    """Add up by party; what is of none that is there is gone."""
    sums = dict(now)
    for party, tally in before.items():
        if party in sums:
            sums[party] = sums[party].plus(tally)
        else:
            gone = gone.plus(tally)
    return sums, gone
