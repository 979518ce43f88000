"""The control edge for questions about packets: podwire.v1.Observer, over an observatory."""
# Names, arguments and documentation of the calls are the contract's.

from __future__ import annotations

from router.observe.observatory import Observatory
from router.rpc.v1.observe_pb2_grpc import ObserverServicer as ObserverServicerBase


class ObserverServicer(ObserverServicerBase):
    """podwire.v1.Observer."""

    def __init__(self, observatory: Observatory) -> None:
        self._observatory = observatory
