"""What the router promises beside throughput, measured on a lab of two nodes.

crowd    many Pods attach to one node, each call timed; memory and idle CPU with all of them there;
         20 more attach beside a flow that must lose nothing
control  calls answered while 64-byte datagrams saturate the node; every packet lost must be in a counter
table    a table of many subnets replaces one of two beside a flow that must lose nothing
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.interface import Way
from benchmarks.cpu import read_cpu_time
from benchmarks.figures import Figures, Metric, Promise, percentile
from benchmarks.measures.flow import Flow
from benchmarks.namespace import CommandFailed, Namespace
from benchmarks.rounds import Progress

if TYPE_CHECKING:
    from shim.client import Client
    from shim.lab.lab import Lab
    from shim.lab.node import LabNode

STEPS = 4
WHO = "podwire"
_MORE_PODS = 20
_GENTLE_PPS = 5_000
"""What the flow carries that must lose nothing: a tenth of what an engine can."""
_IDLE_OF_SECONDS = 2.5
_WIDE_RANGE = "10.128.0.0/9"
_WIDE_BITS, _WIDE_FIRST = 26, (10 << 24) + (128 << 16)
_FAR_UNDERLAY_FIRST = (172 << 24) + (16 << 16)
_TABLE_TIMEOUT_S = 60


def _add(figures: Figures, part: str, title: str, unit: str, value: float, most: float | None = None) -> None:
    """Add a figure that promises to be at most `most`; part and title make its key, so sizes do not mix."""
    key = f"{part}: {title}".lower().replace(",", "").replace(" ", "_")
    promises = () if most is None else (Promise(most),)
    figures.add(Metric(key, title, unit, f"Acceptance, {part}", False, promises=promises), WHO, value)


def run(figures: Figures, pods: int, subnets: int, seconds: float, progress: Progress) -> None:
    """Bring a lab up, measure each promise, and take it down; what fails is told of in the figures."""
    from shim.client import ClientError
    from shim.lab import Lab
    from shim.lab.errors import LabError

    figures.titles.setdefault(WHO, next(each.title for each in CONTENDERS if each.name == WHO))
    progress("acceptance: bringing a lab up")
    try:
        with Lab(nodes=2, pods=1, router_args=("--network", _WIDE_RANGE)) as lab:
            told = (ClientError, CommandFailed, OSError)
            progress(f"acceptance: {pods} Pods on one node")
            with _told(figures, "many Pods", told):
                measure_crowd(figures, lab, pods, seconds)
            progress("acceptance: control calls under saturation")
            with _told(figures, "control", told):
                measure_control(figures, lab, seconds)
            progress(f"acceptance: {subnets:,} subnets")
            with _told(figures, "large table", told):
                measure_table(figures, lab, subnets)
    except (LabError, OSError) as error:
        figures.failures.append(f"acceptance: the lab did not come up: {error}")


@contextmanager
def _told(figures: Figures, title: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        figures.failures.append(f"acceptance: {title}: {error}")


def measure_crowd(figures: Figures, lab: Lab, pods: int, seconds: float) -> None:
    """Attach Pods one after the other, look at the router, attach more beside a flow, detach all."""
    node = lab.nodes[0]
    with ExitStack() as stack:
        namespaces = [Namespace(stack, f"crowd{index}") for index in range(pods + _MORE_PODS)]
        client = stack.enter_context(node.client())
        first, more = namespaces[:pods], namespaces[pods:]
        attach_ms = [_timed_ms(partial(_attach, client, pod)) for pod in first]
        part = f"{pods} Pods on a node"
        _add(figures, part, "Attach p50", "ms", percentile(attach_ms, 50), 30)
        _add(figures, part, "Attach p95", "ms", percentile(attach_ms, 95))
        _add(figures, part, "Resident", "MB", resident_mb(node), 150)
        _add(figures, part, "Idle CPU", "%", _idle_percent(node, seconds * _IDLE_OF_SECONDS), 0.5)
        with Flow(_way(lab), 64, _GENTLE_PPS) as flow:
            for pod in more:
                _attach(client, pod)
            flow.stop()
            _add(figures, part, f"Lost, {_MORE_PODS} more", "packets", flow.sent - flow.arrived, 0)
        detach_ms = [_timed_ms(partial(client.detach, pod.name, "eth0")) for pod in namespaces]
        _add(figures, part, "Detach p50", "ms", percentile(detach_ms, 50))


def measure_control(figures: Figures, lab: Lab, seconds: float) -> None:
    """Call the sending node's router while it is flooded, then see that every packet lost was counted."""
    before = counted_drops(lab)
    with lab.nodes[0].client() as client, Flow(_way(lab), 64) as flow:
        calls_ms: list[float] = []
        deadline = time.monotonic() + max(1, seconds)
        while time.monotonic() < deadline:
            calls_ms += (_timed_ms(client.status), _timed_ms(client.counters))
        flow.stop()
        lost = flow.sent - flow.arrived
        counted = counted_drops(lab) - before
        part = "control calls under 64 B saturation"
        _add(figures, part, "Call p50", "ms", percentile(calls_ms, 50))
        _add(figures, part, "Call worst", "ms", max(calls_ms), 100)
        _add(figures, part, "Lost", "%", 100 * lost / flow.sent)
        _add(figures, part, "In no counter", "packets", abs(lost - counted), 0)


def measure_table(figures: Figures, lab: Lab, subnets: int) -> None:
    """Write a table of many subnets into the router's file, and wait until it routes by it."""
    node = lab.nodes[0]
    table = {each.name: (each.endpoint, [str(subnet) for subnet in each.plan.subnets]) for each in lab.nodes}
    for index in range(subnets - len(table)):
        subnet = f"{_dotted(_WIDE_FIRST + (index << (32 - _WIDE_BITS)))}/{_WIDE_BITS}"
        table[f"far{index}"] = (_dotted(_FAR_UNDERLAY_FIRST + index), [subnet])
    with node.client() as client, Flow(_way(lab), 64, _GENTLE_PPS) as flow:
        version = client.status().table_version
        start = time.monotonic()
        lab.write_subnets(table, [node])
        while client.status().table_version == version:
            if time.monotonic() > start + _TABLE_TIMEOUT_S:
                why = client.status().table_error or "the router says nothing"
                raise CommandFailed(f"not in force after {_TABLE_TIMEOUT_S} s: {why}")
            time.sleep(0.05)
        part = f"{subnets:,} subnets put in force"
        _add(figures, part, "File to routes", "s", time.monotonic() - start)
        flow.stop()
        _add(figures, part, "Lost meanwhile", "packets", flow.sent - flow.arrived, 0)
        _add(figures, part, "Resident after", "MB", resident_mb(node))


def counted_drops(lab: Lab) -> int:
    """Return packets of Pods that routers, TUNs and sockets say were dropped.

    A full socket drops a train of datagrams and counts one (udp_queue_rcv_one_skb, net/ipv4/udp.c); so when it counted
    any, what is missing between the routers' own counts is taken.
    """
    total = in_flight = socket_drops = 0
    for node in lab.nodes:
        with node.client() as client:
            counters = client.counters()
        pods = [attachment for attachment in counters.attachments if attachment.key.sandbox_id]
        tallies = [counters.gone, *(pod.tally for pod in pods), *(peer.tally for peer in counters.peers)]
        total += sum(sum(tally.dropped.values()) for tally in tallies) + sum(pod.kernel_drops for pod in pods)
        in_flight += sum(peer.tally.sent_packets - peer.tally.received_packets for peer in counters.peers)
        socket_drops += counters.socket_drops
    return total + (in_flight if socket_drops else 0)


def resident_mb(node: LabNode) -> float:
    """Return the memory of a node's router in MB (proc(5): statm counts pages of 4 KiB here)."""
    return int(Path("/proc", str(node.pid), "statm").read_text().split()[1]) * 4096 / 1e6


def _idle_percent(node: LabNode, seconds: float) -> float:
    assert node.pid is not None
    time.sleep(0.5)  # what the last attach still does in the background is not idleness
    before, start = read_cpu_time([node.pid]), time.monotonic()
    time.sleep(seconds)
    return 100 * (read_cpu_time([node.pid]) - before).processes_s / (time.monotonic() - start)


def _attach(client: Client, pod: Namespace) -> None:
    client.attach(pod.name, "eth0", pod.path)


def _way(lab: Lab) -> Way:
    client, server = lab.pods[:2]
    namespaces = [Namespace.existing(str(pod.netns_path)) for pod in (client, server)]
    return Way(namespaces[0], namespaces[1], str(server.addresses[0]))


def _timed_ms(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def _dotted(number: int) -> str:
    return ".".join(str(byte) for byte in number.to_bytes(4, "big"))
