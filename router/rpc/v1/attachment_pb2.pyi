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
    __slots__ = ("key", "netns_path", "addresses", "mtu_bytes", "labels", "owner", "ports", "limits")
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
    key: AttachmentKey
    netns_path: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    mtu_bytes: int
    labels: _containers.ScalarMap[str, str]
    owner: str
    ports: _containers.RepeatedCompositeFieldContainer[PortMapping]
    limits: Limits
    def __init__(self, key: _Optional[_Union[AttachmentKey, _Mapping]] = ..., netns_path: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., mtu_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., owner: _Optional[str] = ..., ports: _Optional[_Iterable[_Union[PortMapping, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class PortMapping(_message.Message):
    __slots__ = ("host_port", "container_port", "protocol", "host_address")
    HOST_PORT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOST_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    host_port: int
    container_port: int
    protocol: str
    host_address: str
    def __init__(self, host_port: _Optional[int] = ..., container_port: _Optional[int] = ..., protocol: _Optional[str] = ..., host_address: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("ingress_bits_per_s", "ingress_burst_bits", "egress_bits_per_s", "egress_burst_bits")
    INGRESS_BITS_PER_S_FIELD_NUMBER: _ClassVar[int]
    INGRESS_BURST_BITS_FIELD_NUMBER: _ClassVar[int]
    EGRESS_BITS_PER_S_FIELD_NUMBER: _ClassVar[int]
    EGRESS_BURST_BITS_FIELD_NUMBER: _ClassVar[int]
    ingress_bits_per_s: int
    ingress_burst_bits: int
    egress_bits_per_s: int
    egress_burst_bits: int
    def __init__(self, ingress_bits_per_s: _Optional[int] = ..., ingress_burst_bits: _Optional[int] = ..., egress_bits_per_s: _Optional[int] = ..., egress_burst_bits: _Optional[int] = ...) -> None: ...
