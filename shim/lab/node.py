"""A node of a lab: a namespace on the underlay, and the router process in it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from shim.answers import Status
from shim.client import Client, ClientError
from shim.lab import netns
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger
from shim.lab.plan import LabPlan, NodePlan
from shim.lab.service import Service

START_TIMEOUT_S = 60.0
"""What a router gets to answer: some of them may start at once on two cores."""
_STOP_TIMEOUT_S = 10.0
_ASK_TIMEOUT_S = 5.0


class LabNode:
    """One node. Its router is started, ended and started again at will; the namespace stays."""

    def __init__(self, ledger: Ledger, lab_plan: LabPlan, plan: NodePlan) -> None:
        self._lab_plan = lab_plan
        self.router_args = lab_plan.router_args
        """More flags of its router, from its next start on."""
        self.program: tuple[str, ...] = (sys.executable, "-m", "router")
        """What runs as its router with `router run …`, from its next start on."""
        self.plan = plan
        self.name = plan.name
        self.netns = plan.netns
        self.netns_path = netns.path_of(plan.netns)
        self.endpoint = plan.endpoint
        directory = ledger.node_path(plan.name)
        self._service = Service(f"the router of {self.name}", directory, "router", self.netns_path)
        self.socket = directory / "router.sock"
        self.log_path = self._service.log_path
        self.state_dir = directory / "state"
        self.subnets_path = directory / "subnets.toml"

    @property
    def subnets(self) -> tuple[IPv4Network, IPv6Network]:
        """The Pod ranges it owns; where they are leased its router is asked. LabError while there are none."""
        if self._lab_plan.store == "file":
            return self.plan.subnets
        v4, v6 = sorted(map(ip_network, self._leased().subnets), key=lambda found: found.version)
        assert isinstance(v4, IPv4Network)
        assert isinstance(v6, IPv6Network)
        return v4, v6

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """The node's own overlay addresses; where subnets are leased its router is asked. LabError while there are none."""
        if self._lab_plan.store == "file":
            return self.plan.addresses
        v4, v6 = sorted(map(ip_address, self._leased().node_addresses), key=lambda found: found.version)
        assert isinstance(v4, IPv4Address)
        assert isinstance(v6, IPv6Address)
        return v4, v6

    @property
    def pid(self) -> int | None:
        """Pid of the running router, or None."""
        return self._service.pid

    def client(self) -> Client:
        """Return a client of this node's router, to be used as a context manager."""
        return Client(str(self.socket))

    def start(self, *, wait: bool = True) -> None:
        """Start the router, and wait until it serves. LabError with the end of its log if it does not."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._service.start(self._command())
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the router answers, and has subnets. LabError with the end of its log if it ends, or takes longer."""
        deadline_s = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline_s:
                raise self.late(timeout_s)
            time.sleep(0.02)

    def ready(self) -> bool:
        """Tell whether the router answers, and has subnets. LabError with the end of its log when it has ended."""
        if self.pid is None:
            raise LabError(f"the router of {self.name} ended at its start: {self.log_tail()}")
        # gRPC waits a second after a refused connection; a bare connect costs nothing.
        if self._listens():
            with suppress(ClientError), Client(str(self.socket), _ASK_TIMEOUT_S) as client:
                return bool(client.status().subnets)
        return False

    def late(self, timeout_s: float) -> LabError:
        """Return what to raise when it was not ready in time."""
        return LabError(
            f"the router of {self.name} does not answer after {timeout_s:.0f} s, or has no subnets: {self.log_tail()}"
        )

    def stop(self) -> None:
        """Ask the router to end, and wait for it; LabError if it had to be killed."""
        if self._service.end(_STOP_TIMEOUT_S):
            raise LabError(
                f"the router of {self.name} did not end {_STOP_TIMEOUT_S:.0f} s after SIGTERM: {self.log_tail()}"
            )

    def kill9(self) -> None:
        """Kill the router as a crash would, and wait until it is gone."""
        self._service.end(0)

    def restart(self) -> None:
        """Stop the router, start it again and wait until it serves."""
        self.stop()
        self.start()

    def take_over(self) -> None:
        """Have another router take the running one's place without losing a packet, and wait until it serves."""
        self._service.succeed([*self._command(), "--takeover"], START_TIMEOUT_S)
        self.wait_ready()

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's namespace; options as for subprocess.run, output is captured text."""
        return netns.run(self.netns_path, command, **options)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in the node's namespace; options as for subprocess.Popen."""
        return netns.popen(self.netns_path, command, **options)

    def log_tail(self) -> str:
        """Return the end of the router's log on one line."""
        return self._service.log_tail()

    def _command(self) -> list[str]:
        settings: dict[str, object] = {
            "--node": self.name,
            "--underlay": self.endpoint,
            "--socket": self.socket,
            "--state-dir": self.state_dir,
        }
        if self._lab_plan.store == "etcd":
            settings |= {"--etcd": self._lab_plan.store_url, "--etcd-ttl-s": self._lab_plan.etcd_ttl_s}
        else:
            settings["--subnets"] = self.subnets_path
        command = [*self.program, "router", "run"]
        for network in self._lab_plan.networks:
            command += ["--network", network]
        for flag, value in settings.items():
            command += [flag, str(value)]
        return [*command, *self.router_args]

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _leased(self) -> Status:
        try:
            with Client(str(self.socket), _ASK_TIMEOUT_S) as client:
                status = client.status()
        except ClientError as error:
            raise LabError(f"only the router of {self.name} knows what it leases: {error}") from error
        if not status.subnets:
            raise LabError(f"{self.name} has no subnets yet")
        return status
