"""The CNI plugin of both kinds, each with a server of its own to ask; and a server that lies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from router.control.server import serve
from tests.conformance.cni_rig import CLIENTS, executable_of
from tests.control_daemon import MemoryDaemon

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two, with a server that only it asks."""

    client: str
    executable: Path
    daemon: MemoryDaemon
    socket: Path

    def run(self, environment: dict[bytes, bytes], config: bytes, timeout_s: float = 60) -> tuple[int, Any, str]:
        done = subprocess.run(
            [self.executable], input=config, env=environment, capture_output=True, timeout=timeout_s, check=False
        )
        out = done.stdout.decode()
        return done.returncode, json.loads(out) if out else None, done.stderr.decode()

    def ask(self, command: str, config: Json, **environment: str) -> tuple[int, Any, str]:
        said = {"CNI_COMMAND": command, "CNI_CONTAINERID": "box", "CNI_NETNS": "/run/netns/box", "CNI_IFNAME": "eth0"}
        found = {"cniVersion": "1.1.0", "name": "net", "socket": str(self.socket)} | config
        return self.run(
            {key.encode(): value.encode() for key, value in (said | environment).items()}, json.dumps(found).encode()
        )


@contextmanager
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    """Yield both kinds; the test is skipped where the compiled one is not built."""
    made, servers = [], []
    for client in CLIENTS:
        directory = tmp_path_factory.mktemp(f"{client:6.6}")  # equally long, for messages that end somewhere
        side = Side(client, executable_of(client, directory), MemoryDaemon(), directory / "router.sock")
        servers.append(serve(side.daemon, socket_path=str(side.socket)))
        servers[-1].start()
        made.append(side)
    yield made
    for server in servers:
        server.stop(0)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@contextmanager
def lying(directory: Path, sent: bytes | None) -> Iterator[str]:
    """Listen, and answer every request with the same bytes and nothing more; None: with nothing, not even an end."""
    path = str(directory / "liar.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(4)

        def serve_one() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)  # hang up politely: unread bytes would reset the connection
                    try:
                        if sent is not None:
                            connection.sendall(sent)
                            connection.shutdown(socket.SHUT_WR)
                        while connection.recv(1 << 16):
                            pass
                    except OSError:
                        pass

        threads = [threading.Thread(target=serve_one) for _ in CLIENTS]
        for thread in threads:
            thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            os.unlink(path)  # noqa: PTH108
