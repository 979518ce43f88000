"""An echo service inside places of a lab: gives back every byte, and notes with which address the sender was seen."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import cast

from shim.lab import netns
from shim.lab.node import LabNode
from shim.lab.pod import LabPod

PORT = 7077
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SO_RCVBUFFORCE, _BUFFER_BYTES = 33, 4 << 20
Place = LabPod | LabNode
Address = IPv4Address | IPv6Address


class Echo:
    """Answers over TCP and UDP at every address of these places while the `with` block runs."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = tuple(places)
        self._selector = selectors.DefaultSelector()
        self._stack = ExitStack()
        self.seen: set[tuple[str, str, str]] = set()
        """(protocol, address asked, address of the asker)"""

    def __enter__(self) -> Echo:
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            for place in self._places:
                for address in place.addresses:
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        server = stack.enter_context(
                            netns.open_socket(place.netns_path, FAMILIES[address.version], kind)
                        )
                        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        server.bind((str(address), PORT))
                        if kind == socket.SOCK_STREAM:
                            server.listen()
                        else:
                            enlarge(server)
                        self._selector.register(server, selectors.EVENT_READ, str(address))
            stopped, stop = socket.socketpair()
            stack.enter_context(stopped)
            self._selector.register(stopped, selectors.EVENT_READ, "")
            thread = threading.Thread(target=self._serve, name="echo", daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(stop.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                server, address = cast(socket.socket, key.fileobj), key.data
                if not address:
                    return
                if server.type == socket.SOCK_DGRAM:
                    payload, asker = server.recvfrom(1 << 16)
                    self.seen.add(("udp", address, asker[0]))
                    with suppress(OSError):
                        server.sendto(payload, asker)
                else:
                    connection, asker = server.accept()
                    self.seen.add(("tcp", address, asker[0]))
                    threading.Thread(target=_give_back, args=(connection,), daemon=True).start()


def _give_back(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while chunk := connection.recv(1 << 16):
            connection.sendall(chunk)


def enlarge(sock: socket.socket) -> None:
    """Give a socket room for whole bursts."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)


def ask_tcp(asker: socket.socket, payload: bytes) -> bytes:
    """Send over a connected stream and return as many bytes as come back; both directions run at once."""
    sender = threading.Thread(target=asker.sendall, args=(payload,), daemon=True)
    sender.start()
    found = bytearray()
    while len(found) < len(payload) and (chunk := asker.recv(1 << 18)):
        found += chunk
    sender.join()
    return bytes(found)


def ask_udp(asker: socket.socket, payload: bytes) -> bytes:
    """Send over a connected socket and return the answer."""
    asker.send(payload)
    return asker.recv(1 << 16)


def connect(source: Place, address: Address, kind: socket.SocketKind, timeout_s: float = 5.0) -> socket.socket:
    """Return a socket in a place, connected to the echo at an address."""
    asker = netns.open_socket(source.netns_path, FAMILIES[address.version], kind)
    try:
        asker.settimeout(timeout_s)
        if kind == socket.SOCK_DGRAM:
            enlarge(asker)
        asker.connect((str(address), PORT))
    except BaseException:
        asker.close()
        raise
    return asker
