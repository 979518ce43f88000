from collections.abc import Iterator

import grpc

from router.rpc.v1 import observe_pb2

class ObserverStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Trace: grpc.UnaryStreamMultiCallable[observe_pb2.TraceRequest, observe_pb2.TraceStep]
    ListDrops: grpc.UnaryUnaryMultiCallable[observe_pb2.ListDropsRequest, observe_pb2.ListDropsResponse]
    Capture: grpc.UnaryStreamMultiCallable[observe_pb2.CaptureRequest, observe_pb2.CaptureChunk]
    WatchFlows: grpc.UnaryStreamMultiCallable[observe_pb2.WatchFlowsRequest, observe_pb2.Flow]

class ObserverServicer:
    def Trace(self, request: observe_pb2.TraceRequest, context: grpc.ServicerContext) -> Iterator[observe_pb2.TraceStep]: ...
    def ListDrops(self, request: observe_pb2.ListDropsRequest, context: grpc.ServicerContext) -> observe_pb2.ListDropsResponse: ...
    def Capture(self, request: observe_pb2.CaptureRequest, context: grpc.ServicerContext) -> Iterator[observe_pb2.CaptureChunk]: ...
    def WatchFlows(self, request: observe_pb2.WatchFlowsRequest, context: grpc.ServicerContext) -> Iterator[observe_pb2.Flow]: ...

def add_ObserverServicer_to_server(servicer: ObserverServicer, server: grpc.Server) -> None: ...
