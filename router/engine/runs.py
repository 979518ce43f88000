"""A run of single packets for one peer, side by side in the egress buffer: sent as one train."""

from __future__ import annotations

from router.engine.ports import Peer
from router.wire.segment import MAX_TRAIN_BYTES, Train


class Run:
    """Datagrams of one length, the last perhaps shorter, that lie one behind the other in a buffer of somebody else's."""

    __slots__ = ("_bytes", "_count", "_end", "_most", "_segment_bytes", "_start", "peer")

    def __init__(self, buffer: memoryview, most: int) -> None:
        """`most` is how many datagrams one send takes."""
        self._bytes = buffer
        self._most = most
        self.peer: Peer | None = None
        """Whom the run is for; None while there is none."""
        self._start = self._end = self._segment_bytes = self._count = 0

    def takes(self, peer: Peer, at: int, end: int) -> bool:
        """Tell whether the datagram may join the run; always, when there is none."""
        return self.peer is None or (
            peer is self.peer
            and end - at <= self._segment_bytes
            and self._count < self._most
            and end - self._start <= MAX_TRAIN_BYTES
        )

    def add(self, peer: Peer, at: int, end: int) -> bool:
        """Take the datagram in; True when it is the last the run can take, because it is shorter."""
        if self.peer is None:
            self.peer = peer
            self._start, self._segment_bytes, self._count = at, end - at, 0
        self._count += 1
        self._end = end
        return end - at < self._segment_bytes

    def take(self) -> Train:
        """Return the run as a train, and start afresh."""
        self.peer = None
        return Train(self._bytes[self._start : self._end], self._segment_bytes, self._count)

    def forget(self) -> None:
        """Start afresh; what a batch that failed has left is not sent."""
        self.peer = None
