"""What the last start on this machine found out, so that the next one, after a crash, need not find it out again.

Good for the same boot of the same kernel, and the same settings: else all of it is found out anew.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router import overlay
from router.config import Settings
from router.journal import Memory
from router.model import Offloads

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RELEASE = Path("/proc/sys/kernel/osrelease")


@dataclass(frozen=True, slots=True)
class LastStart:
    """What is remembered, if it is good."""

    settings: Settings
    stamp: str
    """Of boot, kernel and settings."""
    found: dict[str, Any] | None
    again: bool
    """Whether a router of these settings ran since the boot, and its table and lease may be taken for granted now."""

    @classmethod
    def of(cls, settings: Settings, memory: Memory, lease: dict[str, Any] | None) -> LastStart:
        """Look into a journal's memory; `lease` is what is remembered of a lease in etcd."""
        stamp = _stamp(settings)
        found = memory.load()
        if found is None or found.get("stamp") != stamp:
            return cls(settings, stamp, None, again=False)
        return cls(settings, stamp, found, again=settings.etcd is None or _still_held(lease))

    def offloads(self, inherited: Offloads | None) -> tuple[Offloads, tuple[str, ...]]:
        """Return which offloads work here, and notes: as a predecessor or the last start found, else tested. Raise Refusal."""
        try:
            if self.found is not None:
                known = Offloads(**self.found["offloads"])
                if inherited in (None, known):
                    return known, tuple(map(str, self.found["notes"]))
        except (KeyError, TypeError):  # of another version
            pass
        return (inherited, ()) if inherited is not None else overlay.offloads(self.settings)

    def remember(self, memory: Memory, offloads: Offloads, notes: tuple[str, ...]) -> None:
        """Keep it for the next."""
        now = {"stamp": self.stamp, "offloads": asdict(offloads), "notes": list(notes)}
        if now != self.found:
            memory.save(now)


def _stamp(settings: Settings) -> str:
    what = (
        _BOOT_ID.read_text(),
        _RELEASE.read_text(),
        settings.node,
        settings.networks,
        settings.underlay,
        settings.vni,
        settings.offloads,
        settings.etcd,
        settings.kubernetes,
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _still_held(lease: dict[str, Any] | None) -> bool:
    """Tell whether a lease that was remembered is this node's for sure, for some time (etcd/memory.py)."""
    if lease is None:
        return False
    try:
        left_s = float(lease["until_s"]) - time.clock_gettime(time.CLOCK_BOOTTIME)
        return left_s > 0 and bool(lease["boot_id"] == _BOOT_ID.read_text().strip())
    except (KeyError, TypeError, ValueError):
        return False
