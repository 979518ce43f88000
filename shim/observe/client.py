"""A client that asks a router about packets, too."""

from __future__ import annotations

from router.rpc.v1.observe_pb2_grpc import ObserverStub
from shim.client import DEFAULT_SOCKET, TIMEOUT_S, Client


class ObserverClient(Client):
    """One connection to the router listening at a Unix socket. Every method raises ClientError."""

    def __init__(self, socket_path: str = DEFAULT_SOCKET, timeout_s: float = TIMEOUT_S) -> None:
        """As `Client`."""
        super().__init__(socket_path, timeout_s)
        self._observer = ObserverStub(self._channel)
