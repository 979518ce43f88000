from router.rpc.v1 import attachment_pb2 as _attachment_pb2
from router.rpc.v1 import subnets_pb2 as _subnets_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tally(_message.Message):
    __slots__ = ("received_packets", "received_bytes", "received_frames", "delivered_packets", "tunnelled_packets", "dropped", "sent_packets", "sent_bytes", "icmp_errors", "balance", "control_packets")
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RECEIVED_PACKETS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_PACKETS_FIELD_NUMBER: _ClassVar[int]
    TUNNELLED_PACKETS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SENT_PACKETS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ICMP_ERRORS_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PACKETS_FIELD_NUMBER: _ClassVar[int]
    received_packets: int
    received_bytes: int
    received_frames: int
    delivered_packets: int
    tunnelled_packets: int
    dropped: _containers.ScalarMap[str, int]
    sent_packets: int
    sent_bytes: int
    icmp_errors: int
    balance: int
    control_packets: int
    def __init__(self, received_packets: _Optional[int] = ..., received_bytes: _Optional[int] = ..., received_frames: _Optional[int] = ..., delivered_packets: _Optional[int] = ..., tunnelled_packets: _Optional[int] = ..., dropped: _Optional[_Mapping[str, int]] = ..., sent_packets: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., icmp_errors: _Optional[int] = ..., balance: _Optional[int] = ..., control_packets: _Optional[int] = ...) -> None: ...

class AttachmentCounters(_message.Message):
    __slots__ = ("key", "tally", "kernel_drops")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    KERNEL_DROPS_FIELD_NUMBER: _ClassVar[int]
    key: _attachment_pb2.AttachmentKey
    tally: Tally
    kernel_drops: int
    def __init__(self, key: _Optional[_Union[_attachment_pb2.AttachmentKey, _Mapping]] = ..., tally: _Optional[_Union[Tally, _Mapping]] = ..., kernel_drops: _Optional[int] = ...) -> None: ...

class PeerCounters(_message.Message):
    __slots__ = ("endpoint", "node", "tally")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    endpoint: _subnets_pb2.Endpoint
    node: str
    tally: Tally
    def __init__(self, endpoint: _Optional[_Union[_subnets_pb2.Endpoint, _Mapping]] = ..., node: _Optional[str] = ..., tally: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("epoch", "attachments", "peers", "strangers", "gone", "icmp_suppressed", "socket_drops", "engine_restarts")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    STRANGERS_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    ICMP_SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    SOCKET_DROPS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    attachments: _containers.RepeatedCompositeFieldContainer[AttachmentCounters]
    peers: _containers.RepeatedCompositeFieldContainer[PeerCounters]
    strangers: Tally
    gone: Tally
    icmp_suppressed: int
    socket_drops: int
    engine_restarts: int
    def __init__(self, epoch: _Optional[str] = ..., attachments: _Optional[_Iterable[_Union[AttachmentCounters, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[PeerCounters, _Mapping]]] = ..., strangers: _Optional[_Union[Tally, _Mapping]] = ..., gone: _Optional[_Union[Tally, _Mapping]] = ..., icmp_suppressed: _Optional[int] = ..., socket_drops: _Optional[int] = ..., engine_restarts: _Optional[int] = ...) -> None: ...
