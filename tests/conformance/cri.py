"""A client of the Kubernetes Container Runtime Interface: what a kubelet says to its runtime, and nothing more."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_tools import protoc

_PROTO = Path(__file__).with_name("cri.proto")


class CriError(Exception):
    """A call that failed, with the gRPC status' name and the runtime's words."""

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {code}: {details}")
        self.code = code
        self.details = details


class Cri:
    """One connection to a runtime. Messages are dicts by the names of cri.proto, in answers with every field filled in."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.min_reconnect_backoff_ms", 50),
                # A channel of its own for each client: a killed runtime's must not linger for the next one.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def __enter__(self) -> Cri:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, timeout_s: float = 60.0, wait: bool = False, **fields: Any) -> dict[str, Any]:
        """Call a method of either service. CriError says what it said; `wait` is for a runtime that is starting."""
        path, request_type, answer_type = _methods()[method]
        call = self._channel.unary_unary(
            path, request_serializer=request_type.SerializeToString, response_deserializer=answer_type.FromString
        )
        try:
            answer = call(ParseDict(fields, request_type()), timeout=timeout_s, wait_for_ready=wait)
        except grpc.RpcError as error:
            raise CriError(method, error.code().name, error.details()) from None
        return MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


@functools.cache
def _methods() -> Mapping[str, tuple[str, Any, Any]]:
    """Return method to (path, request's class, answer's class), compiled from cri.proto."""
    with tempfile.TemporaryDirectory() as directory:
        compiled = Path(directory, "cri.binpb")
        words = ["protoc", f"--proto_path={_PROTO.parent}", f"--descriptor_set_out={compiled}", str(_PROTO)]
        if protoc.main(words) != 0:
            raise RuntimeError(f"{_PROTO} does not compile")
        [file] = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()  # its own: "runtime.v1" may be somebody else's name too
    pool.Add(file)
    methods = {}
    for service in file.service:
        found = pool.FindServiceByName(f"{file.package}.{service.name}")
        for method in found.methods:
            methods[method.name] = (
                f"/{found.full_name}/{method.name}",
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
            )
    return methods
