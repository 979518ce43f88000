"""What `podwire top` shows: rates between two looks at a router, as plain rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shim.answers import Attachment, AttachmentKey, Counters, ListPeersResponse, Status, Tally
from shim.observe.answers import Drop, Flow

SORTS = ("traffic", "packets", "drops", "name")
"""What rows can be ordered by; names upwards, all else downwards."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a router answered at one time."""

    at_s: float
    """Of a clock that only grows."""
    status: Status
    attachments: tuple[Attachment, ...]
    counters: Counters
    peers: ListPeersResponse
    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class PodRow:
    """A Pod, or the node itself."""

    name: str
    sends_bytes_per_s: float
    sends_packets_per_s: float
    receives_bytes_per_s: float
    receives_packets_per_s: float
    dropped_per_s: float
    dropped: int


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A peer; `to` and `from` it, as seen from this node."""

    name: str
    state: str
    rtt_s: float | None
    loss: float
    mtu_bytes: int
    to_bytes_per_s: float
    to_packets_per_s: float
    from_bytes_per_s: float
    from_packets_per_s: float
    dropped_per_s: float
    dropped: int


@dataclass(frozen=True, slots=True)
class FlowRow:
    """A flow of the last period."""

    flow: str
    source: str
    target: str
    verdict: str
    """Or why it was dropped."""
    bytes_per_s: float
    packets_per_s: float
    latency_s: float | None


@dataclass(frozen=True, slots=True)
class DropRow:
    """Packets that were dropped lately."""

    age_s: float
    source: str
    reason: str
    flow: str
    packets: int


@dataclass(frozen=True, slots=True)
class Board:
    """All of it, each list in order."""

    node: str
    engine: str
    span_s: float
    """What the rates are over; 0 when they are not known yet."""
    pods: tuple[PodRow, ...]
    peers: tuple[PeerRow, ...]
    flows: tuple[FlowRow, ...]
    drops: tuple[DropRow, ...]
    carried_bytes_per_s: float
    carried_packets_per_s: float
    dropped_per_s: float
    """Of everyone's packets, strangers' too."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Grown:
    received_bytes: float
    received_packets: float
    sent_bytes: float
    sent_packets: float
    dropped: float


def board(
    before: Look | None, now: Look, flows: Iterable[Flow], period_s: float, now_unix_s: float, sort: str = SORTS[0]
) -> Board:
    """Compare two looks; `flows` are those of one period of so many seconds."""
    if before is None or before.counters.epoch != now.counters.epoch:  # a router that began anew counts from 0
        before = now
    span_s = now.at_s - before.at_s
    was: dict[object, Tally] = {each.key: each.tally for each in before.counters.attachments}
    was |= {each.endpoint: each.tally for each in before.counters.peers}
    names = {each.key: pod_name(each) for each in now.attachments}
    pods = tuple(
        _pod_row(each.key, each.tally, names, now.status.node, _grown(was.get(each.key), each.tally, span_s))
        for each in now.counters.attachments
    )
    tallies = {each.endpoint: each.tally for each in now.counters.peers}
    peers = []
    for peer in now.peers.peers:
        tally = tallies.get(peer.node.endpoint, Tally())
        grown = _grown(was.get(peer.node.endpoint), tally, span_s)
        peers.append(
            PeerRow(
                peer.node.name, peer.state, peer.rtt_s, peer.loss, peer.mtu_bytes, grown.sent_bytes, grown.sent_packets,
                grown.received_bytes, grown.received_packets, grown.dropped, _sum(tally),
            )
        )  # fmt: skip
    everyone = [
        *((each.key, each.tally) for each in now.counters.attachments),
        *((each.endpoint, each.tally) for each in now.counters.peers),
    ]
    all_grown = [
        *(_grown(was.get(identity), tally, span_s) for identity, tally in everyone),
        _grown(before.counters.strangers, now.counters.strangers, span_s),
    ]
    return Board(
        node=now.status.node,
        engine=now.status.engine,
        span_s=span_s,
        pods=tuple(sorted(pods, key=_pod_order(sort))),
        peers=tuple(sorted(peers, key=_peer_order(sort))),
        flows=tuple(_flow_row(flow, period_s) for flow in sorted(flows, key=_flow_order(sort))),
        drops=tuple(_drop_row(drop, now_unix_s) for drop in now.drops),
        carried_bytes_per_s=sum(each.received_bytes for each in all_grown),
        carried_packets_per_s=sum(each.received_packets for each in all_grown),
        dropped_per_s=sum(each.dropped for each in all_grown),
        notes=_notes(now.status),
    )


def pod_name(attachment: Attachment) -> str:
    """Return namespace/name of a Pod, its name, or its sandbox id, whichever is known; as the router does."""
    name, namespace = attachment.labels.get("name", ""), attachment.labels.get("namespace", "")
    if not name:
        return attachment.key.sandbox_id
    return f"{namespace}/{name}" if namespace else name


def _grown(before: Tally | None, now: Tally, span_s: float) -> _Grown:
    if span_s <= 0:
        return _Grown(0.0, 0.0, 0.0, 0.0, 0.0)
    if before is None or before.received_frames > now.received_frames or before.sent_packets > now.sent_packets:
        before = Tally()
    return _Grown(
        (now.received_bytes - before.received_bytes) / span_s,
        (now.received_packets - before.received_packets) / span_s,
        (now.sent_bytes - before.sent_bytes) / span_s,
        (now.sent_packets - before.sent_packets) / span_s,
        (_sum(now) - _sum(before)) / span_s,
    )


def _sum(tally: Tally) -> int:
    return sum(tally.dropped.values())


def _pod_row(key: AttachmentKey, tally: Tally, names: Mapping[AttachmentKey, str], node: str, grown: _Grown) -> PodRow:
    return PodRow(
        names.get(key, key.sandbox_id) if key.sandbox_id else f"({node})",
        grown.received_bytes, grown.received_packets, grown.sent_bytes, grown.sent_packets, grown.dropped, _sum(tally),
    )  # fmt: skip


def _pod_order(sort: str) -> Callable[[PodRow], tuple[float, str]]:
    weights: Mapping[str, Callable[[PodRow], float]] = {
        "traffic": lambda row: row.sends_bytes_per_s + row.receives_bytes_per_s,
        "packets": lambda row: row.sends_packets_per_s + row.receives_packets_per_s,
        "drops": lambda row: row.dropped_per_s * 1e9 + row.dropped,
        "name": lambda _row: 0.0,
    }
    weight = weights[sort]
    return lambda row: (-weight(row), row.name)


def _peer_order(sort: str) -> Callable[[PeerRow], tuple[float, str]]:
    weights: Mapping[str, Callable[[PeerRow], float]] = {
        "traffic": lambda row: row.to_bytes_per_s + row.from_bytes_per_s,
        "packets": lambda row: row.to_packets_per_s + row.from_packets_per_s,
        "drops": lambda row: row.dropped_per_s * 1e9 + row.dropped,
        "name": lambda _row: 0.0,
    }
    weight = weights[sort]
    return lambda row: (-weight(row), row.name)


def _flow_order(sort: str) -> Callable[[Flow], tuple[float, str]]:
    weights: Mapping[str, Callable[[Flow], float]] = {
        "traffic": lambda flow: flow.bytes,
        "packets": lambda flow: flow.packets,
        "drops": lambda flow: (1e18 if flow.reason else 0.0) + flow.packets,
        "name": lambda _flow: 0.0,
    }
    weight = weights[sort]
    return lambda flow: (-weight(flow), str(flow.flow))


def _flow_row(flow: Flow, period_s: float) -> FlowRow:
    rest = flow.flow is None and flow.source is None and flow.verdict == "unspecified"
    return FlowRow(
        "all others" if rest else str(flow.flow) if flow.flow else "no packet of a Pod",
        flow.source.name if flow.source else "" if rest else "the router",
        flow.target.name if flow.target else "",
        flow.reason or ("" if rest else flow.verdict),
        flow.bytes / period_s,
        flow.packets / period_s,
        flow.latency_s,
    )


def _drop_row(drop: Drop, now_unix_s: float) -> DropRow:
    flow = str(drop.flow) if drop.flow else "no packet of a Pod"
    return DropRow(max(0.0, now_unix_s - drop.last_s), drop.source.name, drop.reason, flow, drop.packets)


def _notes(status: Status) -> tuple[str, ...]:
    notes = list(status.unreachable)
    if status.table_error:
        notes.append(f"the newest subnet table was refused: {status.table_error}")
    source = status.source
    if source is not None and source.lease is not None and not source.lease.held:
        notes.append(f"the lease of this node's subnets is not held: {source.lease.why}")
    return tuple(notes)
