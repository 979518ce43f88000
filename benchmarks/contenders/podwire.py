"""The router itself, brought up by its own lab: the same underlay of two nodes on a bridge, Pods on TUN devices."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from benchmarks.cluster import await_reachable
from benchmarks.contenders.interface import Network, Way
from benchmarks.namespace import CommandFailed, Namespace


def sweep_labs() -> list[str]:
    """Remove labs lent to a process that is gone; return their names. Labs people brought up stay."""
    from shim.lab import ledger, teardown

    removed = []
    for name in ledger.names():
        lab = ledger.Ledger(name)
        record = lab.read()
        if record is not None and record.lent and not record.maker.alive:
            teardown.take_down(lab)
            removed.append(f"lab {name}")
    return removed


_SNAP_BYTES = 128


class Podwire:
    """One router a node, with one of its engines."""

    programs = ("ip",)
    packages = ("iproute2",)

    def __init__(
        self, name: str, engine: str, spin_us: int = 0, only: tuple[str, ...] = (), *, captured: str | None = None
    ) -> None:
        self.name = name
        self.title = f"Podwire {engine}" + (f", spinning {spin_us} µs" if spin_us else "")
        if captured is not None:
            self.title += f', captured "{captured}"' if captured else f", all captured, {_SNAP_BYTES} bytes each"
        self._captured = captured
        self.engine = engine
        self.only = only
        # A router without spinning is started as people start it: without the flag.
        self._router_args = (
            "--engine",
            engine,
            *(("--spin-us", str(spin_us), "--spin-percent", "100") if spin_us else ()),
        )

    def open(self, stack: ExitStack) -> Network:
        """Set up two nodes with two Pods each."""
        from shim.lab import Lab
        from shim.lab.errors import LabError

        try:
            lab = stack.enter_context(Lab(nodes=2, pods=2, router_args=self._router_args))
        except (LabError, OSError) as error:
            raise CommandFailed(f"the lab did not come up: {error}") from error
        client, neighbour, server, other = lab.pods
        namespaces = {pod.name: Namespace.existing(str(pod.netns_path)) for pod in lab.pods}
        addresses = {pod.name: next(str(a) for a in pod.addresses if a.version == 4) for pod in lab.pods}
        await_reachable(namespaces[client.name], addresses[server.name], 1400)
        if self._captured is not None:
            for node in lab.nodes:
                _capture(stack, str(node.socket), self._captured)
        return Network(
            across=Way(namespaces[client.name], namespaces[server.name], addresses[server.name]),
            beside=Way(namespaces[client.name], namespaces[neighbour.name], addresses[neighbour.name]),
            other=Way(namespaces[neighbour.name], namespaces[other.name], addresses[other.name]),
            router_pids=tuple(node.pid for node in lab.nodes if node.pid is not None),
        )


def _capture(stack: ExitStack, socket_path: str, words: str) -> None:
    """Capture what passes a router and its filter takes until the stack ends, and throw it away."""
    command = [sys.executable, "-m", "router", "capture", "any", "-w", os.devnull, "--snaplen", str(_SNAP_BYTES)]
    command += words.split()
    process = subprocess.Popen([*command, "--socket", socket_path], stderr=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stderr is not None
    said = process.stderr.readline()
    if not said.startswith("capturing"):
        raise CommandFailed(f"the capture did not begin: {said.strip()}")
