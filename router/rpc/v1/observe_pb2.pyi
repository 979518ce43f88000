from router.rpc.v1 import attachment_pb2 as _attachment_pb2
from router.rpc.v1 import subnets_pb2 as _subnets_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_LOCAL: _ClassVar[Verdict]
    VERDICT_TUNNEL: _ClassVar[Verdict]
    VERDICT_REJECT: _ClassVar[Verdict]
    VERDICT_DROP: _ClassVar[Verdict]

class TraceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRACE_KIND_UNSPECIFIED: _ClassVar[TraceKind]
    TRACE_KIND_DECISION: _ClassVar[TraceKind]
    TRACE_KIND_PROBE: _ClassVar[TraceKind]
    TRACE_KIND_CONCLUSION: _ClassVar[TraceKind]
VERDICT_UNSPECIFIED: Verdict
VERDICT_LOCAL: Verdict
VERDICT_TUNNEL: Verdict
VERDICT_REJECT: Verdict
VERDICT_DROP: Verdict
TRACE_KIND_UNSPECIFIED: TraceKind
TRACE_KIND_DECISION: TraceKind
TRACE_KIND_PROBE: TraceKind
TRACE_KIND_CONCLUSION: TraceKind

class FiveTuple(_message.Message):
    __slots__ = ("src", "dst", "protocol", "src_port", "dst_port")
    SRC_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SRC_PORT_FIELD_NUMBER: _ClassVar[int]
    DST_PORT_FIELD_NUMBER: _ClassVar[int]
    src: str
    dst: str
    protocol: int
    src_port: int
    dst_port: int
    def __init__(self, src: _Optional[str] = ..., dst: _Optional[str] = ..., protocol: _Optional[int] = ..., src_port: _Optional[int] = ..., dst_port: _Optional[int] = ...) -> None: ...

class Party(_message.Message):
    __slots__ = ("attachment", "endpoint", "name")
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    attachment: _attachment_pb2.AttachmentKey
    endpoint: _subnets_pb2.Endpoint
    name: str
    def __init__(self, attachment: _Optional[_Union[_attachment_pb2.AttachmentKey, _Mapping]] = ..., endpoint: _Optional[_Union[_subnets_pb2.Endpoint, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class TraceRequest(_message.Message):
    __slots__ = ("src", "dst", "protocol", "dst_port", "packet_bytes", "dont_fragment", "dry_run", "ip_version")
    SRC_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DST_PORT_FIELD_NUMBER: _ClassVar[int]
    PACKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONT_FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    IP_VERSION_FIELD_NUMBER: _ClassVar[int]
    src: str
    dst: str
    protocol: str
    dst_port: int
    packet_bytes: int
    dont_fragment: bool
    dry_run: bool
    ip_version: int
    def __init__(self, src: _Optional[str] = ..., dst: _Optional[str] = ..., protocol: _Optional[str] = ..., dst_port: _Optional[int] = ..., packet_bytes: _Optional[int] = ..., dont_fragment: _Optional[bool] = ..., dry_run: _Optional[bool] = ..., ip_version: _Optional[int] = ...) -> None: ...

class TraceStep(_message.Message):
    __slots__ = ("kind", "node", "verdict", "reason", "target", "mtu_bytes", "hop", "address", "rtt_s", "text", "reached")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MTU_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    kind: TraceKind
    node: str
    verdict: Verdict
    reason: str
    target: str
    mtu_bytes: int
    hop: int
    address: str
    rtt_s: float
    text: str
    reached: bool
    def __init__(self, kind: _Optional[_Union[TraceKind, str]] = ..., node: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., target: _Optional[str] = ..., mtu_bytes: _Optional[int] = ..., hop: _Optional[int] = ..., address: _Optional[str] = ..., rtt_s: _Optional[float] = ..., text: _Optional[str] = ..., reached: _Optional[bool] = ...) -> None: ...

class ListDropsRequest(_message.Message):
    __slots__ = ("subject",)
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    def __init__(self, subject: _Optional[str] = ...) -> None: ...

class Drop(_message.Message):
    __slots__ = ("source", "reason", "flow", "packets", "first_s", "last_s", "packet_bytes", "limit_bytes", "text")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    FIRST_S_FIELD_NUMBER: _ClassVar[int]
    LAST_S_FIELD_NUMBER: _ClassVar[int]
    PACKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    source: Party
    reason: str
    flow: FiveTuple
    packets: int
    first_s: float
    last_s: float
    packet_bytes: int
    limit_bytes: int
    text: str
    def __init__(self, source: _Optional[_Union[Party, _Mapping]] = ..., reason: _Optional[str] = ..., flow: _Optional[_Union[FiveTuple, _Mapping]] = ..., packets: _Optional[int] = ..., first_s: _Optional[float] = ..., last_s: _Optional[float] = ..., packet_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ListDropsResponse(_message.Message):
    __slots__ = ("drops",)
    DROPS_FIELD_NUMBER: _ClassVar[int]
    drops: _containers.RepeatedCompositeFieldContainer[Drop]
    def __init__(self, drops: _Optional[_Iterable[_Union[Drop, _Mapping]]] = ...) -> None: ...

class BpfInstruction(_message.Message):
    __slots__ = ("code", "jt", "jf", "k")
    CODE_FIELD_NUMBER: _ClassVar[int]
    JT_FIELD_NUMBER: _ClassVar[int]
    JF_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    code: int
    jt: int
    jf: int
    k: int
    def __init__(self, code: _Optional[int] = ..., jt: _Optional[int] = ..., jf: _Optional[int] = ..., k: _Optional[int] = ...) -> None: ...

class CaptureRequest(_message.Message):
    __slots__ = ("subject", "filter", "snap_bytes", "dropped_only")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    SNAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ONLY_FIELD_NUMBER: _ClassVar[int]
    subject: str
    filter: _containers.RepeatedCompositeFieldContainer[BpfInstruction]
    snap_bytes: int
    dropped_only: bool
    def __init__(self, subject: _Optional[str] = ..., filter: _Optional[_Iterable[_Union[BpfInstruction, _Mapping]]] = ..., snap_bytes: _Optional[int] = ..., dropped_only: _Optional[bool] = ...) -> None: ...

class CaptureChunk(_message.Message):
    __slots__ = ("pcapng", "packets", "lost")
    PCAPNG_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    pcapng: bytes
    packets: int
    lost: int
    def __init__(self, pcapng: _Optional[bytes] = ..., packets: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class WatchFlowsRequest(_message.Message):
    __slots__ = ("every", "period_s")
    EVERY_FIELD_NUMBER: _ClassVar[int]
    PERIOD_S_FIELD_NUMBER: _ClassVar[int]
    every: int
    period_s: int
    def __init__(self, every: _Optional[int] = ..., period_s: _Optional[int] = ...) -> None: ...

class Flow(_message.Message):
    __slots__ = ("flow", "source", "target", "verdict", "reason", "packets", "bytes", "sampled", "first_s", "last_s", "latency_s")
    FLOW_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    FIRST_S_FIELD_NUMBER: _ClassVar[int]
    LAST_S_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    flow: FiveTuple
    source: Party
    target: Party
    verdict: Verdict
    reason: str
    packets: int
    bytes: int
    sampled: int
    first_s: float
    last_s: float
    latency_s: float
    def __init__(self, flow: _Optional[_Union[FiveTuple, _Mapping]] = ..., source: _Optional[_Union[Party, _Mapping]] = ..., target: _Optional[_Union[Party, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., packets: _Optional[int] = ..., bytes: _Optional[int] = ..., sampled: _Optional[int] = ..., first_s: _Optional[float] = ..., last_s: _Optional[float] = ..., latency_s: _Optional[float] = ...) -> None: ...
