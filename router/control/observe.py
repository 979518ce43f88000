"""The control edge for questions about packets: podwire.v1.Observer, over an observatory."""
# Names, arguments and documentation of the calls are the contract's.
# ruff: noqa: ARG002, D102, N802

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from router.control import fields, messages
from router.control.calls import stream, unary
from router.engine.interface import Instruction, Source
from router.errors import Kind, Refusal
from router.model import Endpoint, Flow
from router.observe.capture import STALLED_S, Wish
from router.observe.drops import Dropped
from router.observe.flows import EVERY, MOST_EVERY, PERIOD_S, FlowRecord
from router.observe.observatory import Observatory
from router.observe.trace.steps import TraceRequest, TraceStep
from router.rpc.v1 import observe_pb2
from router.rpc.v1.observe_pb2_grpc import ObserverServicer as ObserverServicerBase
from router.wire import bpf

_SUBJECT_CHARACTERS = 512
_MOST_SNAP_BYTES = 0xFFFF


class ObserverServicer(ObserverServicerBase):
    """podwire.v1.Observer."""

    def __init__(self, observatory: Observatory) -> None:
        self._observatory = observatory

    @stream
    def Trace(
        self, request: observe_pb2.TraceRequest, context: grpc.ServicerContext
    ) -> Iterator[observe_pb2.TraceStep]:
        steps = self._observatory.tracer.trace(
            TraceRequest(
                request.src,
                request.dst,
                request.protocol,
                request.dst_port,
                request.packet_bytes,
                request.dont_fragment,
                request.dry_run,
                request.ip_version,
            )
        )
        for step in steps:
            if not context.is_active():
                return
            yield _step_message(step)

    @unary
    def ListDrops(
        self, request: observe_pb2.ListDropsRequest, context: grpc.ServicerContext
    ) -> observe_pb2.ListDropsResponse:
        found = self._observatory.drops.list(subject(request.subject))
        naming = self._observatory.names.naming()
        return observe_pb2.ListDropsResponse(drops=[_drop_message(each, naming) for each in found])

    @stream
    def Capture(
        self, request: observe_pb2.CaptureRequest, context: grpc.ServicerContext
    ) -> Iterator[observe_pb2.CaptureChunk]:
        capture = self._observatory.captures.open(self._wish(request), let_go=context.cancel)
        try:
            # In the one thread that all calls begin and end in: it must not wait for the engine.
            if not context.add_callback(capture.end):
                return  # cancelled before it began
            # The answer has begun: who captures knows that every packet is seen from now on.
            context.send_initial_metadata(())
            for chunk in capture:
                yield observe_pb2.CaptureChunk(pcapng=chunk.pcapng, packets=chunk.packets, lost=chunk.lost)
        finally:
            capture.close()

    def _wish(self, request: observe_pb2.CaptureRequest) -> Wish:
        program = tuple(Instruction(each.code, each.jt, each.jf, each.k) for each in request.filter)
        if why := bpf.check(program):
            raise Refusal(Kind.INVALID, f"filter: {why}; send a classic BPF program for link type RAW")
        if request.snap_bytes > _MOST_SNAP_BYTES:
            message = f"snap_bytes {request.snap_bytes}: use 1 to {_MOST_SNAP_BYTES}, or 0 for whole packets"
            raise Refusal(Kind.INVALID, message)
        asked = subject(request.subject)
        party = self._observatory.names.source(asked) if asked else None
        return Wish(party, program, request.snap_bytes or _MOST_SNAP_BYTES, request.dropped_only)

    @stream
    def WatchFlows(
        self, request: observe_pb2.WatchFlowsRequest, context: grpc.ServicerContext
    ) -> Iterator[observe_pb2.Flow]:
        every = fields.number("every", request.every or EVERY, 1, MOST_EVERY)
        period_s = fields.number("period_s", request.period_s or PERIOD_S, 1, 3600)
        with self._observatory.flows.watch(every, period_s) as periods:
            context.send_initial_metadata(())  # nothing that passes from now on is missed
            for records in periods:
                if not context.is_active():
                    return
                if records:
                    naming = self._observatory.names.naming()
                    with _let_go_if_stalled(context):
                        yield from (flow_message(record, naming) for record in records)


@contextmanager
def _let_go_if_stalled(context: grpc.ServicerContext) -> Iterator[None]:
    """End a stream whose client has not taken what is handed to it for too long: it would keep a thread and a place."""
    stalled = threading.Timer(STALLED_S, context.cancel)
    stalled.daemon = True
    stalled.start()
    try:
        yield
    finally:
        stalled.cancel()


def _step_message(step: TraceStep) -> observe_pb2.TraceStep:
    return observe_pb2.TraceStep(
        kind=f"TRACE_KIND_{step.kind.name}",
        node=step.node,
        verdict=f"VERDICT_{step.verdict.name if step.verdict else 'UNSPECIFIED'}",
        reason=step.reason,
        target=step.target,
        mtu_bytes=step.mtu_bytes,
        hop=step.hop,
        address=step.address,
        rtt_s=step.rtt_s,
        text=step.text,
        reached=step.reached,
    )


def flow_message(record: FlowRecord, naming: Callable[[Source], str]) -> observe_pb2.Flow:
    """Say what was seen of a flow."""
    return observe_pb2.Flow(
        flow=five_tuple_message(record.flow),
        source=party_message(record.source, naming),
        target=party_message(record.target, naming),
        verdict=f"VERDICT_{record.verdict.name if record.verdict else 'UNSPECIFIED'}",
        reason=str(record.reason or ""),
        packets=record.packets,
        bytes=record.bytes,
        sampled=record.sampled,
        first_s=record.first_ns / 1e9,
        last_s=record.last_ns / 1e9,
        latency_s=record.latency_s,
    )


def five_tuple_message(flow: Flow | None) -> observe_pb2.FiveTuple | None:
    """Say which flow; None of what is no packet."""
    if flow is None:
        return None
    return observe_pb2.FiveTuple(
        src=str(flow.src), dst=str(flow.dst), protocol=flow.protocol, src_port=flow.src_port, dst_port=flow.dst_port
    )


def party_message(source: Source | None, naming: Callable[[Source], str]) -> observe_pb2.Party | None:
    """Say who it is, and what people call it; None of nobody."""
    if source is None:
        return None
    if isinstance(source, Endpoint):
        return observe_pb2.Party(endpoint=messages.endpoint_message(source), name=naming(source))
    return observe_pb2.Party(attachment=messages.key_message(source), name=naming(source))


def subject(text: str) -> str:
    """Check what somebody calls a Pod or node."""
    if len(text) > _SUBJECT_CHARACTERS or not text.isprintable():
        why = f"use at most {_SUBJECT_CHARACTERS} printable characters"
        raise Refusal(Kind.INVALID, f"subject {fields.shown(text)}: {why}")
    return text


def _drop_message(dropped: Dropped, naming: Callable[[Source], str]) -> observe_pb2.Drop:
    found = dropped.found
    return observe_pb2.Drop(
        source=party_message(found.source, naming),
        reason=found.reason.value,
        flow=five_tuple_message(found.flow),
        packets=found.packets,
        first_s=found.first_ns / 1e9,
        last_s=found.last_ns / 1e9,
        packet_bytes=found.packet_bytes,
        limit_bytes=found.limit_bytes,
        text=dropped.text,
    )
