"""How long it takes until a new node's Pod is reached from every other: real routers in a lab, leasing in a real etcd.

    python -m benchmarks.joining --nodes 50

Every node has a Pod that sends a datagram to the new Pod each 10 ms from its Attach on, and waits for the echo. Two times are
taken, to the last Pod that was heard: from the new router's lease, and from the answer to the new Pod's Attach.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from shim.lab import Lab, netns
from shim.lab.pod import LabPod

_PORT = 7077
_EVERY_S = 0.01
_PROMISE_S = 1.0
_PATIENCE_S = 60.0


@click.command()
@click.option("--nodes", type=click.IntRange(2, 60), default=50, show_default=True, help="Nodes there are before.")
@click.option("--joins", type=click.IntRange(1, 4), default=3, show_default=True, help="Nodes that join, one by one.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there.")
def main(nodes: int, joins: int, json_path: Path | None) -> None:
    """Bring a lab up on etcd, let nodes join, and measure when their Pods are reached from all others.

    Needs root, etcd, and about 70 MB a node; 50 nodes take a minute on two processors.

    \b
    Exit status: 0 every join within 1 s of the lease and of the Attach, 1 not so.
    """
    figures = []
    with Lab(nodes=nodes, pods=1, store="etcd", progress=lambda text: click.echo(f"  {text}", err=True)) as lab:
        time.sleep(5.0)  # fifty routers that have just started are busy with each other, and nobody promised otherwise
        for _ in range(joins):
            figures.append(_join(lab))
            click.echo(
                f"{len(lab.nodes) - 1} nodes, one more: reached from all {figures[-1]['lease_s']:.3f} s after its lease, "
                f"{figures[-1]['attach_s']:.3f} s after its Pod's Attach (half of them after {figures[-1]['attach_p50_s']:.3f} s)"
            )
    if json_path is not None:
        json_path.write_text(json.dumps({"nodes": nodes, "joins": figures}))
    sys.exit(0 if all(max(0.0, each["attach_s"]) <= _PROMISE_S for each in figures) else 1)


def _join(lab: Lab) -> dict[str, float]:
    others = list(lab.pods)
    node = lab.add_node()
    with node.client() as client:
        leased_at_s = max(event.at_s for event in client.watch_events(0, follow=False) if event.kind == "lease_taken")
    pod = lab.add_pod(node)
    attached_at_s, attached_s = time.time(), time.monotonic()
    heard_s = heard_by(others, pod)
    last_s = max(heard_s) - attached_s
    return {
        "attach_s": last_s,
        "attach_p50_s": statistics.median(heard_s) - attached_s,
        "lease_s": attached_at_s + last_s - leased_at_s,
    }


def heard_by(sources: list[LabPod], target: LabPod) -> list[float]:
    """Return when each source first had an answer from the target (CLOCK_MONOTONIC). TimeoutError when one has none."""
    address = str(target.addresses[0])
    with ExitStack() as stack:
        server = stack.enter_context(netns.open_socket(target.netns_path, socket.AF_INET, socket.SOCK_DGRAM))
        server.bind((address, _PORT))
        stop = _echo(server)
        stack.callback(stop)
        selector = stack.enter_context(selectors.DefaultSelector())
        waiting: dict[int, socket.socket] = {}
        for index, source in enumerate(sources):
            sender = stack.enter_context(netns.open_socket(source.netns_path, socket.AF_INET, socket.SOCK_DGRAM))
            sender.setblocking(False)
            sender.bind((str(source.addresses[0]), 0))
            waiting[index] = sender
            selector.register(sender, selectors.EVENT_READ, index)
        heard = [0.0] * len(sources)
        deadline_s, due_s = time.monotonic() + _PATIENCE_S, 0.0
        while waiting:
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise TimeoutError(f"no answer to {[sources[index].name for index in waiting]}")
            if now_s >= due_s:
                due_s = now_s + _EVERY_S
                for sender in waiting.values():
                    try:
                        sender.sendto(b"?", (address, _PORT))
                    except OSError:  # an ICMP error about the last one
                        continue
            for key, _ in selector.select(max(0.0, due_s - time.monotonic())):
                try:
                    waiting[key.data].recv(16)
                except OSError:
                    continue
                heard[key.data] = time.monotonic()
                selector.unregister(waiting.pop(key.data))
        return heard


def _echo(server: socket.socket) -> Callable[[], None]:
    """Answer every datagram in a thread; return what ends it."""
    server.settimeout(0.1)
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            try:
                datagram, sender = server.recvfrom(16)
                server.sendto(datagram, sender)
            except OSError:
                continue

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


if __name__ == "__main__":
    main()
