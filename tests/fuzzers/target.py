"""What can be fuzzed: something that makes inputs and takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from random import Random
from types import TracebackType
from typing import Self


class Target(ABC):
    """One parser or a few that see the same bytes. A context manager: what it needs is there inside the block."""

    name: str
    reached_by: str
    """Who can hand it bytes."""
    weight: float = 1.0
    """Its share of the time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def make(self, random: Random) -> bytes:
        """Return an input."""

    @abstractmethod
    def feed(self, given: bytes) -> None:
        """Hand it over. Whatever this raises is a finding."""

    @staticmethod
    def is_one_line(message: str) -> None:
        """Fail unless a refusal can stand in a line of a log."""
        assert "\n" not in message, f"a refusal of several lines: {message[:200]!r}"

    def feeds(self) -> int:
        """Return how many inputs one `make` stands for."""
        return 1
