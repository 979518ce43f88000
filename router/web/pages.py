"""What the pages show: the router's words as plain values for JSON, each of bounded size."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from typing import Any, Protocol

from router.engine.interface import Source
from router.errors import Kind, Refusal
from router.model import NODE_KEY, Attachment, Flow, Limit, SubnetTable, Tally
from router.observe.drops import Dropped
from router.observe.flows import FlowRecord
from router.observe.names import Names, pod_name
from router.observe.observatory import Observatory
from router.observe.rates import Rate, Rated, Rates
from router.peers.health import PeerState
from router.status import Counters, PeerStatus, Status

MOST_PEERS = 60
"""On the map: half of them the busiest, the others those that are down."""
MOST_PODS = 200
MOST_DROPS = 50
MOST_FLOWS = 50
KEPT_S = 1.0
"""How old an answer may be: however many ask, it is made once in that time."""

Json = dict[str, Any]

_NO_RATE = Rate()
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}


class Daemon(Protocol):
    """What the pages ask of the daemon."""

    @property
    def observatory(self) -> Observatory:
        """Return what answers questions about packets."""

    def attachments(self) -> Collection[Attachment]:
        """Return every attachment."""

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        """Return the table, and how each peer stands."""

    def counters(self) -> Counters:
        """Return everything counted."""

    def status(self) -> Status:
        """Return the router at a glance."""


class Pages:
    """Makes what the pages show. Thread-safe."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._rates = Rates(daemon.counters, time.monotonic)
        self._lock = threading.Lock()
        self._cluster: Json = {}
        self._made_s = float("-inf")

    def cluster(self) -> Json:
        """Return this node, its Pods, its peers, and what was dropped lately."""
        with self._lock:
            if time.monotonic() - self._made_s >= KEPT_S:
                self._cluster = self._make_cluster()
                self._made_s = time.monotonic()
            return self._cluster

    def _make_cluster(self) -> Json:
        status, rated = self._daemon.status(), self._rates.now()
        peers = self._daemon.peers()[1]
        pods = self._daemon.attachments()
        observatory = self._daemon.observatory
        return {
            "at_s": time.time(),
            "span_s": rated.span_s,
            "node": _node(status, rated),
            "pods": _busiest(_pod_rows(pods, rated), MOST_PODS),
            "pods_total": len(pods),
            "peers": _busiest([_peer_row(each, rated) for each in peers], MOST_PEERS),
            "peers_total": len(peers),
            "peers_by_state": Counter(_state(each) for each in peers),
            "drops": _drops(observatory.drops.list(), observatory.names),
        }

    def pod(self, name: str) -> Json:
        """Return everything about one Pod of this node, or the node itself. Refusal when there is none of that name."""
        observatory, rated = self._daemon.observatory, self._rates.now()
        key = observatory.names.attachment(name)
        if key is None:
            raise Refusal(
                Kind.NOT_FOUND, f"no Pod {name!r} is attached to this node: `podwire pods` lists those that are"
            )
        tally = rated.counters.engine.attachments.get(key, Tally())
        attachment = next((each for each in self._daemon.attachments() if each.key == key), None)
        flows, span_s = observatory.flows.recent.read()
        mine = [flow for flow in flows if key in (flow.source, flow.target)]
        return {
            "at_s": time.time(),
            "span_s": rated.span_s,
            "name": observatory.names.name(key),
            "sandbox_id": key.sandbox_id,
            "if_name": key.if_name,
            "is_node": key == NODE_KEY,
            **(_facts(attachment) if attachment is not None else {}),
            "rate": asdict(rated.rates.get(key, _NO_RATE)),
            "fates": _fates(tally),
            "kernel_drops": rated.counters.kernel_drops.get(key, 0),
            "drops": _drops(observatory.drops.list(str(key) if key != NODE_KEY else name), observatory.names),
            "flows": _flows(mine[:MOST_FLOWS], span_s, observatory.names),
            "flows_total": len(mine),
            "flows_span_s": span_s,
        }


def _node(status: Status, rated: Rated) -> Json:
    source = status.source
    total = _total(rated.rates.values())
    return {
        "name": status.node,
        "endpoint": str(status.endpoint),
        "version": status.version,
        "engine": status.engine,
        "up_s": max(0.0, time.time() - status.started_at_s),
        "subnets": [str(subnet) for subnet in status.subnets],
        "mtu_bytes": status.mtu_bytes,
        "table_version": status.table_version,
        "table_error": status.table_error,
        "source": source.kind if source else "",
        "source_error": source.error if source else "",
        "lease_lost": source.lease.why if source and source.lease and not source.lease.held else "",
        "notes": list(status.notes),
        "rate": asdict(total),
        "strangers": _fates(rated.counters.engine.strangers),
        "strangers_rate": asdict(rated.strangers),
        "own": asdict(rated.rates.get(NODE_KEY, _NO_RATE)),
    }


def _total(rates: Iterable[Rate]) -> Rate:
    """Add up what Pods and peers handed over; what one sends another receives, so only that is summed."""
    rates = list(rates)
    return Rate(*(sum(getattr(each, name) for each in rates) for name in Rate.__slots__))


def _pod_rows(attachments: Collection[Attachment], rated: Rated) -> list[Json]:
    names = Counter(map(pod_name, attachments))
    rows = []
    for attachment in attachments:
        name, key = pod_name(attachment), attachment.key
        tally = rated.counters.engine.attachments.get(key, Tally())
        rows.append(
            {
                "name": name,
                "link": name if names[name] == 1 else str(key),
                "addresses": [str(interface.ip) for interface in attachment.addresses],
                "rate": asdict(rated.rates.get(key, _NO_RATE)),
                "dropped": sum(tally.dropped.values()),
            }
        )
    return rows


def _peer_row(peer: PeerStatus, rated: Rated) -> Json:
    report, endpoint = peer.report, peer.node.endpoint
    tally = rated.counters.engine.peers.get(endpoint, Tally())
    return {
        "name": peer.node.name,
        "endpoint": str(endpoint),
        "subnets": [str(subnet) for subnet in peer.node.subnets[:8]],
        "state": _state(peer),
        "why": report.why if report else "",
        "rtt_s": report.rtt_s if report else None,
        "loss": report.loss if report else 0.0,
        "mtu_bytes": report.mtu_bytes if report else 0,
        "rate": asdict(rated.rates.get(endpoint, _NO_RATE)),
        "dropped": sum(tally.dropped.values()),
        "reasons": {str(reason): packets for reason, packets in tally.dropped.items() if packets},
    }


def _state(peer: PeerStatus) -> str:
    return str(peer.report.state if peer.report else PeerState.UNKNOWN)


def _busiest(rows: list[Json], most: int) -> list[Json]:
    """Return the rows by name; when they are too many, half the places go to the busiest, then all to what is down."""
    if len(rows) > most:

        def weight(row: Json) -> tuple[float, float]:
            rate = row["rate"]
            return rate["dropped_packets"], rate["received_bytes"] + rate["sent_bytes"]

        rows = sorted(rows, key=weight, reverse=True)
        first, rest = rows[: most // 2], rows[most // 2 :]
        rows = [*first, *sorted(rest, key=lambda row: row.get("state") != "down")][:most]
    return sorted(rows, key=lambda row: str(row["name"]))


def _facts(attachment: Attachment) -> Json:
    limits = attachment.limits
    return {
        "addresses": [str(interface) for interface in attachment.addresses],
        "mtu_bytes": attachment.mtu_bytes,
        "owner": attachment.owner,
        "labels": dict(attachment.labels),
        "ports": [str(mapping) for mapping in attachment.ports][:64],
        "limits": {"ingress": _limit(limits.ingress), "egress": _limit(limits.egress)},
    }


def _limit(limit: Limit | None) -> int | None:
    return None if limit is None else limit.bytes_per_s


def _fates(tally: Tally) -> Json:
    return {
        "received": tally.received_packets,
        "received_bytes": tally.received_bytes,
        "delivered": tally.delivered_packets,
        "tunnelled": tally.tunnelled_packets,
        "dropped": {str(reason): packets for reason, packets in tally.dropped.items() if packets},
        "sent": tally.sent_packets,
        "sent_bytes": tally.sent_bytes,
        "icmp_errors": tally.icmp_errors,
    }


def _drops(drops: tuple[Dropped, ...], names: Names) -> list[Json]:
    naming = names.naming()
    return [
        {
            "source": naming(dropped.found.source),
            "reason": str(dropped.found.reason),
            "flow": _flow(dropped.found.flow),
            "packets": dropped.found.packets,
            "first_s": dropped.found.first_ns / 1e9,
            "last_s": dropped.found.last_ns / 1e9,
            "text": dropped.text,
        }
        for dropped in drops[:MOST_DROPS]
    ]


def _flows(records: list[FlowRecord], span_s: float, names: Names) -> list[Json]:
    naming = names.naming()
    return [
        {
            "flow": _flow(record.flow),
            "source": _named(record.source, naming),
            "target": _named(record.target, naming),
            "verdict": record.verdict.value if record.verdict else "",
            "reason": str(record.reason or ""),
            "packets_per_s": record.packets / span_s,
            "bytes_per_s": record.bytes / span_s,
            "sampled": record.sampled,
            "latency_s": record.latency_s,
        }
        for record in records
    ]


def _named(source: Source | None, naming: Callable[[Source], str]) -> str:
    return "" if source is None else naming(source)


def _flow(flow: Flow | None) -> Json | None:
    if flow is None:
        return None
    return {
        "protocol": _PROTOCOLS.get(flow.protocol, str(flow.protocol)),
        "src": str(flow.src),
        "dst": str(flow.dst),
        "src_port": flow.src_port,
        "dst_port": flow.dst_port,
    }
