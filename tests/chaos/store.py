"""An independent witness of etcd: every revision it ever had, as etcdctl tells it. The rules are pure."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from shim.lab import netns
from shim.lab.store import LabStore

PREFIX = "/podwire"
Event = tuple[str, bytes | None, int]
"""Key, value (None: deleted) and lease."""


class Witness:
    """What is in the store. At no revision may two rows share a subnet or an endpoint, or have one that they hold no lock of."""

    def __init__(self) -> None:
        self._there: dict[str, tuple[bytes, int]] = {}
        self.revision = 0
        self.owners: dict[str, list[str]] = {}
        """By subnet: who had it, one after the other."""

    def take(self, revision: int, events: list[Event]) -> list[str]:
        """Take what one revision changed; return what is wrong with the store then."""
        self.revision = revision
        for key, value, lease in events:
            if value is None:
                self._there.pop(key, None)
            else:
                self._there[key] = (value, lease)
        wrong, taken = [], dict[str, str]()
        for key, (value, lease) in self._there.items():
            if not key.startswith(f"{PREFIX}/members/"):
                continue
            name, row = key.rpartition("/")[2], json.loads(value)
            wrong += [
                f"revision {revision}: {what} is held by {other} and {name}"
                for what in (*row["subnets"], row["endpoint"])
                if (other := taken.setdefault(what, name)) != name
            ]
            for subnet in row["subnets"]:
                owners = self.owners.setdefault(subnet, [])
                if not owners or owners[-1] != name:
                    owners.append(name)
                lock = self._there.get(f"{PREFIX}/leases/{subnet.replace('/', '-')}")
                if lock != (name.encode(), lease):
                    wrong.append(f"revision {revision}: {name} has {subnet}, whose lock is {lock}")
        return wrong

    @property
    def passed_on(self) -> int:
        """How many subnets more than one node had, in turn."""
        return sum(len(set(owners)) > 1 for owners in self.owners.values())


class StoreWatch:
    """Feeds a witness from an etcdctl that watches, through the store's deaths and returns."""

    def __init__(self, store: LabStore, complain: Callable[[str, str], None]) -> None:
        self.witness = Witness()
        self._store = store
        self._complain = complain
        self._ended = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End once all that is in the store was seen."""
        mark = f"{PREFIX}/chaos/{os.getpid()}"
        self._store.run_etcdctl("put", mark, "")
        revision = json.loads(self._store.run_etcdctl("get", mark, "-w", "json"))["header"]["revision"]
        deadline_s = time.monotonic() + timeout_s
        while self.witness.revision < revision and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if self.witness.revision < revision:
            self._complain(
                "the harness works", f"etcd is at revision {revision}, and its witness at {self.witness.revision}"
            )
        self.close()

    def close(self) -> None:
        self._ended = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _run(self) -> None:
        while not self._ended:
            # As a place to begin, so that a watch that ends goes on where it was.
            command = [
                "etcdctl",
                "watch",
                "--rev",
                str(self.witness.revision + 1),
                "--prefix",
                f"{PREFIX}/",
                "-w",
                "json",
            ]
            self._process = netns.popen(
                self._store.netns_path,
                ["env", "ETCDCTL_API=3", *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert self._process.stdout is not None
            for line in self._process.stdout:
                self._take(json.loads(line))
            self._process.stdout.close()
            self._process.wait()
            if not self._ended:
                time.sleep(0.2)

    def _take(self, answer: dict[str, Any]) -> None:
        """Take the events of one answer, revision by revision: etcd puts those of one revision into one answer."""
        gathered: list[Event] = []
        revision = 0
        for event in answer.get("Events") or ():
            kv = event["kv"]
            if gathered and kv["mod_revision"] != revision:
                self._take_revision(revision, gathered)
                gathered = []
            revision = kv["mod_revision"]
            value = None if event.get("type") == 1 else base64.b64decode(kv.get("value", ""))
            gathered.append((base64.b64decode(kv["key"]).decode(), value, kv.get("lease", 0)))
        if gathered:
            self._take_revision(revision, gathered)

    def _take_revision(self, revision: int, events: list[Event]) -> None:
        for wrong in self.witness.take(revision, events):
            self._complain("no subnet of two nodes", wrong)
