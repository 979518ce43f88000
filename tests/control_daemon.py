"""A daemon in memory for tests of the control edge, which checks and converts; the real one has tests of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from ipaddress import ip_address, ip_interface, ip_network
from typing import cast

from router.engine.interface import Engine, EngineCounters
from router.errors import Kind, Refusal
from router.events import EventKind, EventLog
from router.model import (
    NODE_KEY,
    Attachment,
    AttachmentKey,
    DropReason,
    Endpoint,
    Node,
    Offloads,
    SubnetTable,
    Tally,
)
from router.observe.names import Names
from router.observe.observatory import Observatory
from router.peers.health import PeerState
from router.peers.prober import Report
from router.status import AttachRequest, CheckRequest, Counters, PeerStatus, Status
from router.subnets.source import Lease, SourceState

HERE = Node("here", Endpoint(ip_address("192.0.2.1")), (ip_network("10.1.1.0/24"), ip_network("fd00:0:0:1::/64")))
THERE = Node("there", Endpoint(ip_address("2001:db8::2"), 7000), (ip_network("10.1.2.0/24"),), offload=False, epoch=3)


NO_ENGINE = cast(Engine, None)
"""The control edge asks it nothing."""


class MemoryDaemon:
    """Does what it is told and remembers what it was asked."""

    def __init__(self, engine: Engine | None = None) -> None:
        """`engine` is asked about packets; the control edge asks it nothing else."""
        self.events = EventLog()
        names = Names("here", self.attachments, lambda: (THERE,))
        self.observatory = Observatory(names, engine or NO_ENGINE, self.events, HERE.endpoint)
        self.asked: list[AttachRequest] = []
        self.checked: list[CheckRequest] = []
        self.synced: list[tuple[str, int]] = []
        self.held: dict[AttachmentKey, Attachment] = {}
        self.table = SubnetTable(1, (HERE, THERE))
        self.on_status: Callable[[], object] = lambda: None
        """Called before each answer to `status`: raises, waits, whatever a test needs."""

    def attach(self, request: AttachRequest) -> Attachment:
        self.asked.append(request)
        addresses = tuple(ip_interface(f"{address}/24") for address in request.addresses)
        made = Attachment(
            request.key,
            request.netns_path,
            addresses,
            request.mtu_bytes or 1452,
            request.labels,
            request.owner,
            request.ports,
            request.limits,
        )
        if self.held.setdefault(request.key, made) != made:
            raise Refusal(Kind.EXISTS, f"attachment {request.key} is there with other settings; detach it first")
        self.events.record(EventKind.ATTACHED, key=request.key)
        return made

    def detach(self, key: AttachmentKey) -> bool:
        return self.held.pop(key, None) is not None

    def sync(self, live: Collection[AttachmentKey], owner: str, as_of_ns: int) -> tuple[AttachmentKey, ...]:
        self.synced.append((owner, as_of_ns))
        of_owner = (key for key, held in self.held.items() if owner in ("", held.owner))
        released = tuple(key for key in of_owner if key not in live)
        for key in released:
            del self.held[key]
        return released

    def check(self, request: CheckRequest) -> Attachment:
        self.checked.append(request)
        if request.key not in self.held:
            raise Refusal(Kind.NOT_FOUND, f"{request.key} is not attached to this node")
        return self.held[request.key]

    def attachments(self) -> tuple[Attachment, ...]:
        return tuple(self.held.values())

    def subnets(self) -> SubnetTable:
        return self.table

    def replace_subnets(self, nodes: tuple[Node, ...], expected_version: int | None) -> SubnetTable:
        if expected_version not in (None, self.table.version):
            raise Refusal(Kind.CONFLICT, f"version {expected_version} is not in force; read the table and try again")
        self.table = SubnetTable(self.table.version + 1, nodes)
        self.events.record(EventKind.TABLE_CHANGED)
        return self.table

    def upsert_subnets(self, node: Node) -> SubnetTable:
        others = tuple(each for each in self.table.nodes if each.name != node.name)
        return self.replace_subnets((*others, node), None)

    def remove_subnets(self, name: str) -> SubnetTable:
        others = tuple(each for each in self.table.nodes if each.name != name)
        if others == self.table.nodes:
            raise Refusal(Kind.NOT_FOUND, f"there is no node {name!r}; `podwire subnets list` names all")
        return self.replace_subnets(others, None)

    def counters(self) -> Counters:
        pod = Tally(10, 1000, 2, 3, 4, {DropReason.NO_ROUTE: 2, DropReason.SPOOFED_SOURCE: 1}, 5, 500, 1)
        attachments = {AttachmentKey("pod", "eth0"): pod, NODE_KEY: Tally()}
        peers = {THERE.endpoint: Tally(7, 700, 1, 7), Endpoint(ip_address("192.0.2.9")): Tally(1, 1, 1)}
        engine = EngineCounters(attachments, peers, Tally(), Tally(), icmp_suppressed=8, socket_drops=9, restarts=10)
        return Counters(engine, {AttachmentKey("pod", "eth0"): 6}, "epoch-1")

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        report = Report(PeerState.DOWN, 12.5, 0.0015, 0.001, 0.25, 1400, "it has not answered for 12 s")
        return self.table, (PeerStatus(THERE, report, Tally(7, 700, 1, 7, control_packets=3)),)

    def status(self) -> Status:
        self.on_status()
        return Status(
            node="here",
            engine="python",
            version="0.1.0",
            started_at_s=1000.5,
            networks=(ip_network("10.0.0.0/8"), ip_network("fd00::/48")),
            subnets=HERE.subnets,
            node_addresses=(ip_address("10.1.1.1"), ip_address("fd00:0:0:1::1")),
            endpoint=HERE.endpoint,
            mtu_bytes=1452,
            vni=1,
            offloads=Offloads(tun_uso=False, max_segments=64),
            notes=("tun-uso is off: the kernel is older than 6.2",),
            attachments=len(self.held),
            peers=1,
            table_version=self.table.version,
            table_age_s=2.5,
            free_addresses={HERE.subnets[0]: 253, HERE.subnets[1]: 2**64 - 2},
            resident_bytes=50_000_000,
            table_error="nodes 'a' and 'b' both own 10.1.2.0/24",
            peers_unreachable=1,
            unreachable=("there at [2001:db8::2]:7000: Network is unreachable",),
            source=SourceState(
                "etcd",
                "http://192.0.2.10:2379",
                False,
                0.0,
                "it does not answer",
                Lease(HERE.subnets, 7, held=False, why="etcd has not confirmed it for 31 s"),
            ),
            confinement="capabilities net_admin; system calls filtered; no new privileges",
        )
