"""The addresses of this node that Pods are given: `ipam`, behind a lock, as the node's subnets come and go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable

from router.errors import Kind, Refusal
from router.ipam import Ipam, Resting
from router.model import Address, Attachment, AttachmentKey, Interface, Node, Prefix

_log = logging.getLogger(__name__)


class Addresses:
    """Who holds which, and what may be given out. Thread-safe; times are seconds of the wall clock (Unix)."""

    def __init__(self, rest_s: float) -> None:
        self.rest_s = rest_s
        """How long a released address rests."""
        self._lock = threading.Lock()
        self._ipam = Ipam((), rest_s)
        self._subnets: tuple[Prefix, ...] = ()
        self._strays: tuple[Interface, ...] = ()
        self._held_back = ""

    def restore(
        self, subnets: tuple[Prefix, ...], attachments: Iterable[Attachment], resting: tuple[Resting, ...]
    ) -> None:
        """Begin with what an earlier router gave out."""
        with self._lock:
            self._ipam = Ipam(subnets, self.rest_s)
            self._subnets = subnets
            self._strays = self._ipam.restore({each.key: each.addresses for each in attachments}, resting)

    def set_subnets(self, subnets: tuple[Prefix, ...]) -> None:
        """Give out addresses of these subnets from now on; what is held outside them stays its holder's."""
        with self._lock:
            if subnets == self._subnets:
                return
            ipam = Ipam(subnets, self.rest_s)
            self._strays = ipam.restore(self._ipam.held(), self._ipam.resting(time.time()))
            self._ipam, self._subnets = ipam, subnets
            strays = self._strays
        if strays:
            _log.warning("held outside this node's subnets: %s", ", ".join(str(stray.ip) for stray in strays))

    def taken_by(self, others: Collection[Node]) -> dict[Interface, Node]:
        """Return the addresses held here that lie in subnets of other nodes, and whose."""
        with self._lock:
            strays = self._strays
        if not strays:
            return {}
        return {stray: node for node in others for stray in strays if any(stray.ip in each for each in node.subnets)}

    def hold(self, why: str) -> None:
        """Give out no address, for this reason, until called with none."""
        self._held_back = why

    def allocate(self, key: AttachmentKey, requested: tuple[Address, ...]) -> tuple[Interface, ...]:
        """Give a key what it asks for, and one of each other family. Raise Refusal."""
        if self._held_back:
            raise Refusal(Kind.UNAVAILABLE, f"no address for {key}: {self._held_back}; try again later")
        with self._lock:
            return self._ipam.allocate(key, requested, time.time())

    def withdraw(self, key: AttachmentKey) -> None:
        """Take back what nobody came to use."""
        with self._lock:
            self._ipam.withdraw(key)

    def release(self, key: AttachmentKey, now_s: float) -> None:
        """Take a key's addresses back, and let them rest."""
        with self._lock:
            self._ipam.release(key, now_s)

    def free(self) -> dict[Prefix, int]:
        """Return how many addresses of each subnet can be given out now."""
        with self._lock:
            return dict(self._ipam.free(time.time()))
