"""The store of a lab: a real etcd in a namespace of its own, on the underlay as the nodes are.

with Lab(nodes=3, store="etcd") as lab:
    lab.store.kill9()
    lab.store.start()
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any

from shim.lab import netns
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger
from shim.lab.plan import STORE_PORT, LabPlan
from shim.lab.service import Service

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_ASK_TIMEOUT_S = 2.0
_HEARTBEAT_MS, _ELECTION_MS = 50, 500
"""It is alone: it need not wait a second for others before it leads."""


def need_etcd() -> str:
    """Return where etcd is on this machine. LabError when it is missing."""
    found = shutil.which("etcd")
    if found is None:
        raise LabError(
            "the command `etcd` is missing on this machine: install it (on Debian the package etcd-server; "
            "etcd-client has etcdctl), or make the lab with --store file"
        )
    return found


class LabStore:
    """The etcd of a lab. Its data outlives it, but not the lab."""

    def __init__(self, ledger: Ledger, plan: LabPlan) -> None:
        self.netns = plan.store_netns
        self.netns_path = netns.path_of(plan.store_netns)
        self.url = plan.store_url
        self._addresses = plan.store_addresses
        self._service = Service("etcd", ledger.path / "store", "etcd", self.netns_path)
        self.log_path = self._service.log_path

    @property
    def pid(self) -> int | None:
        """Pid while it runs, or None."""
        return self._service.pid

    @property
    def paused(self) -> bool:
        """Whether it is stopped where it stands: it takes connections, and answers nothing."""
        return self._service.stopped

    def start(self) -> None:
        """Start it with the data it has, and wait until it serves. LabError with the end of its log if it does not."""
        v4, v6 = self._addresses
        here = f"http://127.0.0.1:{STORE_PORT}"
        urls = [here, f"http://{v4.ip}:{STORE_PORT}", f"http://[{v6.ip}]:{STORE_PORT}"]
        peer = f"http://127.0.0.1:{STORE_PORT + 1}"
        settings = {
            "--name": "lab",
            "--data-dir": self._service.directory / "data",
            "--listen-client-urls": ",".join(urls),
            "--advertise-client-urls": self.url,
            "--listen-peer-urls": peer,
            "--initial-advertise-peer-urls": peer,
            "--initial-cluster": f"lab={peer}",
            "--heartbeat-interval": _HEARTBEAT_MS,
            "--election-timeout": _ELECTION_MS,
            "--logger": "zap",
            "--log-outputs": "stderr",
            "--log-level": "warn",
        }
        command = [need_etcd()]
        for flag, value in settings.items():
            command += [flag, str(value)]
        self._service.start(command)
        self._wait_healthy()

    def stop(self) -> None:
        """Ask it to end, and wait for it; kill it if it does not."""
        self._service.end(_STOP_TIMEOUT_S)

    def kill9(self) -> None:
        """Kill it as a crash would, and wait until it is gone."""
        self._service.end(0)

    def pause(self) -> None:
        """Make it a black hole (SIGSTOP): connections stay, nothing is answered. LabError when it does not run."""
        self._service.signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        while not self.paused:  # a signal is taken in a moment, not at once
            if self.pid is None or time.monotonic() > deadline_s:
                raise LabError(f"etcd of the lab cannot be paused: {self._service.log_tail()}")
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._service.signal(signal.SIGCONT)

    def run_etcdctl(self, *arguments: str, **options: Any) -> str:
        """Run etcdctl beside it and return what it prints, also while the store is cut off. LabError when it fails."""
        done = netns.run(self.netns_path, ["env", "ETCDCTL_API=3", "etcdctl", *arguments], **options)
        if done.returncode:
            raise LabError(f"etcdctl {' '.join(arguments)} failed: {' '.join((done.stderr or '').split())}")
        return str(done.stdout)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in its namespace; options as for subprocess.run, output is captured text."""
        return netns.run(self.netns_path, command, **options)

    def _wait_healthy(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._healthy():
            if self.pid is None:
                raise LabError(f"etcd ended at its start: {self._service.log_tail()}")
            if time.monotonic() > deadline_s:
                raise LabError(f"etcd does not serve after {_START_TIMEOUT_S:.0f} s: {self._service.log_tail()}")
            time.sleep(0.02)

    def _healthy(self) -> bool:
        asking = HTTPConnection("127.0.0.1", STORE_PORT)
        asking.sock = netns.open_socket(self.netns_path, socket.AF_INET, socket.SOCK_STREAM)
        try:
            asking.sock.settimeout(_ASK_TIMEOUT_S)
            asking.sock.connect(("127.0.0.1", STORE_PORT))
            asking.request("GET", "/health")
            return asking.getresponse().read() == b'{"health":"true"}'
        except (OSError, HTTPException):
            return False
        finally:
            asking.close()
