"""Who reaches whom, and as whom: every place asks every other, which answers with the address it saw.

A tiny server in each place answers a UDP datagram and a TCP connection with the address of its peer. All servers
are sockets of one thread of this process; each source is one thread inside its namespace.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EINPROGRESS
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from shim.lab import netns
from shim.lab.errors import LabError

PORT = 7007
_TIMEOUT_S = 3.0
_REPEAT_S = 0.5
"""How often an unanswered datagram is sent again."""
_MOST_SOCKETS = 600
"""Open at once: a process may usually have 1024 files."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Place:
    """A Pod or a node: where to be to be it, and the address it has to be seen with, one a family."""

    name: str
    netns_path: Path
    addresses: tuple[Address, ...]
    node: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """One question from a source to a target, and what came of it."""

    source: str
    target: str
    protocol: str
    expected: Address
    """The source's own address: what the target has to see."""
    seen: str = ""
    """What the target saw; empty when no answer came."""
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether an answer came and the source was kept."""
        return self.seen == str(self.expected)

    def __str__(self) -> str:
        way = f"{self.source} → {self.target}, {self.protocol} over IPv{self.expected.version}"
        if self.good:
            return f"{way}: seen as {self.seen}"
        return f"{way}: seen as {self.seen}, not {self.expected}" if self.seen else f"{way}: {self.error}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Everything that was asked."""

    places: tuple[Place, ...]
    probes: tuple[Probe, ...]

    @property
    def bad(self) -> list[Probe]:
        """The probes that failed."""
        return [probe for probe in self.probes if not probe.good]

    def cell(self, source: str, target: str) -> list[Probe]:
        """Return the probes of one pair; none for a pair that is not asked: a place itself, and node to node."""
        return [probe for probe in self.probes if (probe.source, probe.target) == (source, target)]

    def seen_as(self, source: str) -> list[str]:
        """Return every address any target saw this source with, in order of appearance."""
        return list(dict.fromkeys(probe.seen for probe in self.probes if probe.source == source and probe.seen))


def measure(places: Sequence[Place], on_source: Callable[[str], None] = lambda _name: None) -> Matrix:
    """Ask from every Pod and node every other Pod and node, both families, UDP and TCP."""

    def ask_all(source: Place) -> list[Probe]:
        targets = [target for target in places if target is not source and not (source.node and target.node)]
        found = netns.call(source.netns_path, lambda: _ask(source, targets), to_the_end=False)
        on_source(source.name)
        return found

    workers = max(1, min(len(places), _MOST_SOCKETS // (4 * len(places) or 1)))
    with _answering(places), ThreadPoolExecutor(max_workers=workers) as pool:
        return Matrix(tuple(places), tuple(probe for found in pool.map(ask_all, places) for probe in found))


def _ask(source: Place, targets: Sequence[Place]) -> list[Probe]:
    """Ask all targets at the same time, so that many that do not answer cost no more time than one."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        waiting: dict[socket.socket, Probe] = {}
        done: list[Probe] = []
        for target in targets:
            for mine, theirs in zip(source.addresses, target.addresses, strict=True):
                for protocol, kind in _KINDS.items():
                    probe = Probe(source.name, target.name, protocol, mine, error="no answer")
                    asker = stack.enter_context(socket.socket(_FAMILIES[theirs.version], kind))
                    asker.setblocking(False)
                    if (error := asker.connect_ex((str(theirs), PORT))) not in (0, EINPROGRESS):
                        done.append(replace(probe, error=os.strerror(error)))
                        continue
                    selector.register(asker, selectors.EVENT_READ)
                    waiting[asker] = probe
        deadline_s = time.monotonic() + _TIMEOUT_S
        repeat_s = 0.0
        while waiting and (now_s := time.monotonic()) < deadline_s:
            if now_s >= repeat_s:
                repeat_s = now_s + _REPEAT_S
                for asker, probe in waiting.items():
                    if probe.protocol == "udp":
                        with suppress(OSError):  # told by the next recv
                            asker.send(b"who am I?")
            for key, _ in selector.select(repeat_s - now_s):
                asker = key.fileobj  # type: ignore[assignment]
                selector.unregister(asker)
                probe = waiting.pop(asker)
                try:
                    done.append(replace(probe, seen=asker.recv(64).decode(), error=""))
                except OSError as error:
                    done.append(replace(probe, error=error.strerror or str(error)))
        return sorted(
            [*done, *waiting.values()], key=lambda probe: (probe.target, probe.expected.version, probe.protocol)
        )


@contextmanager
def _answering(places: Sequence[Place]) -> Iterator[None]:
    """Run the servers of all places while the block runs."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for place in places:
            for server in netns.call(place.netns_path, lambda place=place: _listen(place)):  # type: ignore[misc]
                stack.enter_context(server)
                selector.register(server, selectors.EVENT_READ)
        stopped, stop = socket.socketpair()
        stack.enter_context(stopped)
        selector.register(stopped, selectors.EVENT_READ)
        thread = threading.Thread(target=_answer, args=(selector, stopped), name="echo", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.close)
        yield


def _listen(place: Place) -> list[socket.socket]:
    servers = []
    for address in place.addresses:
        for kind in _KINDS.values():
            server = socket.socket(_FAMILIES[address.version], kind)
            server.setblocking(False)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind((str(address), PORT))
            except OSError as error:
                raise LabError(f"{place.name} cannot listen at {address} port {PORT}: {error.strerror}") from None
            if kind == socket.SOCK_STREAM:
                server.listen(128)
            servers.append(server)
    return servers


def _answer(selector: selectors.BaseSelector, stopped: socket.socket) -> None:
    while True:
        for key, _ in selector.select():
            server = key.fileobj
            assert isinstance(server, socket.socket)
            if server is stopped:
                return
            with suppress(OSError):  # an asker that is gone again
                if server.type == socket.SOCK_STREAM:
                    connection, peer = server.accept()
                    with connection:
                        connection.sendall(peer[0].encode())
                else:
                    _, peer = server.recvfrom(64)
                    server.sendto(peer[0].encode(), peer)
