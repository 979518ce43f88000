"""What clients read: answers of whatever listens at the socket, and files that programs leave for each other."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from router.model import AttachmentKey
from router.rpc.v1 import attachment_pb2, router_pb2, status_pb2
from router.tombstones import Tombstones
from shim.lean import codec, document, hpack
from shim.lean.errors import RouterError
from shim.lean.http2 import Exchange
from tests.fuzzers import mutate
from tests.fuzzers.target import Target


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class LeanAnswers(Target):
    """HTTP/2, its headers, and protobuf, as the small clients read them from a router, or from what claims to be one."""

    name = "lean-client"
    reached_by = "who listens in the router's place"

    def __init__(self) -> None:
        made = attachment_pb2.Attachment(addresses=["10.1.2.3/24"], mtu_bytes=1400, labels={"a": "b"})
        answer = router_pb2.AttachResponse(attachment=made).SerializeToString()
        status = status_pb2.Status(
            node="n", subnets=["10.1.1.0/24"], started_at_s=1.5, unreachable=["x"]
        ).SerializeToString()
        opened = hpack.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
        refused = hpack.encode([(b":status", b"200"), (b"grpc-status", b"9"), (b"grpc-message", b"no%20more%")])
        self._messages = [answer, status]
        self._valid = [
            b"".join((
                _frame(4, 0, 0, b"\0\3\0\0\0\x64\0\4\0\1\0\0"),
                _frame(6, 0, 0, bytes(8)),
                _frame(1, 4, 1, opened),
                _frame(0, 0, 1, bytes(1) + len(each).to_bytes(4, "big") + each),
                _frame(8, 0, 0, b"\0\0\1\0"),
                _frame(1, 5, 1, hpack.encode([(b"grpc-status", b"0")])),
            ))
            for each in self._messages
        ] + [_frame(4, 0, 0, b"") + _frame(1, 5, 1, refused), _frame(7, 0, 0, bytes(8))]  # fmt: skip

    def make(self, random: Random) -> bytes:
        return mutate.some(random, self._valid if random.random() < 0.6 else self._messages)

    def feed(self, given: bytes) -> None:
        exchange = Exchange("/podwire.v1.Router/Attach", b"request", 1.0)
        try:
            for at in range(0, len(given), 50):
                exchange.receive(given[at : at + 50])
        except RouterError:
            pass
        for message in ("AttachResponse", "Status", "ListAttachmentsResponse"):
            try:
                codec.decode(message, given)
            except ValueError:
                continue
        try:
            hpack.decode(given)
        except ValueError:
            pass


class Documents(Target):
    """JSON as the CNI plugin's own reader takes it: it must read what the standard library reads, and refuse what that refuses."""

    name = "json"
    reached_by = "container runtimes"
    _valid = ({"a": [1, 2.5, None, True, "x\u00e9\ud83e\udd80"], "b": {"c": {}}}, [], "x", 1)

    def make(self, random: Random) -> bytes:
        return mutate.document(random, self._valid)

    def feed(self, given: bytes) -> None:
        results = []
        for read in (document.read, lambda text: json.loads(text.decode(), parse_constant=_refused)):
            try:
                results.append(repr(read(given)))
            except (ValueError, RecursionError):
                results.append("refused")
        assert results[0] == results[1]


def _refused(name: str) -> float:
    raise ValueError(name)


class TombstoneFiles(Target):
    """Files that shims leave beside the socket for the next router."""

    name = "tombstones"
    reached_by = "who may write beside the socket: root"
    _valid = ({"sandbox_id": "pod", "if_name": "eth0", "detached_ns": 5},)

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="podwire-fuzz-")
        logging.getLogger("router.tombstones").setLevel(logging.CRITICAL)  # each that is refused has a line
        self._stones = Tombstones(Path(self._directory.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("router.tombstones").setLevel(logging.NOTSET)
        self._directory.cleanup()

    def make(self, random: Random) -> bytes:
        return mutate.document(random, self._valid, ("sandbox_id", "if_name", "detached_ns"))

    def feed(self, given: bytes) -> None:
        path = Path(self._directory.name) / "one.json"
        path.write_bytes(given)
        self._stones.bury(self._detach)
        assert not path.exists(), "it stays, and is read again every second"

    @staticmethod
    def _detach(key: AttachmentKey, detached_ns: int) -> None:
        assert isinstance(key.sandbox_id, str)
        assert isinstance(key.if_name, str)
        assert 0 <= detached_ns < 1 << 63
