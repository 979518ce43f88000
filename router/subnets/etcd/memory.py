"""What a router remembers of its lease while it is not running."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Protocol

from router.model import Prefix

log = logging.getLogger(__name__)


class Memory(Protocol):
    """Keeps one JSON object for a successor."""

    def load(self) -> dict[str, Any] | None:
        """Return what was saved last."""

    def save(self, value: dict[str, Any]) -> None:
        """Keep it; on disk when this returns."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A lease as it was when the router ended, or began to hold."""

    subnets: tuple[Prefix, ...]
    epoch: int
    boot_id: str
    until_s: float
    """When it ends unless renewed (CLOCK_BOOTTIME of that boot)."""

    def save(self, memory: Memory) -> None:
        """Keep it."""
        memory.save(
            {
                "subnets": list(map(str, self.subnets)),
                "epoch": self.epoch,
                "boot_id": self.boot_id,
                "until_s": self.until_s,
            }
        )


def remembered(memory: Memory) -> Remembered | None:
    """Return what is remembered; what cannot be read is nothing, for the store knows it too."""
    value: Mapping[str, Any] | None = memory.load()
    if value is None:
        return None
    try:
        return Remembered(
            tuple(map(ip_network, value["subnets"])),
            int(value["epoch"]),
            str(value["boot_id"]),
            float(value["until_s"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        log.warning("what was remembered of the lease in etcd cannot be read (%r), and is left out: %s", error, value)
        return None
