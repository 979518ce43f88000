"""Taking a lab down by what is on disk: complete, half made, half removed, its routers dead or alive."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from shim.lab import netns, process
from shim.lab.ledger import LabRecord, Ledger
from shim.lab.process import ProcessId

GRACE_S = 2.0
"""What routers get to end by themselves."""
_ROUNDS = 3


def take_down(ledger: Ledger) -> None:
    """Remove whatever there is of a lab. LabError if there is none of that name, or another process is changing it."""
    with ledger.locked():
        remove(ledger, ledger.read())


def remove(ledger: Ledger, record: LabRecord | None) -> None:
    """Remove a lab whose lock is held: routers first, then all else that runs inside it, then its namespaces."""
    with uninterrupted():
        if record is not None:
            routers = [ledger.router_process(node.name) for node in record.plan.nodes]
            process.end([router for router in routers if router], GRACE_S)
            process.end(ledger.processes(), grace_s=0)  # etcd, the relay: nothing of theirs is to last
            # What `exec` started, and a process whose maker died before its pid was written: all were born inside.
            end_inside(record.namespaces)
            for name in record.namespaces:
                netns.delete(name)
        ledger.remove()


def end_inside(namespaces: Collection[str]) -> None:
    """Kill whatever runs in these namespaces."""
    for _ in range(_ROUNDS):  # again, as one that is being ended may start another
        inside = [found for pid in netns.pids_inside(namespaces) if (found := ProcessId.of(pid))]
        process.end(inside, grace_s=0)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C, SIGTERM and SIGHUP off until the block is over: an interrupted removal would leave the rest behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted by signals
        return
    pending: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        pending.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
        if pending:
            signal.raise_signal(pending[0])
