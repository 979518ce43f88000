"""A node of a lab: a namespace on the underlay, and the router process in it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from shim.client import Client, ClientError
from shim.lab import netns, process
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger, write_whole
from shim.lab.plan import CLUSTER_V4, CLUSTER_V6, LabPlan, NodePlan

START_TIMEOUT_S = 30.0
"""What a router gets to answer: sixteen of them may start at once on two cores."""
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_LINES = 6


class LabNode:
    """One node. Its router is started, ended and started again at will; the namespace stays."""

    def __init__(self, ledger: Ledger, lab_plan: LabPlan, plan: NodePlan) -> None:
        self._ledger = ledger
        self._child: subprocess.Popen[str] | None = None
        self._router_args = lab_plan.router_args
        self.plan = plan
        self.name = plan.name
        self.netns = plan.netns
        self.netns_path = netns.path_of(plan.netns)
        self.endpoint = plan.endpoint
        directory = ledger.node_path(plan.name)
        self.socket = directory / "router.sock"
        self.log_path = directory / "router.log"
        self.state_dir = directory / "state"
        self.subnets_path = directory / "subnets.toml"
        self._pid_path = directory / "router.pid"

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """The node's own overlay addresses."""
        return self.plan.addresses

    @property
    def pid(self) -> int | None:
        """Pid of the running router, or None."""
        found = self._ledger.router_process(self.name)
        return found.pid if found and found.alive else None

    def client(self) -> Client:
        """Return a client of this node's router, to be used as a context manager."""
        return Client(str(self.socket))

    def start(self, *, wait: bool = True) -> None:
        """Start the router, and wait until it serves. LabError with the end of its log if it does not."""
        if self.pid is not None:
            raise LabError(f"the router of {self.name} runs already")
        self._reap()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a") as log:
            self._child = netns.popen(
                self.netns_path,
                self._command(),
                # So that `-m router` is the code this lab is part of, installed or not.
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # A crash before this line leaves a process that only its namespace betrays: `down` looks there too.
        if found := process.ProcessId.of(self._child.pid):
            write_whole(self._pid_path, str(found))
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the router answers. LabError with the end of its log if it ends, or takes longer."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            ended = self.pid is None
            # gRPC waits a second after a refused connection; a bare connect costs nothing.
            if not ended and self._listens():
                with suppress(ClientError), self.client() as client:
                    client.status()
                    return
            if ended:
                raise LabError(f"the router of {self.name} ended at its start: {self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise LabError(f"the router of {self.name} does not answer after {timeout_s:.0f} s: {self.log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask the router to end, and wait for it; LabError if it had to be killed."""
        killed = self._end(_STOP_TIMEOUT_S)
        if killed:
            raise LabError(
                f"the router of {self.name} did not end {_STOP_TIMEOUT_S:.0f} s after SIGTERM: {self.log_tail()}"
            )

    def kill9(self) -> None:
        """Kill the router as a crash would, and wait until it is gone."""
        self._end(0)

    def restart(self) -> None:
        """Stop the router, start it again and wait until it serves."""
        self.stop()
        self.start()

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespace; options as for subprocess.run, output is captured text."""
        return netns.run(self.netns_path, command, **options)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in the node's namespace; options as for subprocess.Popen."""
        return netns.popen(self.netns_path, command, **options)

    def log_tail(self) -> str:
        """Return the end of the router's log on one line, and where the rest is."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        return " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:] if line.strip()) or "it said nothing"

    def _command(self) -> list[str]:
        settings = {
            "--node": self.name,
            "--underlay": self.endpoint,
            "--subnets": self.subnets_path,
            "--socket": self.socket,
            "--state-dir": self.state_dir,
        }
        command = [sys.executable, "-m", "router", "router", "run"]
        for network in (CLUSTER_V4, CLUSTER_V6):
            command += ["--network", str(network)]
        for flag, value in settings.items():
            command += [flag, str(value)]
        return [*command, *self._router_args]

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _end(self, grace_s: float) -> bool:
        """End the router; return whether it had to be killed."""
        found = self._ledger.router_process(self.name)
        killed = process.end([found] if found else [], grace_s)
        self._reap()
        return bool(killed) and grace_s > 0

    def _reap(self) -> None:
        """Collect the exit status of a router this process started and that has ended."""
        if self._child is not None:
            self._child.wait(timeout=_STOP_TIMEOUT_S)
            self._child = None
