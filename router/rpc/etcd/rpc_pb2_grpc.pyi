import grpc.aio

from router.rpc.etcd import rpc_pb2

class KVStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Range: grpc.aio.UnaryUnaryMultiCallable[rpc_pb2.RangeRequest, rpc_pb2.RangeResponse]
    Txn: grpc.aio.UnaryUnaryMultiCallable[rpc_pb2.TxnRequest, rpc_pb2.TxnResponse]

class WatchStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Watch: grpc.aio.StreamStreamMultiCallable[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]

class LeaseStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    LeaseGrant: grpc.aio.UnaryUnaryMultiCallable[rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse]
    LeaseRevoke: grpc.aio.UnaryUnaryMultiCallable[rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse]
    LeaseKeepAlive: grpc.aio.StreamStreamMultiCallable[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]
    LeaseTimeToLive: grpc.aio.UnaryUnaryMultiCallable[rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse]

class AuthStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Authenticate: grpc.aio.UnaryUnaryMultiCallable[rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse]
