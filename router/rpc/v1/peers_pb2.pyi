from router.rpc.v1 import counters_pb2 as _counters_pb2
from router.rpc.v1 import subnets_pb2 as _subnets_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PEER_STATE_UNSPECIFIED: _ClassVar[PeerState]
    PEER_STATE_UNKNOWN: _ClassVar[PeerState]
    PEER_STATE_UP: _ClassVar[PeerState]
    PEER_STATE_DOWN: _ClassVar[PeerState]
PEER_STATE_UNSPECIFIED: PeerState
PEER_STATE_UNKNOWN: PeerState
PEER_STATE_UP: PeerState
PEER_STATE_DOWN: PeerState

class Peer(_message.Message):
    __slots__ = ("node", "state", "heard_age_s", "rtt_s", "rtt_min_s", "loss", "mtu_bytes", "why", "tally")
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEARD_AGE_S_FIELD_NUMBER: _ClassVar[int]
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    RTT_MIN_S_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    MTU_BYTES_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    node: _subnets_pb2.Node
    state: PeerState
    heard_age_s: float
    rtt_s: float
    rtt_min_s: float
    loss: float
    mtu_bytes: int
    why: str
    tally: _counters_pb2.Tally
    def __init__(self, node: _Optional[_Union[_subnets_pb2.Node, _Mapping]] = ..., state: _Optional[_Union[PeerState, str]] = ..., heard_age_s: _Optional[float] = ..., rtt_s: _Optional[float] = ..., rtt_min_s: _Optional[float] = ..., loss: _Optional[float] = ..., mtu_bytes: _Optional[int] = ..., why: _Optional[str] = ..., tally: _Optional[_Union[_counters_pb2.Tally, _Mapping]] = ...) -> None: ...
