"""When each sandbox interface was last detached, so that an attachment asked for before that loses, however late it comes.

A runtime that is killed while it sets a Pod up leaves its half of the request running: its successor detaches the Pod, and
only then the orphaned request arrives. Sandbox ids may come again (podman starts a container a second time), so it is not
the id that tells the two apart but when their caller began.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from router.errors import Kind, Refusal
from router.journal import Journal
from router.model import AttachmentKey

KEPT_NS = 600 * 10**9
"""How long a detachment is remembered: far longer than any runtime lets a request run (containerd and CRI: minutes)."""
_MOST = 1 << 16


def now_ns() -> int:
    """Return the time by which callers on this machine say when they began: CLOCK_BOOTTIME, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Departed:
    """The detachments of the last minutes. The caller locks."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._detached_ns: OrderedDict[AttachmentKey, int] = OrderedDict()

    def restore(self) -> None:
        """Take up what the last router remembered, of this boot."""
        now = now_ns()
        self._journal.forget_departed(now - KEPT_NS, now)
        self._detached_ns = OrderedDict(self._journal.load().departed)

    def note(self, key: AttachmentKey, detached_ns: int) -> None:
        """Remember a detachment that is in the journal."""
        self._detached_ns[key] = max(detached_ns, self._detached_ns.pop(key, 0))
        if len(self._detached_ns) > _MOST or next(iter(self._detached_ns.values())) < detached_ns - 2 * KEPT_NS:
            self._prune(detached_ns)

    def refuse_late(self, key: AttachmentKey, began_ns: int) -> None:
        """Raise Refusal(CONFLICT) when the key was detached after that time."""
        detached_ns = self._detached_ns.get(key, 0)
        if began_ns < detached_ns:
            late_s = (detached_ns - began_ns) / 1e9
            raise Refusal(
                Kind.CONFLICT,
                f"{key} was detached {late_s:.1f} s after this attachment was asked for: its sandbox is gone; begin anew",
            )

    def _prune(self, now: int) -> None:
        self._journal.forget_departed(now - KEPT_NS, now)
        while self._detached_ns and (
            len(self._detached_ns) > _MOST or next(iter(self._detached_ns.values())) < now - KEPT_NS
        ):
            self._detached_ns.popitem(last=False)
