"""Looks at every router once a second, and holds what it finds to what must be true at any time."""

from __future__ import annotations

import os
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from pathlib import Path

from shim.answers import Attachment, Counters, Status
from shim.client import Client, ClientError
from shim.lab.errors import LabError
from shim.lab.node import LabNode
from tests.chaos.accounts import Accounts
from tests.chaos.excuses import Budget
from tests.chaos.log import Log
from tests.chaos.rig import REST_S, Rig
from tests.chaos.store import StoreWatch

PERIOD_S = 1.0
_TIMEOUT_S = 5.0
_REST_MARGIN_S = 2.0
_SPREAD_S = 6.0
"""After a node took subnets, or left, tables may differ so long."""
_SILENT_S = 20.0
"""A router that should answer may take so long, on two processors with everything else on them."""


@dataclass(slots=True)
class Reading:
    """What a router said, and what its process was."""

    at_s: float
    pid: int
    counters: Counters
    attachments: tuple[Attachment, ...]
    status: Status
    steady: bool
    """No Pod came or went meanwhile."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a router's process."""

    at_s: float
    resident_bytes: int
    fds: int
    attachments: int


@dataclass(slots=True)
class Oracle:
    """One thread, from `start` to `stop`."""

    rig: Rig
    log: Log
    accounts: Accounts = field(default_factory=Accounts)
    sizes: dict[tuple[str, int], list[Size]] = field(default_factory=dict)
    """By node and process."""
    looks: int = 0
    history: list[Budget] = field(default_factory=list)
    """What may be missing, a look after the other."""
    store: StoreWatch = field(init=False)
    _clients: dict[str, Client] = field(default_factory=dict)
    _heard_s: dict[str, float] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.store = StoreWatch(self.rig.lab.store, self.log.complain)
        self._thread = threading.Thread(target=self._run, name="oracle", daemon=True)
        self.rig.look = lambda node: self.look(node) and None

    def start(self) -> None:
        self.store.start()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and every connection to a router."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.hang_up()

    def hang_up(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                self.round()
            except Exception:  # noqa: BLE001 - told as what it is, and the run goes on
                self.log.complain("the harness works", traceback.format_exc())

    def round(self) -> None:
        """Look at all of them once."""
        self.looks += 1
        readings = {}
        for node in list(self.rig.lab.nodes):
            if node.name in self.rig.starting:
                self._heard_s.pop(node.name, None)
                continue
            reading = self.look(node)
            now_s = time.monotonic()
            if reading is not None:
                readings[node.name] = reading
                self._heard_s[node.name] = now_s
                self._size(node, reading)
            elif node.name not in self.rig.starting and now_s - self._heard_s.setdefault(node.name, now_s) > _SILENT_S:
                self.log.complain(
                    "routers live", f"{node.name} has not answered for {_SILENT_S:.0f} s: {node.log_tail()}"
                )
        self._addresses(readings)
        self._subnets(readings)
        with suppress(LabError):
            self.rig.read_links()
        self.history.append(Budget(time.monotonic(), frozenset(readings), self._allowed()))

    def _allowed(self) -> dict[tuple[str, str], int]:
        """Return how many packets from each node to each may be missing by now, by everything that was counted."""
        rig, drops = self.rig, self.rig.traffic.drops()
        names = [node.name for node in rig.lab.nodes]
        return {
            (one, other): self.accounts.budget(one, other)
            + rig.relay_lost[one, other]
            + rig.relay_missed[one]
            + drops[other]
            for one in names
            for other in names
        }

    # One router

    def look(self, node: LabNode) -> Reading | None:
        """Read one router; None when it does not answer."""
        with self._lock:
            pid, stamp = node.pid, self.rig.stamps[node.name]
            if pid is None:
                return None
            client = self._clients.get(node.name)
            if client is None:
                client = self._clients[node.name] = Client(str(node.socket), _TIMEOUT_S)
            try:
                reading = Reading(
                    time.monotonic(), pid, client.counters(), client.attachments(), client.status(), False
                )
            except ClientError:
                self._clients.pop(node.name).close()
                return None
            if node.pid != pid:  # it was killed, and what answered may have been another
                return None
            reading.steady = stamp == self.rig.stamps[node.name] and not self.rig.changing[node.name]
            strayed = self.accounts.strayed(node.name)
            for wrong in self.accounts.observe(node.name, reading.counters):
                self.log.complain("balance 0, counters only grow", wrong)
            strayed = self.accounts.strayed(node.name) - strayed
            if strayed and reading.at_s > self.rig.tables_s + _SPREAD_S:
                self.log.complain(
                    "packets go to the node that owns them",
                    f"{node.name} was sent {strayed} that belong to a third node",
                )
            if reading.steady:
                self._pods(node, reading)
            return reading

    def _pods(self, node: LabNode, reading: Reading) -> None:
        """What is attached is what lives there; what is not given out is free."""
        there, wanted = {each.key.sandbox_id for each in reading.attachments}, self.rig.keys(node.name)
        if there != wanted and not self.rig.changing[node.name] and wanted == self.rig.keys(node.name):
            self.log.complain(
                "no leaked address",
                f"{node.name} has attached {sorted(there - wanted)} that is no more, and not {sorted(wanted - there)}",
            )
        if reading.at_s < self.rig.changed_s.get(node.name, 0.0) + REST_S + _REST_MARGIN_S:
            return  # an address that rests is neither held nor free
        for each in reading.status.free_addresses:
            subnet = ip_network(each.subnet)
            held = sum(ip_interface(text).ip in subnet for found in reading.attachments for text in found.addresses)
            capacity = _capacity(subnet)
            if each.free + held != capacity:
                self.log.complain(
                    "no leaked address",
                    f"{node.name}: of {capacity} addresses of {subnet} {held} are held and {each.free} free: "
                    f"{capacity - held - each.free} are nobody's",
                )

    def _size(self, node: LabNode, reading: Reading) -> None:
        with suppress(OSError):
            fds = len(os.listdir(f"/proc/{reading.pid}/fd"))
            size = Size(reading.at_s, reading.status.resident_bytes, fds, len(reading.attachments))
            self.sizes.setdefault((node.name, reading.pid), []).append(size)

    # All together

    def _addresses(self, readings: dict[str, Reading]) -> None:
        holders: dict[str, str] = {}
        for name, reading in readings.items():
            for each in reading.attachments:
                for text in each.addresses:
                    address, who = text.partition("/")[0], f"{name}: {each.key}"
                    other = holders.setdefault(address, who)
                    if other != who and reading.steady and readings[other.partition(":")[0]].steady:
                        self.log.complain("no address of two Pods", f"{address} is held by {other} and by {who}")

    def _subnets(self, readings: dict[str, Reading]) -> None:
        """No two routers may be sure of one subnet: what one of them said is asked once more, as they were not asked at once."""
        owners: dict[str, str] = {}
        for name, reading in readings.items():
            source = reading.status.source
            if source is None or source.lease is None or not source.lease.held:
                continue
            for subnet in reading.status.subnets:
                other = owners.setdefault(subnet, name)
                if other != name and self._still_sure(other, subnet) and self._still_sure(name, subnet):
                    self.log.complain("no subnet of two nodes", f"{other} and {name} are both sure of {subnet}")

    def _still_sure(self, name: str, subnet: str) -> bool:
        try:
            reading = self.look(self.rig.lab.node(name))
        except LabError:
            return False
        source = reading.status.source if reading else None
        return bool(reading and source and source.lease and source.lease.held and subnet in reading.status.subnets)


def _capacity(subnet: IPv4Network | IPv6Network) -> int:
    """Return how many Pods a subnet has addresses for: not the first, the node's, nor IPv4's broadcast."""
    return subnet.num_addresses - (3 if subnet.version == 4 else 2)


def tracebacks(node: LabNode) -> list[str]:
    """Return where a router's log has one."""
    text = Path(node.log_path).read_text(errors="replace")
    return [f"{node.name}: {text[at : at + 1500]}" for at in [text.find("Traceback")] if at >= 0]
