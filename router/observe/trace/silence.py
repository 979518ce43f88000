"""A router that does not answer: what can be found out about it from here.

Probes of the peer's own kind say that it is down. Why is another question: its host may be dead, its router not running, a
firewall may drop Geneve's port, only one direction may be cut, or it may speak for another network.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from router.engine.interface import Engine
from router.model import Address, DropReason, Endpoint, Node
from router.observe.trace.packet import Asked, Transport, least_bytes
from router.observe.trace.probe import Met, Outcome, fire

_LISTEN_S = 1.3
"""How long to listen whether anything comes from it: a router that takes us for dead asks twice a second."""
_HOST_S = 1.0
_PORT_S = 2.6
"""Long enough for a host that tells of a closed port once a second, and of which our own probes ask twice a second."""
_KNOCK_S = 0.05


@dataclass(frozen=True, slots=True)
class Silence:
    """Of a peer, and what else was found."""

    node: str
    endpoint: Endpoint
    why: str = ""
    """What the prober says; empty when it does not take the peer for down."""
    comes: bool = False
    """Whether control packets come from it all the same."""
    dropped: DropReason | None = None
    """Why what comes from its endpoint is dropped."""
    host: Outcome | None = None
    """Of a ping to its host on the underlay."""
    port: Outcome | None = None
    """Of a datagram to its port from another than ours: a closed one is told of at once."""

    def __str__(self) -> str:
        """Say what is wrong, and what to do."""
        who = f"the router of {self.node} at {self.endpoint} does not answer"
        return f"{who}: {self._cause()}"

    def _cause(self) -> str:
        if self.dropped is DropReason.WRONG_NETWORK:
            return "it speaks for another network id (wrong_network); give both routers the same --vni"
        if self.dropped is DropReason.STALE_EPOCH:
            return "it is of an old epoch (stale_epoch): it lost its subnets and does not know it; look at its lease"
        if self.comes and not self.why:
            return "it answers probes, but no questions: it runs an older podwire, or is very busy"
        if self.comes:
            return (
                f"its datagrams reach this node, but ours do not reach {self.node}: the underlay is cut one way; look "
                "for a firewall or a route on the way there"
            )
        if self.port is not None and self.port.met is Met.REFUSED:
            return (
                f"its host is there, but nothing listens at UDP {self.endpoint.port}: start the router of {self.node}"
            )
        if self.host is not None and self.host.met is Met.FAILED:
            return (
                f"this node cannot send to it ({os.strerror(self.host.errno or errno.EIO)}): mend the underlay interface "
                "or route of this node"
            )
        if self.host is not None and self.host.met is Met.UNREACHABLE:
            return f"{self.host.address} says that its host is unreachable: look whether {self.node} is up, and at the route"
        if self.host is not None and self.host.met is Met.ANSWER:
            return (
                f"its host answers pings, but nothing comes back from UDP {self.endpoint.port}: a firewall on the underlay "
                f"drops UDP {self.endpoint.port} (allow it both ways), or the router there hangs"
            )
        return (
            f"nor does its host answer pings: {self.node} is dead, or the underlay between is cut; look whether it is up "
            "and its underlay address is right (`podwire peers`)"
        )


def look(engine: Engine, own: Address, node: Node, why: str, sleep: Callable[[float], None] = time.sleep) -> Silence:
    """Find out what can be found out in some 4 s. `own` is this node's underlay address, `why` what the prober says."""
    began_s = time.monotonic()
    before = _heard(engine, node.endpoint)
    asked = Asked(own, node.endpoint.address, packet_bytes=least_bytes(own.version, Transport.ICMP))
    host = fire(asked, 64, _HOST_S, socket.socket)
    to_port = replace(asked, transport=Transport.UDP, dst_port=node.endpoint.port)
    port = fire(to_port, 64, _PORT_S if host.met is Met.ANSWER else _HOST_S, socket.socket, _KNOCK_S)
    sleep(max(0.0, began_s + _LISTEN_S - time.monotonic()))
    comes = _heard(engine, node.endpoint) > before
    return Silence(node.name, node.endpoint, why, comes, _dropped(engine, node.endpoint), host, port)


def _heard(engine: Engine, endpoint: Endpoint) -> int:
    tally = engine.counters().peers.get(endpoint)
    return 0 if tally is None else tally.control_packets


def _dropped(engine: Engine, endpoint: Endpoint) -> DropReason | None:
    since_ns = time.time_ns() - 5_000_000_000
    reasons = (DropReason.WRONG_NETWORK, DropReason.STALE_EPOCH)
    return next(
        (
            drop.reason
            for drop in engine.drops()
            if drop.source == endpoint and drop.reason in reasons and drop.last_ns > since_ns
        ),
        None,
    )
