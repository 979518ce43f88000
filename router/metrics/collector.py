"""The router's counts and state as Prometheus metrics; every name, label and unit stands here, and nowhere else.

Nothing is counted here: a scrape reads what the engine, the kernel and the prober counted since the router started, so
counts begin at 0 with each router, as Prometheus expects of a counter; `podwire_router_info` has the epoch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as CollectorBase

from router.engine.interface import BATCH_BOUNDS
from router.metrics.histograms import Histogram
from router.metrics.series import Counts, Series
from router.model import NODE_KEY, Attachment, AttachmentKey, DropReason, Endpoint, SubnetTable, Tally
from router.observe.names import pod_name
from router.peers.health import PeerState
from router.peers.prober import ROUND_TRIP_BOUNDS_S
from router.status import Counters, PeerStatus, Status

MOST_PEERS = 256
"""Peers with series of their own: 5,000 of them, times 5,000 nodes, would be more than a Prometheus can hold."""
MOST_ATTACHMENTS = 512
LEAST_S = 1.0
"""Between two readings of everything, whoever asks how often."""
OTHERS = "(others)"
"""Name of the Pod or node whose series are of all the rest."""

_TALLY = {
    "received_packets": "Packets handed to the router by {}.",
    "received_bytes": "Bytes of those packets, from their IP headers on.",
    "received_frames": "Reads that brought something from {}: with super-packets and trains fewer than packets.",
    "delivered_packets": "Packets from {} that were written to a Pod of this node.",
    "tunnelled_packets": "Packets from {} that were sent to another node.",
    "sent_packets": "Packets written or sent to {}.",
    "sent_bytes": "Bytes of those packets.",
    "icmp_errors": "ICMP errors made about packets from {}.",
}
_OPENMETRICS = "application/openmetrics-text"
_NAME_CHARACTERS = 253
"""Of a Pod's name; a label of its runtime's may be longer."""
_PROBES = "control_packets"
_KERNEL = "kernel_dropped_packets"
_DROPPED = "dropped:"
_ROUND_TRIP = "rtt:"
_ROUND_TRIP_SUM = "rtt_sum"
_ATTACHMENT = ("pod", "sandbox_id", "ifname")
_PEER = ("node", "endpoint")


_Row = tuple[tuple[str, ...], Counts]
"""Label values, and counts."""


class Facts(Protocol):
    """What a scrape asks of the daemon."""

    def counters(self) -> Counters:
        """Return everything counted."""

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        """Return the table, and how each peer stands."""

    def status(self) -> Status:
        """Return the router at a glance."""

    def attachments(self) -> Collection[Attachment]:
        """Return every attachment."""


class Metrics:
    """What /metrics says. Thread-safe."""

    def __init__(self, facts: Facts, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Collector(facts))
        ProcessCollector(registry=self._registry)
        self._last: dict[str, tuple[float, bytes]] = {}

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that an Accept header prefers, at most `LEAST_S` old, and the content type."""
        encode: Callable[[CollectorRegistry], bytes]
        # One of two: whatever else a header says would be echoed, and kept, as often as somebody thinks of something new.
        encode, content_type = choose_encoder(f"{_OPENMETRICS}; version=1.0.0" if _OPENMETRICS in accept else "")
        with self._lock:  # one after the other: places are remembered from scrape to scrape
            at_s, body = self._last.get(content_type, (-LEAST_S, b""))
            if self._clock() - at_s >= LEAST_S:
                at_s, body = self._clock(), encode(self._registry)
                self._last[content_type] = at_s, body
            return body, content_type


@dataclass(frozen=True, slots=True)
class _Group:
    """The series of one kind of source: label values, and counts."""

    prefix: str
    who: str
    labels: tuple[str, ...]
    rows: list[_Row]


class Collector(CollectorBase):
    """Makes metrics of what the daemon knows."""

    def __init__(self, facts: Facts, most_peers: int = MOST_PEERS, most_attachments: int = MOST_ATTACHMENTS) -> None:
        self._facts = facts
        self._peers: Series[Endpoint] = Series(most_peers)
        self._attachments: Series[AttachmentKey] = Series(most_attachments)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as it is now."""
        counters, status = self._facts.counters(), self._facts.status()
        peers = self._facts.peers()[1]
        yield from _of_router(status, counters)
        yield from _of_table(status)
        attachments, retained = self._of_attachments(counters, status.node)
        peer_rows, retained_peers = self._of_peers(counters, peers)
        gone = {
            name: number - retained.get(name, 0.0) - retained_peers.get(name, 0.0)
            for name, number in _counts(counters.engine.gone).items()
        }
        groups = [
            _Group("attachment", "the Pod", _ATTACHMENT, attachments),
            _Group("peer", "the peer", _PEER, peer_rows),
            _Group("stranger", "addresses that are no peer's", (), [((), _counts(counters.engine.strangers))]),
            _Group("gone", "Pods and peers that are no more", (), [((), gone)]),
        ]
        for group in groups:
            yield from _of_group(group)
        yield from _of_engine(counters)
        yield _sum_of_drops(groups)
        yield from _of_reports(peers, [labels for labels, _ in peer_rows])
        yield _round_trips(peer_rows)

    def _of_attachments(self, counters: Counters, node: str) -> tuple[list[_Row], Counts]:
        names = {each.key: pod_name(each) for each in self._facts.attachments()} | {NODE_KEY: node}
        split = self._attachments.split(
            {
                key: _counts(tally) | {_KERNEL: float(counters.kernel_drops.get(key, 0))}
                for key, tally in counters.engine.attachments.items()
            }
        )
        rows: list[_Row] = [
            ((names.get(key, key.sandbox_id)[:_NAME_CHARACTERS], key.sandbox_id, key.if_name), counts)
            for key, counts in split.own.items()
        ]
        if split.others:
            rows.append(((OTHERS, "", ""), split.others))
        return rows, split.retained

    def _of_peers(self, counters: Counters, peers: Iterable[PeerStatus]) -> tuple[list[_Row], Counts]:
        known = {each.node.endpoint: each for each in peers}
        now: dict[Endpoint, Counts] = {}
        for endpoint, tally in counters.engine.peers.items():
            peer = known.get(endpoint)
            counts = _counts(tally) | {_PROBES: float(tally.control_packets)}
            if peer is not None and peer.report is not None:
                counts |= _round_trip_counts(peer.report.round_trips)
            now[endpoint] = counts
        split = self._peers.split(now)
        # Named only here: one that leaves the table between two questions stays the same series.
        rows: list[_Row] = [
            ((known[endpoint].node.name if endpoint in known else "", str(endpoint)), counts)
            for endpoint, counts in split.own.items()
        ]
        if split.others:
            rows.append(((OTHERS, ""), split.others))
        return rows, split.retained


def _counts(tally: Tally) -> dict[str, float]:
    found = {name: float(getattr(tally, name)) for name in _TALLY}
    return found | {f"{_DROPPED}{reason}": float(packets) for reason, packets in tally.dropped.items() if packets}


def _round_trip_counts(histogram: Histogram) -> dict[str, float]:
    classes = {f"{_ROUND_TRIP}{bound}": number for bound, number in histogram.cumulative()}
    return classes | {_ROUND_TRIP_SUM: histogram.total}


def _of_group(group: _Group) -> Iterator[Metric]:
    extra = (
        {_KERNEL: "Packets for {} that the kernel dropped at its full TUN; no other count has them."}
        if group.prefix == "attachment"
        else {}
    )
    extra |= (
        {_PROBES: "Probes and questions, and answers to them, from {}: no packets of Pods."}
        if group.prefix == "peer"
        else {}
    )
    for name, text in (_TALLY | extra).items():
        metric = CounterMetricFamily(f"podwire_{group.prefix}_{name}", text.format(group.who), labels=group.labels)
        for labels, counts in group.rows:
            metric.add_metric(labels, counts.get(name, 0.0))
        yield metric
    dropped = CounterMetricFamily(
        f"podwire_{group.prefix}_dropped_packets",
        f"Packets from {group.who} that went no further, by reason; a reason is there from its first packet on.",
        labels=(*group.labels, "reason"),
    )
    for labels, counts in group.rows:
        for name, number in counts.items():
            if name.startswith(_DROPPED):
                dropped.add_metric((*labels, name.removeprefix(_DROPPED)), number)
    yield dropped


def _sum_of_drops(groups: Iterable[_Group]) -> Metric:
    """Make the sum over everyone, each reason from the beginning: what alerts look at."""
    sums = {str(reason): 0.0 for reason in DropReason}
    for group in groups:
        for _, counts in group.rows:
            for name, number in counts.items():
                if name.startswith(_DROPPED):
                    reason = name.removeprefix(_DROPPED)
                    sums[reason] = sums.get(reason, 0.0) + number
    metric = CounterMetricFamily(
        "podwire_dropped_packets", "Packets that went no further, whoever sent them.", labels=("reason",)
    )
    for reason, number in sums.items():
        metric.add_metric((reason,), number)
    return metric


def _of_engine(counters: Counters) -> Iterator[Metric]:
    engine = counters.engine
    for name, text, number in (
        ("icmp_suppressed", "ICMP errors that were not sent because of the rate limit.", engine.icmp_suppressed),
        ("socket_dropped_trains", "Datagrams that the kernel dropped at the underlay socket; a train counts as one.", engine.socket_drops),
        ("engine_restarts", "How often a thread of the engine met a bug and began afresh.", engine.restarts),
    ):  # fmt: skip
        metric = CounterMetricFamily(f"podwire_{name}", text)
        metric.add_metric((), number)
        yield metric
    tallies = (*engine.attachments.values(), *engine.peers.values(), engine.strangers, engine.gone)
    up_to = accumulate(map(float, engine.batches))
    buckets = [(str(float(bound)), number) for bound, number in zip(BATCH_BOUNDS, up_to, strict=True)]
    buckets.append(("+Inf", float(sum(engine.batches))))
    batches = HistogramMetricFamily(
        "podwire_engine_batch_frames", "Reads that a batch of the engine's had, of those that brought something."
    )
    batches.add_metric((), buckets, sum(tally.received_frames for tally in tallies))
    yield batches


def _of_router(status: Status, counters: Counters) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "podwire_router_info",
        "Which router this is; the epoch is another when counts began at 0.",
        labels=("node", "version", "engine", "epoch"),
    )
    info.add_metric((status.node, status.version, status.engine, counters.epoch), 1)
    yield info
    yield _gauge("start_time_seconds", "When the router started, in seconds since 1970.", status.started_at_s)
    yield _gauge("attachments", "Pods attached to this node.", status.attachments)
    yield _gauge("overlay_mtu_bytes", "Largest packet between Pods.", status.mtu_bytes)
    free = GaugeMetricFamily("podwire_free_addresses", "Addresses left in a subnet of this node.", labels=("subnet",))
    for subnet, count in status.free_addresses.items():
        free.add_metric((str(subnet),), count)
    yield free


def _of_table(status: Status) -> Iterator[Metric]:
    yield _gauge("table_version", "Version of the subnet table in force.", status.table_version)
    yield _gauge("table_age_seconds", "How long it has been in force.", status.table_age_s)
    yield _gauge("table_refused", "1 while the newest table is refused, else 0.", float(bool(status.table_error)))
    source = status.source
    if source is None:
        return
    connected = GaugeMetricFamily(
        "podwire_source_connected", "1 while the source of the subnet table is there, else 0.", labels=("kind",)
    )
    connected.add_metric((source.kind,), float(source.connected))
    yield connected
    age_s = max(0.0, time.monotonic() - source.confirmed_s)
    yield _gauge("source_confirmed_age_seconds", "How long ago the table was known to be what its source says.", age_s)
    lease = source.lease
    if lease is not None:
        yield _gauge("lease_held", "1 while this node holds its subnets, else 0.", float(lease.held))
        yield _gauge("lease_epoch", "Which holding of its subnets this node is at.", lease.epoch)
        if lease.expires_s:
            left_s = max(0.0, lease.expires_s - time.monotonic())
            yield _gauge("lease_remaining_seconds", "How long the lease is held unless it is renewed.", left_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"podwire_{name}", text, value=value)


def _of_reports(peers: tuple[PeerStatus, ...], shown: Collection[tuple[str, ...]]) -> Iterator[Metric]:
    """Make what probes found of each peer that has series of its own, and how many stand how."""
    count = GaugeMetricFamily("podwire_peers", "Peers by how they stand.", labels=("state",))
    for state in PeerState:
        count.add_metric(
            (str(state),), sum((each.report.state if each.report else PeerState.UNKNOWN) is state for each in peers)
        )
    yield count
    up = GaugeMetricFamily("podwire_peer_up", "1 while the peer answers probes, 0 while it is down.", labels=_PEER)
    loss = GaugeMetricFamily(
        "podwire_peer_loss_ratio", "Share of the last probes that no answer came to.", labels=_PEER
    )
    mtu = GaugeMetricFamily(
        "podwire_peer_mtu_bytes", "Largest packet between Pods that the path to the peer carries.", labels=_PEER
    )
    places = frozenset(shown)
    for peer in peers:
        labels, report = (peer.node.name, str(peer.node.endpoint)), peer.report
        if report is None or labels not in places or report.state is PeerState.UNKNOWN:
            continue
        up.add_metric(labels, float(report.state is PeerState.UP))
        loss.add_metric(labels, report.loss)
        if report.mtu_bytes:
            mtu.add_metric(labels, report.mtu_bytes)
    yield from (up, loss, mtu)


def _round_trips(rows: Iterable[_Row]) -> Metric:
    metric = HistogramMetricFamily(
        "podwire_peer_round_trip_seconds", "Round trips of probes to the peer and back.", labels=_PEER
    )
    for labels, counts in rows:
        if _ROUND_TRIP_SUM in counts:
            buckets = [
                (str(bound), counts[f"{_ROUND_TRIP}{bound}"]) for bound in (*map(str, ROUND_TRIP_BOUNDS_S), "+Inf")
            ]
            metric.add_metric(labels, buckets, counts[_ROUND_TRIP_SUM])
    return metric
