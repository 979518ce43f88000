"""What a caller may send over gRPC: requests filled at random by their descriptors, damaged ones and noise, to a live server.

Every method of every service is called, new ones without a word here. A request is refused or served; what the servicer raises
beyond that is answered with INTERNAL and "a bug of the router", which is a finding.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from router.control.server import serve
from router.rpc.v1 import observe_pb2, router_pb2
from tests.control_daemon import MemoryDaemon
from tests.engine_rig import Rig
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

_TEXTS = (
    "pod", "eth0", "/run/netns/pod", "10.1.2.3", "10.1.2.0/24", "fd00::1", "fd00:0:0:2::/64", "here", "there", "cni:net", "tcp", "UDP", "192.0.2.1",
    "node", "a" * 15, "a" * 16, *(text for text in mutate.SNIPPETS if "\ud800" not in text),
)  # fmt: skip
_NUMBERS = (0, 1, 2, 4, 6, 80, 575, 576, 1400, 65535, 65536, 2**31 - 1, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_MOST_OF_A_STREAM = 3
_STREAM_TIMEOUT_S = 0.05
_TIMEOUT_S = 10.0
_STREAMS_SHARE = 0.03


class _Method:
    def __init__(self, service: str, found: Any) -> None:
        self.path = f"/{service}/{found.name}"
        self.request = found.input_type
        self.is_stream = bool(found.server_streaming)


class Calls(Target):
    """Both services, over a real socket, with a real engine behind the second; an input is a method's number and a request."""

    name = "grpc"
    reached_by = "who may open the socket, or has a certificate"
    weight = 2.0

    def __init__(self) -> None:
        services = [
            *router_pb2.DESCRIPTOR.services_by_name.values(),
            *observe_pb2.DESCRIPTOR.services_by_name.values(),
        ]
        self._methods = [_Method(service.full_name, each) for service in services for each in service.methods]
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="podwire-fuzz-")))
            rig = undo.enter_context(Rig("python"))
            self._daemon = MemoryDaemon(rig.engine)
            undo.callback(self._daemon.observatory.close)
            server = serve(self._daemon, socket_path=str(directory / "router.sock"))
            server.start()
            undo.callback(server.stop, 0)
            self._channel = undo.enter_context(grpc.insecure_channel(f"unix:{directory}/router.sock"))
            # A request that is no protobuf is logged by grpc itself, with a traceback.
            log = logging.getLogger("grpc._server")
            undo.callback(log.setLevel, log.level)
            log.setLevel(logging.CRITICAL + 1)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def make(self, random: Random) -> bytes:
        while True:
            number = random.randrange(len(self._methods))
            if not self._methods[number].is_stream or random.random() < _STREAMS_SHARE:
                break
        message = GetMessageClass(self._methods[number].request)()
        fill(random, message)
        whole = message.SerializeToString()
        if random.random() < 0.25:
            whole = mutate.damaged(random, whole) if whole else random.randbytes(random.randrange(40))
        return bytes((number,)) + whole

    def feed(self, given: bytes) -> None:
        method = self._methods[given[0] % len(self._methods)]
        if len(self._daemon.held) > 200:
            self._daemon.held.clear()
            self._daemon.asked.clear()
            self._daemon.checked.clear()
            self._daemon.synced.clear()
        try:
            if method.is_stream:
                asking = self._channel.unary_stream(method.path)(given[1:], timeout=_STREAM_TIMEOUT_S)
                for _ in zip(asking, range(_MOST_OF_A_STREAM), strict=False):
                    pass
                asking.cancel()
            else:
                self._channel.unary_unary(method.path)(given[1:], timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            self._judge(method, error)

    def _judge(self, method: _Method, error: Any) -> None:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.INTERNAL and details == "Exception deserializing request!":
            return
        if method.is_stream and code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return
        said = f"{method.path}: {code.name}: {details}"
        broken = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert code not in broken, said
        if code is grpc.StatusCode.UNAVAILABLE:  # by the servicer's word, and the server lives
            self._channel.unary_unary("/podwire.v1.Router/GetStatus")(b"", timeout=_TIMEOUT_S)
        assert code is not grpc.StatusCode.UNIMPLEMENTED or "Method not implemented!" in details, said
        self.is_one_line(details)


def fill(random: Random, message: Message, depth: int = 0) -> None:
    """Set some fields of a message, in the ranges their kind can have."""
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if random.random() < 0.3 or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = getattr(message, field.name)
            for _ in range(random.randrange(4)):
                kind = field.message_type.fields_by_name["value"]
                if kind.message_type is None:
                    entries[random.choice(_TEXTS)] = _scalar(random, kind)
        elif field.is_repeated:
            for _ in range(random.choice((0, 1, 1, 2, 5, 20))):
                if field.message_type is not None:
                    fill(random, getattr(message, field.name).add(), depth + 1)
                else:
                    getattr(message, field.name).append(_scalar(random, field))
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(random, getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, _scalar(random, field))


def _scalar(random: Random, field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = random.choice(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice((0.0, -1.0, 0.5, 1e308, float("inf"), float("nan")))
    number = random.choice(_NUMBERS)
    bits = (
        32
        if field.cpp_type
        in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM)
        else 64
    )
    signed = field.cpp_type in (
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_ENUM,
    )
    number &= (1 << bits) - 1
    return number - (1 << bits) if signed and number >> (bits - 1) else number
