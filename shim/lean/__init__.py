"""A gRPC client for processes that live for milliseconds: no grpcio, no protobuf, next to no imports (decisions/0013)."""
