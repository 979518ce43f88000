"""A thin client of one router: a method a call, plain values in and out, every wait with a deadline."""

from __future__ import annotations

import functools
import os
import re
import socket
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from router.rpc.v1 import attachment_pb2, router_pb2, subnets_pb2
from router.rpc.v1.router_pb2_grpc import RouterStub
from shim.answers import (
    Attachment,
    AttachmentKey,
    Counters,
    Event,
    Limits,
    ListPeersResponse,
    Node,
    PortMapping,
    Status,
    SubnetChange,
    SubnetTable,
)

DEFAULT_SOCKET = "/run/podwire/router.sock"
TIMEOUT_S = 10.0
TABLE_TIMEOUT_S = 60.0
"""A whole table of 200,000 nodes takes seconds to check."""

REFUSED, UNAVAILABLE, BUG = 1, 69, 70
"""Exit statuses: the router said no; it cannot be reached or does not answer (EX_UNAVAILABLE, sysexits.h); it failed."""

_EXIT_STATUS = {"UNAVAILABLE": UNAVAILABLE, "DEADLINE_EXCEEDED": UNAVAILABLE, "INTERNAL": BUG, "UNKNOWN": BUG}
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_PATH_BYTES = 107
"""sizeof(sun_path) - 1, linux/un.h."""
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    # A router that starts is found within a moment, not after gRPC's second.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5000),  # what one attempt may take: a busy router accepts, and says more later
    ("grpc.max_reconnect_backoff_ms", 500),
]

_A = TypeVar("_A")


class ClientError(Exception):
    """A call that failed. The message is one line that says what is wrong and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """Name of the gRPC status code."""
        self.message = message

    @property
    def exit_status(self) -> int:
        """What a command that met it should exit with."""
        return _EXIT_STATUS.get(self.code, REFUSED)


class Client:
    """One connection to the router listening at a Unix socket. Every method raises ClientError."""

    def __init__(self, socket_path: str = DEFAULT_SOCKET, timeout_s: float = TIMEOUT_S) -> None:
        """Make a client; it connects with the first call. Waits end after `timeout_s`, those for a table later."""
        self.socket_path = os.path.abspath(socket_path)  # noqa: PTH100 - without resolving links
        # gRPC would write lines of its own about it to standard error.
        if (size := len(os.fsencode(self.socket_path))) > _MAX_PATH_BYTES:
            why = f"the path has {size} bytes, and a Unix socket's at most {_MAX_PATH_BYTES}; use a shorter one"
            raise ClientError("UNAVAILABLE", f"cannot reach the router at unix:{self.socket_path}: {why}")
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(f"unix:{self.socket_path}", options=_OPTIONS)
        self._stub = RouterStub(self._channel)

    def close(self) -> None:
        """End the connection, and every watch on it."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self, timeout_s: float) -> Status:
        """Wait until the router answers, and return its status."""
        with self._errors():
            request = router_pb2.GetStatusRequest()
            return _read(Status, self._stub.GetStatus(request, timeout=timeout_s, wait_for_ready=True))

    def attach(
        self,
        sandbox_id: str,
        if_name: str,
        netns_path: str,
        *,
        addresses: Iterable[str] = (),
        mtu_bytes: int = 0,
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        ports: Iterable[PortMapping] = (),
        limits: Limits | None = None,
        began_ns: int = 0,
    ) -> Attachment:
        """Give a sandbox an interface. Idempotent by sandbox id and interface name."""
        request = router_pb2.AttachRequest(
            key=attachment_pb2.AttachmentKey(sandbox_id=sandbox_id, if_name=if_name),
            netns_path=netns_path,
            addresses=addresses,
            mtu_bytes=mtu_bytes,
            labels=labels or {},
            owner=owner,
            ports=[attachment_pb2.PortMapping(**asdict(port)) for port in ports],
            limits=attachment_pb2.Limits(**asdict(limits)) if limits else None,
            began_ns=began_ns,
        )
        return _read(Attachment, self._call(self._stub.Attach, request).attachment)

    def detach(self, sandbox_id: str, if_name: str) -> bool:
        """Take an interface away; False when it was not there."""
        key = attachment_pb2.AttachmentKey(sandbox_id=sandbox_id, if_name=if_name)
        return self._call(self._stub.Detach, router_pb2.DetachRequest(key=key)).detached

    def sync(self, live: Iterable[AttachmentKey], *, owner: str = "", as_of_ns: int = 0) -> tuple[AttachmentKey, ...]:
        """Release every attachment (of an owner, attached before a time of CLOCK_BOOTTIME) but the live ones; return those."""
        keys = [attachment_pb2.AttachmentKey(sandbox_id=key.sandbox_id, if_name=key.if_name) for key in live]
        request = router_pb2.SyncRequest(live=keys, owner=owner, as_of_ns=as_of_ns)
        answer = self._call(self._stub.Sync, request, TABLE_TIMEOUT_S)
        return tuple(_read(AttachmentKey, key) for key in answer.released)

    def check(
        self,
        sandbox_id: str,
        if_name: str,
        *,
        netns_path: str = "",
        addresses: Iterable[str] = (),
        routes: Iterable[str] = (),
    ) -> Attachment:
        """Look whether an attachment is as it was made; ClientError FAILED_PRECONDITION names all that is missing."""
        key = attachment_pb2.AttachmentKey(sandbox_id=sandbox_id, if_name=if_name)
        request = router_pb2.CheckRequest(key=key, netns_path=netns_path, addresses=addresses, routes=routes)
        return _read(Attachment, self._call(self._stub.Check, request).attachment)

    def attachments(self) -> tuple[Attachment, ...]:
        """List all attachments, ordered by key."""
        answer = self._call(self._stub.ListAttachments, router_pb2.ListAttachmentsRequest())
        return tuple(_read(Attachment, attachment) for attachment in answer.attachments)

    def subnets(self) -> SubnetTable:
        """Read the subnet table."""
        return _read(SubnetTable, self._call(self._stub.ListSubnets, router_pb2.ListSubnetsRequest(), TABLE_TIMEOUT_S))

    def replace_subnets(self, nodes: Iterable[Node], expected_version: int | None = None) -> SubnetTable:
        """Put a whole new table in force, if that version is in force; ClientError ABORTED if another is."""
        request = router_pb2.ReplaceSubnetsRequest(nodes=map(_row, nodes), expected_version=expected_version)
        return _read(SubnetTable, self._call(self._stub.ReplaceSubnets, request, TABLE_TIMEOUT_S))

    def upsert_subnets(self, node: Node) -> SubnetTable:
        """Add a node, or replace the one of that name."""
        request = router_pb2.UpsertSubnetsRequest(node=_row(node))
        return _read(SubnetTable, self._call(self._stub.UpsertSubnets, request, TABLE_TIMEOUT_S))

    def remove_subnets(self, name: str) -> SubnetTable:
        """Remove a node by name."""
        request = router_pb2.RemoveSubnetsRequest(name=name)
        return _read(SubnetTable, self._call(self._stub.RemoveSubnets, request, TABLE_TIMEOUT_S))

    def watch_subnets(self) -> Iterator[SubnetChange]:
        """Yield the whole table, then each change, until the router stops (ClientError) or the client is closed."""
        return self._watch(SubnetChange, self._stub.WatchSubnets, router_pb2.WatchSubnetsRequest())

    def peers(self) -> ListPeersResponse:
        """List the other nodes, how they answer, and what went to and fro."""
        return _read(
            ListPeersResponse, self._call(self._stub.ListPeers, router_pb2.ListPeersRequest(), TABLE_TIMEOUT_S)
        )

    def counters(self) -> Counters:
        """Read all counters."""
        return _read(Counters, self._call(self._stub.GetCounters, router_pb2.GetCountersRequest()))

    def status(self) -> Status:
        """Read what the router is and how it stands."""
        return _read(Status, self._call(self._stub.GetStatus, router_pb2.GetStatusRequest()))

    def watch_events(self, after_sequence: int | None = None, *, follow: bool = True) -> Iterator[Event]:
        """Yield events: first those still held after a sequence (0: all; None: none), then, if asked to follow, new ones.

        The watch has begun when this returns: nothing that happens afterwards is missed.
        """
        request = router_pb2.WatchEventsRequest(after_sequence=after_sequence, no_follow=not follow)
        return self._watch(Event, self._stub.WatchEvents, request)

    def _call(self, method: Callable[..., _A], request: Message, timeout_s: float = 0.0) -> _A:
        with self._errors():
            return method(request, timeout=max(timeout_s, self._timeout_s))

    def _watch(self, kind: type[_A], method: Callable[..., Any], request: Message) -> Iterator[_A]:
        with self._errors():
            call = method(request)
            call.initial_metadata()  # waits until the router has begun, or refused
        return self._messages(kind, call)

    def _messages(self, kind: type[_A], call: Any) -> Iterator[_A]:
        try:
            with self._errors():
                for message in call:
                    yield _read(kind, message)
        finally:
            call.cancel()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn gRPC's errors into one line for people."""
        try:
            yield
        except grpc.RpcError as error:
            code, message = error.code().name, " ".join((error.details() or "").split())
            if (
                code == "CANCELLED"
            ):  # by the router's end, as a call that came just before it; nobody here cancels what waits
                code, message = (
                    "UNAVAILABLE",
                    "the router ended the call: it is stopping, or has let go of who was too slow",
                )
            if code in _EXIT_STATUS and (why := self._unreachable()):
                code = "UNAVAILABLE"
                message = f"cannot reach the router at unix:{self.socket_path}: {why}"
                message += "; is `podwire router run` running? (--socket PATH, or PODWIRE_SOCKET)"
            elif code == "DEADLINE_EXCEEDED":
                message = f"the router at unix:{self.socket_path} did not answer in time; see its log, and try again"
            raise ClientError(code, message or code) from None

    def _unreachable(self) -> str:
        """Return why nobody can be reached at the socket; empty when somebody is. gRPC's own words name no cause."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.socket_path)
            except BlockingIOError:
                return ""
            except OSError as error:
                return error.strerror or str(error)
        return ""


def _row(node: Node) -> subnets_pb2.Node:
    endpoint = subnets_pb2.Endpoint(address=node.endpoint.address, port=node.endpoint.port)
    return subnets_pb2.Node(
        name=node.name, endpoint=endpoint, subnets=node.subnets, offload=node.offload, epoch=node.epoch
    )


def _read(kind: type[_A], message: Message) -> _A:
    """Make an answer of a message: fields have the same names, and types say what each becomes."""
    return kind(**{name: read(message) for name, read in _readers(kind, message.DESCRIPTOR)})  # type: ignore[arg-type]


@functools.cache
def _readers(kind: Hashable, described: Descriptor) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, _reader(described, field.name, hints[field.name])) for field in fields(kind))  # type: ignore[arg-type]


def _reader(described: Descriptor, name: str, hint: Any) -> Callable[[Any], Any]:
    enum = described.fields_by_name[name].enum_type
    if enum is not None:
        words = {number: _word(enum.name, value.name) for number, value in enum.values_by_number.items()}
        return lambda message: words.get(getattr(message, name), words[0])
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        inner: Any = get_args(hint)[0]
        return lambda message: tuple(_read(inner, each) for each in getattr(message, name))
    if get_origin(hint) in (tuple, dict):
        return lambda message: get_origin(hint)(getattr(message, name))
    if get_origin(hint) is types.UnionType:
        known: Any = get_args(hint)[0]
        if known in (int, float, str):
            return lambda message: getattr(message, name) if message.HasField(name) else None
        return lambda message: _read(known, getattr(message, name)) if message.HasField(name) else None
    if is_dataclass(hint):
        whole: Any = hint
        return lambda message: _read(whole, getattr(message, name))
    return lambda message: getattr(message, name)


def _word(enum: str, value: str) -> str:
    """Say a value as PEER_STATE_UP of the enum PeerState in a word: up. What is not known here is said as the first."""
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum).upper() + "_"
    return value.removeprefix(prefix).lower()
