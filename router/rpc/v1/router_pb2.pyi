from router.rpc.v1 import attachment_pb2 as _attachment_pb2
from router.rpc.v1 import counters_pb2 as _counters_pb2
from router.rpc.v1 import events_pb2 as _events_pb2
from router.rpc.v1 import peers_pb2 as _peers_pb2
from router.rpc.v1 import status_pb2 as _status_pb2
from router.rpc.v1 import subnets_pb2 as _subnets_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("key", "netns_path", "addresses", "mtu_bytes", "labels", "owner", "ports", "limits", "began_ns")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    NETNS_PATH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    MTU_BYTES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_NS_FIELD_NUMBER: _ClassVar[int]
    key: _attachment_pb2.AttachmentKey
    netns_path: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    mtu_bytes: int
    labels: _containers.ScalarMap[str, str]
    owner: str
    ports: _containers.RepeatedCompositeFieldContainer[_attachment_pb2.PortMapping]
    limits: _attachment_pb2.Limits
    began_ns: int
    def __init__(self, key: _Optional[_Union[_attachment_pb2.AttachmentKey, _Mapping]] = ..., netns_path: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., mtu_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., owner: _Optional[str] = ..., ports: _Optional[_Iterable[_Union[_attachment_pb2.PortMapping, _Mapping]]] = ..., limits: _Optional[_Union[_attachment_pb2.Limits, _Mapping]] = ..., began_ns: _Optional[int] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("attachment",)
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    attachment: _attachment_pb2.Attachment
    def __init__(self, attachment: _Optional[_Union[_attachment_pb2.Attachment, _Mapping]] = ...) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _attachment_pb2.AttachmentKey
    def __init__(self, key: _Optional[_Union[_attachment_pb2.AttachmentKey, _Mapping]] = ...) -> None: ...

class DetachResponse(_message.Message):
    __slots__ = ("detached",)
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    detached: bool
    def __init__(self, detached: _Optional[bool] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("live", "owner", "as_of_ns")
    LIVE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    AS_OF_NS_FIELD_NUMBER: _ClassVar[int]
    live: _containers.RepeatedCompositeFieldContainer[_attachment_pb2.AttachmentKey]
    owner: str
    as_of_ns: int
    def __init__(self, live: _Optional[_Iterable[_Union[_attachment_pb2.AttachmentKey, _Mapping]]] = ..., owner: _Optional[str] = ..., as_of_ns: _Optional[int] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("key", "netns_path", "addresses", "routes")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NETNS_PATH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    key: _attachment_pb2.AttachmentKey
    netns_path: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    routes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[_Union[_attachment_pb2.AttachmentKey, _Mapping]] = ..., netns_path: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., routes: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("attachment",)
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    attachment: _attachment_pb2.Attachment
    def __init__(self, attachment: _Optional[_Union[_attachment_pb2.Attachment, _Mapping]] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: _containers.RepeatedCompositeFieldContainer[_attachment_pb2.AttachmentKey]
    def __init__(self, released: _Optional[_Iterable[_Union[_attachment_pb2.AttachmentKey, _Mapping]]] = ...) -> None: ...

class ListAttachmentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAttachmentsResponse(_message.Message):
    __slots__ = ("attachments",)
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    attachments: _containers.RepeatedCompositeFieldContainer[_attachment_pb2.Attachment]
    def __init__(self, attachments: _Optional[_Iterable[_Union[_attachment_pb2.Attachment, _Mapping]]] = ...) -> None: ...

class ListSubnetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplaceSubnetsRequest(_message.Message):
    __slots__ = ("nodes", "expected_version")
    NODES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[_subnets_pb2.Node]
    expected_version: int
    def __init__(self, nodes: _Optional[_Iterable[_Union[_subnets_pb2.Node, _Mapping]]] = ..., expected_version: _Optional[int] = ...) -> None: ...

class UpsertSubnetsRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: _subnets_pb2.Node
    def __init__(self, node: _Optional[_Union[_subnets_pb2.Node, _Mapping]] = ...) -> None: ...

class RemoveSubnetsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListPeersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPeersResponse(_message.Message):
    __slots__ = ("version", "peers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    peers: _containers.RepeatedCompositeFieldContainer[_peers_pb2.Peer]
    def __init__(self, version: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[_peers_pb2.Peer, _Mapping]]] = ...) -> None: ...

class WatchSubnetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCountersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("after_sequence", "no_follow")
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NO_FOLLOW_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    no_follow: bool
    def __init__(self, after_sequence: _Optional[int] = ..., no_follow: _Optional[bool] = ...) -> None: ...
