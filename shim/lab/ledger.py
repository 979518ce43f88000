"""The lab on disk: /run/podwire/labs/NAME, written before each thing is made, so that `down` always knows of it.

    lab.json            the plan, who made it, and the Pods
    n1/router.pid       pid and start time of that node's router
    n1/router.log       what it said          n1/router.sock   where it listens
    n1/subnets.toml     its subnet table      n1/state/        its journal
    store/etcd.pid      likewise etcd.log, and data/, what it keeps
    links.json          what is wrong with links, in so far as it is
    relay/relay.pid     while links are impaired; likewise relay.log, relay.sock

Whoever changes a lab holds a flock on the directory; it is gone with the process that held it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shim.lab.errors import LabError
from shim.lab.plan import LabPlan
from shim.lab.process import ProcessId

_LOCK_TIMEOUT_S = 5.0


def directory() -> Path:
    """Return where labs are kept."""
    return Path(os.environ.get("PODWIRE_LABS_DIR", "/run/podwire/labs"))


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One Pod: its namespace is made after this was written, its addresses are known after it was attached."""

    name: str
    node: str
    netns: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabRecord:
    """What is written down of a lab."""

    plan: LabPlan
    maker: ProcessId
    lent: bool
    """Whether the lab belongs to a running program (a `with Lab()`) and is to end with it."""
    complete: bool = False
    pods: tuple[PodRecord, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace there is, or was about to be."""
        return (*self.plan.namespaces, *(pod.netns for pod in self.pods))

    def with_pod(self, pod: PodRecord) -> LabRecord:
        """Return the record with a Pod added, or the Pod of that name changed."""
        return replace(self, pods=(*(other for other in self.pods if other.name != pod.name), pod))


class Ledger:
    """One lab's directory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = directory() / name

    def node_path(self, node: str) -> Path:
        """Return the directory of a node."""
        return self.path / node

    def claim(self) -> None:
        """Take the name for a new lab."""
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o755)
        except FileExistsError:
            raise LabError(
                f"there is a lab {self.name} already: choose another --name, or remove it with "
                f"`podwire lab down --name {self.name}`"
            ) from None
        except OSError as error:
            raise LabError(f"cannot keep a lab in {self.path}: {error.strerror}; the lab needs root") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from changing this lab."""
        fd = self._open()
        try:
            deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
            while not _try_lock(fd):
                if time.monotonic() > deadline_s:
                    raise LabError(
                        f"another process is changing lab {self.name}: wait for it, or stop it, and try again"
                    )
                time.sleep(0.05)
            if not os.fstat(fd).st_nlink:
                raise self._missing()  # removed by who held the lock
            yield
        finally:
            os.close(fd)

    def write(self, record: LabRecord) -> None:
        """Write the record, whole or not at all."""
        pods = [asdict(pod) for pod in record.pods]
        content = {
            "plan": asdict(record.plan),
            "maker": str(record.maker),
            "lent": record.lent,
            "complete": record.complete,
            "pods": pods,
        }
        write_whole(self.path / "lab.json", json.dumps(content, indent=1))

    def read(self) -> LabRecord | None:
        """Return the record; None when its maker died before there was one, and so before anything was made."""
        try:
            content = json.loads((self.path / "lab.json").read_text())
            return LabRecord(
                LabPlan(**{key: _untouched(value) for key, value in content["plan"].items()}),
                ProcessId.parse(content["maker"]) or ProcessId(0, 0),
                content["lent"],
                content["complete"],
                tuple(PodRecord(**pod | {"addresses": tuple(pod["addresses"])}) for pod in content["pods"]),
            )
        except FileNotFoundError:
            if self.path.is_dir():
                return None
            raise self._missing() from None
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{self.path}/lab.json is not a lab of this version ({error}): remove it by hand") from None

    def netns_of(self, place: str) -> str:
        """Return the namespace of a Pod ("n1p1"), a node ("n1"), "store" or "outside". LabError says what there is."""
        record = self.read()
        known = {}
        if record is not None:
            known = {station.name: station.netns for station in record.plan.stations}
            known |= {pod.name: pod.netns for pod in record.pods}
        if place not in known:
            raise LabError(
                f"lab {self.name} has no Pod or node {place!r} (it has: {', '.join(known) or 'nothing yet'})"
            )
        return known[place]

    def router_process(self, node: str) -> ProcessId | None:
        """Return which process is, or was, the router of a node."""
        return read_process(self.node_path(node) / "router.pid")

    def processes(self) -> list[ProcessId]:
        """Return every process that is, or was, part of the lab, by the pids it has written down."""
        return [found for path in self.path.glob("*/*.pid") if (found := read_process(path))]

    def remove(self) -> None:
        """Forget the lab: the record last, so that a crash in between leaves something to go by."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        for entry in self.path.iterdir():
            entry.unlink()
        self.path.rmdir()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._missing() from None

    def _missing(self) -> LabError:
        known = ", ".join(names()) or "none"
        return LabError(f"there is no lab {self.name} (there is: {known})")


def names() -> list[str]:
    """Return the names of all labs on this machine."""
    try:
        return sorted(entry.name for entry in directory().iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def the_one(name: str | None) -> Ledger:
    """Return the lab of that name, or without a name the only one there is."""
    if name is not None:
        return Ledger(name)
    match names():
        case [only]:
            return Ledger(only)
        case []:
            raise LabError("there is no lab: make one with `podwire lab up`")
        case many:
            raise LabError(f"there are several labs ({', '.join(many)}): say which with --name")


def write_whole(path: Path, content: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(content)
    draft.replace(path)


def read_process(path: Path) -> ProcessId | None:
    """Return what a file says of a process: which it is, or was. None when it was never written."""
    try:
        return ProcessId.parse(path.read_text())
    except FileNotFoundError:
        return None


def _untouched(value: Any) -> Any:
    """Undo what JSON does to a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
