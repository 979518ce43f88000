"""Which peers the kernel has no way to. Sends nothing: a peer whose node is gone without a trace is not seen here."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection

from router.kernel.links import link_down
from router.model import Endpoint, Node

_MOST_PEERS = 4096
"""Looked at in one go, some 20 ms; in a larger cluster those after them are taken for reachable."""
_MOST_NAMED = 16
_KEPT_S = 2.0


class Reach:
    """What was found last, for the moment it stays true: a status may be asked for often."""

    def __init__(self, own: Endpoint) -> None:
        self._own = own
        self._looked_s = float("-inf")
        self._found: tuple[int, tuple[str, ...]] = (0, ())

    def unreachable(self, peers: Collection[Node]) -> tuple[int, tuple[str, ...]]:
        """Return how many peers there is no way to, and some of them with the reason."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _KEPT_S:
            self._found = self._look(peers)
            self._looked_s = now_s
        return self._found

    def _look(self, peers: Collection[Node]) -> tuple[int, tuple[str, ...]]:
        down = link_down(self._own.address)
        count = 0
        named: list[str] = []
        for _, node in zip(range(_MOST_PEERS), peers, strict=False):
            why = down or self._no_way(node.endpoint)
            if why:
                count += 1
                if len(named) < _MOST_NAMED:
                    named.append(f"{node.name} at {node.endpoint}: {why}")
        return count, tuple(named)

    def _no_way(self, endpoint: Endpoint) -> str:
        family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.bind((str(self._own.address), 0))
                probe.connect((str(endpoint.address), endpoint.port))  # looks the route up, and sends nothing
            except OSError as error:
                return error.strerror or os.strerror(error.errno or 0)
        return ""
