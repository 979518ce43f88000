from router.rpc.v1 import subnets_pb2 as _subnets_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Offloads(_message.Message):
    __slots__ = ("tun_checksum", "tun_tso", "tun_uso", "udp_segment", "udp_gro", "max_segments")
    TUN_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    TUN_TSO_FIELD_NUMBER: _ClassVar[int]
    TUN_USO_FIELD_NUMBER: _ClassVar[int]
    UDP_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    UDP_GRO_FIELD_NUMBER: _ClassVar[int]
    MAX_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    tun_checksum: bool
    tun_tso: bool
    tun_uso: bool
    udp_segment: bool
    udp_gro: bool
    max_segments: int
    def __init__(self, tun_checksum: _Optional[bool] = ..., tun_tso: _Optional[bool] = ..., tun_uso: _Optional[bool] = ..., udp_segment: _Optional[bool] = ..., udp_gro: _Optional[bool] = ..., max_segments: _Optional[int] = ...) -> None: ...

class FreeAddresses(_message.Message):
    __slots__ = ("subnet", "free")
    SUBNET_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    subnet: str
    free: int
    def __init__(self, subnet: _Optional[str] = ..., free: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("held", "epoch", "expires_in_s", "reserved", "why")
    HELD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    held: bool
    epoch: int
    expires_in_s: float
    reserved: bool
    why: str
    def __init__(self, held: _Optional[bool] = ..., epoch: _Optional[int] = ..., expires_in_s: _Optional[float] = ..., reserved: _Optional[bool] = ..., why: _Optional[str] = ...) -> None: ...

class SubnetSource(_message.Message):
    __slots__ = ("kind", "where", "connected", "confirmed_age_s", "error", "lease")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    where: str
    connected: bool
    confirmed_age_s: float
    error: str
    lease: Lease
    def __init__(self, kind: _Optional[str] = ..., where: _Optional[str] = ..., connected: _Optional[bool] = ..., confirmed_age_s: _Optional[float] = ..., error: _Optional[str] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("node", "engine", "version", "started_at_s", "networks", "subnets", "node_addresses", "endpoint", "mtu_bytes", "vni", "offloads", "notes", "attachments", "peers", "table_version", "table_age_s", "free_addresses", "resident_bytes", "table_error", "peers_unreachable", "unreachable", "source", "confinement")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_S_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    SUBNETS_FIELD_NUMBER: _ClassVar[int]
    NODE_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    MTU_BYTES_FIELD_NUMBER: _ClassVar[int]
    VNI_FIELD_NUMBER: _ClassVar[int]
    OFFLOADS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TABLE_AGE_S_FIELD_NUMBER: _ClassVar[int]
    FREE_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TABLE_ERROR_FIELD_NUMBER: _ClassVar[int]
    PEERS_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CONFINEMENT_FIELD_NUMBER: _ClassVar[int]
    node: str
    engine: str
    version: str
    started_at_s: float
    networks: _containers.RepeatedScalarFieldContainer[str]
    subnets: _containers.RepeatedScalarFieldContainer[str]
    node_addresses: _containers.RepeatedScalarFieldContainer[str]
    endpoint: _subnets_pb2.Endpoint
    mtu_bytes: int
    vni: int
    offloads: Offloads
    notes: _containers.RepeatedScalarFieldContainer[str]
    attachments: int
    peers: int
    table_version: int
    table_age_s: float
    free_addresses: _containers.RepeatedCompositeFieldContainer[FreeAddresses]
    resident_bytes: int
    table_error: str
    peers_unreachable: int
    unreachable: _containers.RepeatedScalarFieldContainer[str]
    source: SubnetSource
    confinement: str
    def __init__(self, node: _Optional[str] = ..., engine: _Optional[str] = ..., version: _Optional[str] = ..., started_at_s: _Optional[float] = ..., networks: _Optional[_Iterable[str]] = ..., subnets: _Optional[_Iterable[str]] = ..., node_addresses: _Optional[_Iterable[str]] = ..., endpoint: _Optional[_Union[_subnets_pb2.Endpoint, _Mapping]] = ..., mtu_bytes: _Optional[int] = ..., vni: _Optional[int] = ..., offloads: _Optional[_Union[Offloads, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ..., attachments: _Optional[int] = ..., peers: _Optional[int] = ..., table_version: _Optional[int] = ..., table_age_s: _Optional[float] = ..., free_addresses: _Optional[_Iterable[_Union[FreeAddresses, _Mapping]]] = ..., resident_bytes: _Optional[int] = ..., table_error: _Optional[str] = ..., peers_unreachable: _Optional[int] = ..., unreachable: _Optional[_Iterable[str]] = ..., source: _Optional[_Union[SubnetSource, _Mapping]] = ..., confinement: _Optional[str] = ...) -> None: ...
