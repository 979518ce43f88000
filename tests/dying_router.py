"""A router that kills itself at one step of a takeover, on either side of it: `dying_router.py STEP router run …`.

It is the real one, but for the one call that ends it. Not part of the product.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from router.daemon import Daemon
from router.owner import Owner
from router.takeover.channel import Channel
from router.takeover.successor import Successor

BEFORE, AFTER = "before", "after"
SUCCESSOR_STEPS: dict[str, tuple[Any, str, str]] = {
    "knocked": (Successor, "inherit", BEFORE),
    "told": (Successor, "inherit", AFTER),
    "ready": (Successor, "before_start", BEFORE),
    "relieved": (Successor, "before_start", AFTER),
    "started": (Successor, "after_start", BEFORE),
    "counted": (Successor, "after_start", AFTER),
    "made": (Daemon, "__init__", AFTER),
}
"""Where a successor dies: its predecessor goes on."""
PREDECESSOR_STEPS: dict[str, tuple[Any, str, str]] = {
    "asked": (Owner, "freeze", BEFORE),
    "frozen": (Owner, "freeze", AFTER),
    "stopping": (Owner, "stop_engine", BEFORE),
    "stopped": (Owner, "stop_engine", AFTER),
    "counting": (Owner, "counters", BEFORE),
    "leaving": (Owner, "let_go", BEFORE),
    "gone": (Owner, "let_go", AFTER),
}
"""Where a predecessor dies: its successor goes on alone, or starts as ever."""


def _die_at(place: Any, method: str, when: str) -> None:
    whole: Callable[..., Any] = getattr(place, method)

    def fatal(*arguments: Any, **options: Any) -> None:
        if when == AFTER:
            whole(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, method, fatal)


def _die_half_way() -> None:
    """Send the estate, and die before the fds."""
    whole = Channel.send

    def send(self: Channel, say: str, fds: list[int] | None = None, **what: Any) -> None:
        if say == "fds":
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, say, fds, **what)

    Channel.send = send  # type: ignore[method-assign]


if __name__ == "__main__":
    step = sys.argv.pop(1)
    if step == "half-way":
        _die_half_way()
    elif step != "never":
        _die_at(*(SUCCESSOR_STEPS | PREDECESSOR_STEPS)[step])
    from router.__main__ import main

    sys.exit(main())
