"""Which peers the kernel has no way to. Sends nothing: whether they answer is the prober's to find."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection

from router.kernel.links import link_down
from router.model import Endpoint, Node

_MOST_PEERS = 4096
"""Looked at in one go, some 20 ms; in a larger cluster those after them are taken for reachable."""
_KEPT_S = 2.0


class Reach:
    """Why there is no way to a peer, as found last, for the moment it stays true: a status may be asked for often."""

    def __init__(self, own: Endpoint) -> None:
        self._own = own
        self._looked_s = float("-inf")
        self._found: dict[str, str] = {}

    def unreachable(self, peers: Collection[Node]) -> dict[str, str]:
        """Return the names of the peers there is no way to, and why."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _KEPT_S:
            self._found = self._look(peers)
            self._looked_s = now_s
        return self._found

    def _look(self, peers: Collection[Node]) -> dict[str, str]:
        down = link_down(self._own.address)
        found = {}
        for _, node in zip(range(_MOST_PEERS), peers, strict=False):
            if why := down or self._no_way(node.endpoint):
                found[node.name] = why
        return found

    def _no_way(self, endpoint: Endpoint) -> str:
        family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.bind((str(self._own.address), 0))
                probe.connect((str(endpoint.address), endpoint.port))  # looks the route up, and sends nothing
            except OSError as error:
                return error.strerror or os.strerror(error.errno or 0)
        return ""
