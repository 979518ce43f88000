"""What was sent, and what came of it: one record a flow. Pure; who sends and receives tells them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.payload import Who

SIZES = (
    68,
    69,
    128,
    200,
    333,
    512,
    700,
    1000,
    1200,
    1280,
    1300,
    1372,
    1400,
    1403,
    1404,
    1405,
    1423,
    1424,
    1425,
    1452,
    2000,
    4000,
)
"""Of UDP payloads in bytes: 1404 and 1424 fill the overlay MTU of 1452, above which Pods send fragments."""


@dataclass(slots=True)
class Datagrams:
    """A flow of numbered datagrams, or of pings (`kind`)."""

    number: int
    kind: str
    family: int
    src: Who
    dst: Who
    sent_s: array[float] = field(default_factory=lambda: array("d"))
    """When each was sent, by its number."""
    came: bytearray = field(default_factory=bytearray)
    """How often each came, by its number."""
    ended: bool = False

    def sent(self, now_s: float) -> int:
        """Note that one goes out now; return its number."""
        self.sent_s.append(now_s)
        self.came.append(0)
        return len(self.came) - 1

    def take_back(self) -> None:
        """The last was not sent after all."""
        self.sent_s.pop()
        self.came.pop()

    def received(self, number: int) -> bool:
        """Note that one came; False when it was never sent."""
        if number >= len(self.came):
            return False
        self.came[number] = min(255, self.came[number] + 1)
        return True

    @property
    def duplicates(self) -> int:
        return sum(times - 1 for times in self.came if times > 1)

    def lost_s(self, until_s: float) -> Iterator[float]:
        """Yield when each was sent of those that were sent before that time and never came."""
        for at_s, times in zip(self.sent_s, self.came, strict=True):
            if not times and at_s <= until_s:
                yield at_s

    def __str__(self) -> str:
        return f"{self.kind}{self.family} flow {self.number} {self.src.uid} → {self.dst.uid}"


@dataclass(slots=True)
class Connection:
    """A TCP connection: a stream one way, or requests and answers."""

    number: int
    kind: str
    family: int
    src: Who
    dst: Who
    opened_s: float = 0.0
    """When it was established; 0 before that."""
    sent_bytes: int = 0
    received_bytes: int = 0
    """Of what its source sent."""
    answered_bytes: int = 0
    """Of what came back."""
    exchanges: int = 0
    moved_s: float = 0.0
    """When a byte came last, at either end."""
    ended: bool = False

    @property
    def in_order(self) -> bool:
        return self.received_bytes == self.sent_bytes

    def __str__(self) -> str:
        return f"{self.kind}{self.family} connection {self.number} {self.src.uid} → {self.dst.uid}"
