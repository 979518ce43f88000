"""Who reaches whom, and as whom: every place asks every other, which answers with the address it saw.

A tiny server in each place answers a UDP datagram and a TCP connection with the address of its peer. All servers
are sockets of one thread of this process; each source is one thread inside its namespace.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from shim.lab import netns
from shim.lab.errors import LabError

PORT = 7007
_TIMEOUT_S = 1.0
_TRIES = 2
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
        def inside() -> list[Probe]:
            return [
                _ask(source, target, protocol, mine, theirs)
                for target in places
                if target is not source and not (source.node and target.node)
                for mine, theirs in zip(source.addresses, target.addresses, strict=True)
                for protocol in _KINDS
            ]

        found = netns.call(source.netns_path, inside, to_the_end=False)
        on_source(source.name)
        return found

    with _answering(places), ThreadPoolExecutor(max_workers=max(1, len(places))) as pool:
        return Matrix(tuple(places), tuple(probe for found in pool.map(ask_all, places) for probe in found))


def _ask(source: Place, target: Place, protocol: str, mine: Address, theirs: Address) -> Probe:
    error = ""
    for _ in range(_TRIES if protocol == "udp" else 1):  # TCP repeats by itself
        with socket.socket(_FAMILIES[theirs.version], _KINDS[protocol]) as asker:
            asker.settimeout(_TIMEOUT_S * (_TRIES if protocol == "tcp" else 1))
            try:
                asker.connect((str(theirs), PORT))
                if protocol == "udp":
                    asker.send(b"who am I?")
                return Probe(source.name, target.name, protocol, mine, asker.recv(64).decode())
            except OSError as caught:
                error = "no answer" if isinstance(caught, TimeoutError) else str(caught.strerror)
    return Probe(source.name, target.name, protocol, mine, error=error)


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
