"""Messages of the contract to the words of the model, checked, and back."""

from __future__ import annotations

import time

from router.control import fields
from router.errors import Kind, Refusal
from router.events import Event
from router.model import (
    NO_LIMITS,
    Attachment,
    AttachmentKey,
    Endpoint,
    Limit,
    Limits,
    Node,
    PortMapping,
    SubnetTable,
    Tally,
)
from router.rpc.v1 import attachment_pb2, counters_pb2, events_pb2, peers_pb2, router_pb2, status_pb2, subnets_pb2
from router.status import AttachRequest, CheckRequest, Counters, PeerStatus, Status
from router.subnets.source import SourceState

_UINT64_MAX = 2**64 - 1

# Requests to words.


def key(sent: attachment_pb2.AttachmentKey) -> AttachmentKey:
    """Check the key of an attachment."""
    return fields.attachment_key(sent.sandbox_id, sent.if_name)


def node(row: subnets_pb2.Node) -> Node:
    """Check a row of the subnet table."""
    name = fields.node_name(row.name)
    where = f"node {fields.shown(name)}:"
    return Node(
        name=name,
        endpoint=fields.endpoint(f"{where} endpoint", row.endpoint.address, row.endpoint.port),
        subnets=tuple(fields.prefix(f"{where} subnets", text) for text in row.subnets),
        offload=row.offload if row.HasField("offload") else True,
        epoch=fields.epoch(f"{where} epoch", row.epoch),
    )


def attach_request(sent: router_pb2.AttachRequest) -> AttachRequest:
    """Check an attachment someone wants."""
    return AttachRequest(
        key=key(sent.key),
        netns_path=fields.netns_path(sent.netns_path),
        addresses=fields.addresses(tuple(sent.addresses)),
        mtu_bytes=fields.mtu(sent.mtu_bytes),
        labels=fields.labels(sent.labels),
        owner=fields.owner(sent.owner),
        ports=port_mappings(sent),
        limits=limits(sent.limits),
        began_ns=fields.moment("began_ns", sent.began_ns),
    )


def port_mappings(sent: router_pb2.AttachRequest) -> tuple[PortMapping, ...]:
    """Check the ports someone wants to lead to a Pod; none twice."""
    fields.count("ports", len(sent.ports), fields.MAX_PORTS)
    found: list[PortMapping] = []
    for each in sent.ports:
        mapping = fields.port_mapping(each.host_port, each.container_port, each.protocol, each.host_address)
        if other := next((known for known in found if known.overlaps(mapping)), None):
            raise Refusal(Kind.INVALID, f"ports: {mapping} and {other} overlap; ask for each port of the node once")
        found.append(mapping)
    return tuple(found)


def limits(sent: attachment_pb2.Limits) -> Limits:
    """Check what a Pod may send and receive."""
    return Limits(
        fields.limit("ingress", sent.ingress_bits_per_s, sent.ingress_burst_bits),
        fields.limit("egress", sent.egress_bits_per_s, sent.egress_burst_bits),
    )


def check_request(sent: router_pb2.CheckRequest) -> CheckRequest:
    """Check what someone believes of an attachment."""
    fields.count("addresses", len(sent.addresses), fields.MAX_CHECKED)
    fields.count("routes", len(sent.routes), fields.MAX_CHECKED)
    return CheckRequest(
        key=key(sent.key),
        netns_path=fields.netns_path(sent.netns_path) if sent.netns_path else "",
        addresses=tuple(fields.address("addresses", text.partition("/")[0]) for text in sent.addresses),
        routes=tuple(fields.prefix("routes", text) for text in sent.routes),
    )


# Words to answers.


def key_message(key: AttachmentKey) -> attachment_pb2.AttachmentKey:
    """Say an attachment's key."""
    return attachment_pb2.AttachmentKey(sandbox_id=key.sandbox_id, if_name=key.if_name)


def attachment_message(attachment: Attachment) -> attachment_pb2.Attachment:
    """Say an attachment."""
    return attachment_pb2.Attachment(
        key=key_message(attachment.key),
        netns_path=attachment.netns_path,
        addresses=map(str, attachment.addresses),
        mtu_bytes=attachment.mtu_bytes,
        labels=dict(attachment.labels),
        owner=attachment.owner,
        ports=map(port_message, attachment.ports),
        limits=limits_message(attachment.limits),
    )


def port_message(mapping: PortMapping) -> attachment_pb2.PortMapping:
    """Say a port mapping."""
    return attachment_pb2.PortMapping(
        host_port=mapping.host_port,
        container_port=mapping.container_port,
        protocol=mapping.protocol.value,
        host_address=str(mapping.host_address or ""),
    )


def limits_message(limits: Limits) -> attachment_pb2.Limits | None:
    """Say what a Pod may send and receive; None when nothing is limited."""
    if limits == NO_LIMITS:
        return None
    into, out = limits.ingress or Limit(0, 0), limits.egress or Limit(0, 0)
    return attachment_pb2.Limits(
        ingress_bits_per_s=into.bytes_per_s * 8,
        ingress_burst_bits=into.burst_bytes * 8,
        egress_bits_per_s=out.bytes_per_s * 8,
        egress_burst_bits=out.burst_bytes * 8,
    )


def endpoint_message(endpoint: Endpoint) -> subnets_pb2.Endpoint:
    """Say where a router receives."""
    return subnets_pb2.Endpoint(address=str(endpoint.address), port=endpoint.port)


def node_message(node: Node) -> subnets_pb2.Node:
    """Say a row of the subnet table."""
    endpoint = endpoint_message(node.endpoint)
    return subnets_pb2.Node(
        name=node.name, endpoint=endpoint, subnets=map(str, node.subnets), offload=node.offload, epoch=node.epoch
    )


def table_message(table: SubnetTable) -> subnets_pb2.SubnetTable:
    """Say the whole subnet table."""
    return subnets_pb2.SubnetTable(version=table.version, nodes=map(node_message, table.nodes))


def change_message(before: SubnetTable, after: SubnetTable) -> subnets_pb2.SubnetChange:
    """Say how one table became another."""
    was = {node.name: node for node in before.nodes}
    upserted = [node_message(node) for node in after.nodes if was.pop(node.name, None) != node]
    return subnets_pb2.SubnetChange(version=after.version, upserted=upserted, removed=was)


def tally_message(tally: Tally) -> counters_pb2.Tally:
    """Say a tally, with its balance."""
    return counters_pb2.Tally(
        received_packets=tally.received_packets,
        received_bytes=tally.received_bytes,
        received_frames=tally.received_frames,
        delivered_packets=tally.delivered_packets,
        tunnelled_packets=tally.tunnelled_packets,
        dropped={str(reason): packets for reason, packets in tally.dropped.items() if packets},
        sent_packets=tally.sent_packets,
        sent_bytes=tally.sent_bytes,
        icmp_errors=tally.icmp_errors,
        balance=tally.balance,
        control_packets=tally.control_packets,
    )


def peer_message(peer: PeerStatus) -> peers_pb2.Peer:
    """Say how a peer stands."""
    report = peer.report
    tally = tally_message(peer.tally) if peer.tally is not None else None
    if report is None:
        return peers_pb2.Peer(node=node_message(peer.node), state="PEER_STATE_UNKNOWN", tally=tally)
    return peers_pb2.Peer(
        node=node_message(peer.node),
        state=f"PEER_STATE_{report.state.name}",
        heard_age_s=report.heard_age_s,
        rtt_s=report.rtt_s,
        rtt_min_s=report.rtt_min_s,
        loss=report.loss,
        mtu_bytes=report.mtu_bytes,
        why=report.why,
        tally=tally,
    )


def counters_message(counters: Counters, names: dict[Endpoint, str]) -> counters_pb2.Counters:
    """Say all counters; `names` are the nodes of the peers."""
    engine, drops = counters.engine, counters.kernel_drops
    return counters_pb2.Counters(
        epoch=counters.epoch,
        attachments=[
            counters_pb2.AttachmentCounters(
                key=key_message(key), tally=tally_message(tally), kernel_drops=drops.get(key, 0)
            )
            for key, tally in sorted(engine.attachments.items())
        ],
        peers=[
            counters_pb2.PeerCounters(
                endpoint=endpoint_message(endpoint), node=names.get(endpoint, ""), tally=tally_message(tally)
            )
            for endpoint, tally in engine.peers.items()
        ],
        strangers=tally_message(engine.strangers),
        gone=tally_message(engine.gone),
        icmp_suppressed=engine.icmp_suppressed,
        socket_drops=engine.socket_drops,
        engine_restarts=engine.restarts,
    )


def status_message(status: Status) -> status_pb2.Status:
    """Say a status."""
    offloads = status.offloads
    return status_pb2.Status(
        node=status.node,
        engine=status.engine,
        version=status.version,
        started_at_s=status.started_at_s,
        networks=map(str, status.networks),
        subnets=map(str, status.subnets),
        node_addresses=map(str, status.node_addresses),
        endpoint=endpoint_message(status.endpoint),
        mtu_bytes=status.mtu_bytes,
        vni=status.vni,
        offloads=status_pb2.Offloads(**{name: getattr(offloads, name) for name in offloads.__slots__}),
        notes=status.notes,
        attachments=status.attachments,
        peers=status.peers,
        table_version=status.table_version,
        table_age_s=status.table_age_s,
        free_addresses=[
            status_pb2.FreeAddresses(subnet=str(subnet), free=min(free, _UINT64_MAX))
            for subnet, free in status.free_addresses.items()
        ],
        resident_bytes=status.resident_bytes,
        table_error=status.table_error,
        peers_unreachable=status.peers_unreachable,
        unreachable=status.unreachable,
        source=source_message(status.source) if status.source is not None else None,
        confinement=status.confinement,
    )


def source_message(state: SourceState) -> status_pb2.SubnetSource:
    """Say how the source of the subnet table stands."""
    now_s, lease = time.monotonic(), state.lease
    return status_pb2.SubnetSource(
        kind=state.kind,
        where=state.where,
        connected=state.connected,
        confirmed_age_s=max(0.0, now_s - state.confirmed_s),
        error=state.error,
        lease=None if lease is None else status_pb2.Lease(
            held=lease.held,
            epoch=lease.epoch,
            expires_in_s=max(0.0, lease.expires_s - now_s) if lease.expires_s else 0.0,
            reserved=lease.reserved,
            why=lease.why,
        ),
    )  # fmt: skip


def event_message(event: Event) -> events_pb2.Event:
    """Say an event."""
    return events_pb2.Event(
        sequence=event.sequence,
        at_s=event.at_s,
        kind=f"EVENT_KIND_{event.kind.name}",
        key=key_message(event.key) if event.key else None,
        node=event.node,
        message=event.message,
    )
