"""`python -m tests.chaos.planted BUG router run …`: a router with a bug, to prove that the oracle sees it. Python engine only.

Each bug is one that a tired hand could write: a check that is left out, an address that is not given back, two peers that
are taken for each other. They wake some seconds after the start, so that a cluster comes up first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

WAKES_AFTER_S = 6.0
CAUGHT_BY = {
    "skipped-source-check": ("no packet to the wrong Pod",),
    "leaked-address": ("no leaked address",),
    "swapped-peer": ("packets go to the node that owns them", "every loss explained", "everything reaches everything"),
}
"""Each bug, and which invariants it breaks: one of them has to be found broken."""
_began_s = time.monotonic()


def skip_source_check() -> None:
    """Let everybody send from any address."""
    from router import decide

    checked: Callable[..., bool] = decide._holds_source
    decide._holds_source = lambda *given: not _asleep() or checked(*given)


def leak_addresses() -> None:
    """Forget to take back every other address that is released."""
    from router.ipam import Ipam

    release = Ipam.release
    released = [0]

    def leak(self: Ipam, key: Any, now_s: float) -> Any:
        released[0] += 1
        return self._held.pop(key, ()) if released[0] % 2 else release(self, key, now_s)

    Ipam.release = leak  # type: ignore[method-assign]


def swap_peers() -> None:
    """Send to the first peer what is for the second, and the other way round."""
    from router.engine.ports import View

    way = View.way

    def swapped(self: View, *given: Any) -> Any:
        found = way(self, *given)
        first = sorted(self.peers.values(), key=lambda peer: peer.next_hop.node)[:2]
        if found.peer not in first or len(first) < 2 or _asleep():
            return found
        return found._replace(peer=first[1] if found.peer is first[0] else first[0])

    View.way = swapped  # type: ignore[method-assign]


def _asleep() -> bool:
    return time.monotonic() < _began_s + WAKES_AFTER_S


BUGS = {"skipped-source-check": skip_source_check, "leaked-address": leak_addresses, "swapped-peer": swap_peers}

if __name__ == "__main__":
    from router.__main__ import main

    BUGS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
