"""The accounting of a lab's routers, and of the kernels around them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.answers import AttachmentCounters, Counters, Tally
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from shim.lab.pod import LabPod


def counters(node: LabNode) -> Counters:
    with node.client() as client:
        return client.counters()


def unbalanced(found: Counters) -> list[str]:
    """Name every count in which received is not delivered + tunnelled + dropped, and probes of whoever is no peer."""
    every: list[tuple[str, Tally]] = [("strangers", found.strangers), ("gone", found.gone)]
    every += [(str(each.key), each.tally) for each in found.attachments]
    every += [(f"peer {each.node}", each.tally) for each in found.peers]
    strays = [
        f"{name}: {tally}" for name, tally in every if tally.control_packets and not name.startswith(("peer ", "gone"))
    ]
    return strays + [
        f"{name}: {tally}"
        for name, tally in every
        if tally.balance
        or tally.received_packets != tally.delivered_packets + tally.tunnelled_packets + sum(tally.dropped.values())
    ]


def assert_balanced(lab: Lab) -> None:
    for node in lab.nodes:
        if node.pid is not None:
            assert unbalanced(counters(node)) == [], node.name


@contextmanager
def mended(lab: Lab) -> Iterator[Lab]:
    """Start the routers that a failed test left dead; whatever this one did, the accounts add up after it."""
    for node in lab.nodes:
        if node.pid is None:
            node.start()
    yield lab
    assert_balanced(lab)


def of_pod(pod: LabPod) -> AttachmentCounters:
    """Return the counters of one Pod as its node's router keeps them."""
    return next(each for each in counters(pod.node).attachments if each.key.sandbox_id == pod.sandbox_id)


@contextmanager
def reading_bytes(pod: LabPod) -> Iterator[Callable[[], int]]:
    """Yield a cheap reading of what the Pod's eth0 has received; the file stays that of the Pod's namespace."""
    with netns.call(pod.netns_path, Path("/proc/thread-self/net/dev").open) as file:

        def read() -> int:
            file.seek(0)
            line = next(line for line in file if line.strip().startswith("eth0:"))
            return int(line.partition(":")[2].split()[0])

        yield read


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "it") -> float:
    """Poll until a condition holds; return the seconds it took."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() < start_s + timeout_s, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.005)
    return time.monotonic() - start_s
