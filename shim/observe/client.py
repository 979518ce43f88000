"""A client that asks a router about packets, too."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from router.rpc.v1 import observe_pb2
from router.rpc.v1.observe_pb2_grpc import ObserverStub
from shim.client import DEFAULT_SOCKET, TIMEOUT_S, Client, _read
from shim.observe.answers import CaptureChunk, Flow, ListDropsResponse, TraceStep
from shim.observe.filter import Instruction

_TRACE_TIMEOUT_S = 30.0
"""A trace takes ten seconds at most; a router out of breath more."""


class ObserverClient(Client):
    """One connection to the router listening at a Unix socket. Every method raises ClientError."""

    def __init__(self, socket_path: str = DEFAULT_SOCKET, timeout_s: float = TIMEOUT_S) -> None:
        """As `Client`."""
        super().__init__(socket_path, timeout_s)
        self._observer = ObserverStub(self._channel)

    def trace(
        self,
        src: str,
        dst: str,
        *,
        protocol: str = "",
        dst_port: int = 0,
        packet_bytes: int = 0,
        dont_fragment: bool = False,
        dry_run: bool = False,
        ip_version: int = 0,
    ) -> Iterator[TraceStep]:
        """Yield what becomes of a packet, step by step; the last is the conclusion."""
        request = observe_pb2.TraceRequest(
            src=src,
            dst=dst,
            protocol=protocol,
            dst_port=dst_port,
            packet_bytes=packet_bytes,
            dont_fragment=dont_fragment,
            dry_run=dry_run,
            ip_version=ip_version,
        )
        return self._watch(TraceStep, functools.partial(self._observer.Trace, timeout=_TRACE_TIMEOUT_S), request)

    def watch_flows(self, every: int = 0, period_s: int = 0) -> Iterator[Flow]:
        """Yield flows of which one frame in `every` is looked at, each period's; 0: as the router does unless told.

        The watch has begun when this returns. It ends when the router stops (ClientError) or the client is closed.
        """
        request = observe_pb2.WatchFlowsRequest(every=every, period_s=period_s)
        return self._watch(Flow, self._observer.WatchFlows, request)

    def drops(self, subject: str = "") -> ListDropsResponse:
        """List what was dropped lately: of a Pod, a node or an address, whether it sent it or was to get it; or all."""
        request = observe_pb2.ListDropsRequest(subject=subject)
        return _read(ListDropsResponse, self._call(self._observer.ListDrops, request))

    def capture(
        self,
        subject: str = "",
        *,
        program: Iterable[Instruction] = (),
        snap_bytes: int = 0,
        dropped_only: bool = False,
    ) -> Iterator[CaptureChunk]:
        """Yield pieces of a pcapng file until the iterator is closed, or the router ends it (ClientError says why).

        The capture has begun when this returns: no packet that passes afterwards is missed.
        """
        instructions = [observe_pb2.BpfInstruction(code=code, jt=jt, jf=jf, k=k) for code, jt, jf, k in program]
        request = observe_pb2.CaptureRequest(
            subject=subject, filter=instructions, snap_bytes=snap_bytes, dropped_only=dropped_only
        )
        return self._watch(CaptureChunk, self._observer.Capture, request)
