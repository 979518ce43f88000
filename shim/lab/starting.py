"""Starting all routers of a lab: some at a time, as each takes a second of a processor, and all must answer soon."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from shim.client import ClientError
from shim.lab.errors import LabError
from shim.lab.node import START_TIMEOUT_S, LabNode

_AT_A_TIME = max(4, 2 * (os.cpu_count() or 1))
_KNOWN_TIMEOUT_S = 60.0
_SAY_EVERY_S = 5.0


def start_all(nodes: Sequence[LabNode], say: Callable[[str], None]) -> None:
    """Start the routers of these nodes, and wait until each serves and has subnets. LabError of the first that does not."""
    say(f"starting {len(nodes)} routers")
    waiting, starting = deque(nodes), dict[LabNode, float]()
    said_s = time.monotonic()
    while waiting or starting:
        while waiting and len(starting) < _AT_A_TIME:
            node = waiting.popleft()
            node.start(wait=False)
            starting[node] = time.monotonic() + START_TIMEOUT_S
        for node, deadline_s in tuple(starting.items()):
            if node.ready():
                del starting[node]
            elif time.monotonic() > deadline_s:
                raise node.late(START_TIMEOUT_S)
        if (now_s := time.monotonic()) - said_s > _SAY_EVERY_S:
            said_s = now_s
            say(f"{len(nodes) - len(waiting) - len(starting)} of {len(nodes)} routers serve")
        time.sleep(0.02)


def wait_known(nodes: Sequence[LabNode]) -> None:
    """Wait until each of these routers has all others in its table, wherever that comes from."""
    for node in nodes:
        deadline_s = time.monotonic() + _KNOWN_TIMEOUT_S
        while (peers := _peers(node)) < len(nodes) - 1:
            if time.monotonic() > deadline_s:
                raise LabError(
                    f"{node.name} knows {peers} of {len(nodes) - 1} other nodes after {_KNOWN_TIMEOUT_S:.0f} s: "
                    f"{node.log_tail()}"
                )
            time.sleep(0.02)


def _peers(node: LabNode) -> int:
    try:
        with node.client() as client:
            return client.status().peers
    except ClientError as error:
        raise LabError(f"{node.name} does not say whom it knows: {error}") from error
