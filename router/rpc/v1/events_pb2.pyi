from router.rpc.v1 import attachment_pb2 as _attachment_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_ATTACHED: _ClassVar[EventKind]
    EVENT_KIND_DETACHED: _ClassVar[EventKind]
    EVENT_KIND_ATTACHMENT_LOST: _ClassVar[EventKind]
    EVENT_KIND_TABLE_CHANGED: _ClassVar[EventKind]
    EVENT_KIND_TABLE_REFUSED: _ClassVar[EventKind]
    EVENT_KIND_OFFLOAD_OFF: _ClassVar[EventKind]
    EVENT_KIND_ENGINE_ERROR: _ClassVar[EventKind]
    EVENT_KIND_STARTED: _ClassVar[EventKind]
    EVENT_KIND_STOPPING: _ClassVar[EventKind]
    EVENT_KIND_RELEASED: _ClassVar[EventKind]
    EVENT_KIND_LEASE_TAKEN: _ClassVar[EventKind]
    EVENT_KIND_LEASE_LOST: _ClassVar[EventKind]
    EVENT_KIND_SOURCE_LOST: _ClassVar[EventKind]
    EVENT_KIND_SOURCE_FOUND: _ClassVar[EventKind]
    EVENT_KIND_PEER_DOWN: _ClassVar[EventKind]
    EVENT_KIND_PEER_UP: _ClassVar[EventKind]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_ATTACHED: EventKind
EVENT_KIND_DETACHED: EventKind
EVENT_KIND_ATTACHMENT_LOST: EventKind
EVENT_KIND_TABLE_CHANGED: EventKind
EVENT_KIND_TABLE_REFUSED: EventKind
EVENT_KIND_OFFLOAD_OFF: EventKind
EVENT_KIND_ENGINE_ERROR: EventKind
EVENT_KIND_STARTED: EventKind
EVENT_KIND_STOPPING: EventKind
EVENT_KIND_RELEASED: EventKind
EVENT_KIND_LEASE_TAKEN: EventKind
EVENT_KIND_LEASE_LOST: EventKind
EVENT_KIND_SOURCE_LOST: EventKind
EVENT_KIND_SOURCE_FOUND: EventKind
EVENT_KIND_PEER_DOWN: EventKind
EVENT_KIND_PEER_UP: EventKind

class Event(_message.Message):
    __slots__ = ("sequence", "at_s", "kind", "key", "node", "message")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at_s: float
    kind: EventKind
    key: _attachment_pb2.AttachmentKey
    node: str
    message: str
    def __init__(self, sequence: _Optional[int] = ..., at_s: _Optional[float] = ..., kind: _Optional[_Union[EventKind, str]] = ..., key: _Optional[_Union[_attachment_pb2.AttachmentKey, _Mapping]] = ..., node: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
