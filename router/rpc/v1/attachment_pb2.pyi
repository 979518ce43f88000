from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachmentKey(_message.Message):
    __slots__ = ("sandbox_id", "if_name")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    IF_NAME_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    if_name: str
    def __init__(self, sandbox_id: _Optional[str] = ..., if_name: _Optional[str] = ...) -> None: ...

class Attachment(_message.Message):
    __slots__ = ("key", "netns_path", "addresses", "mtu_bytes", "labels")
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
    key: AttachmentKey
    netns_path: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    mtu_bytes: int
    labels: _containers.ScalarMap[str, str]
    def __init__(self, key: _Optional[_Union[AttachmentKey, _Mapping]] = ..., netns_path: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., mtu_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...
