"""The lean gRPC client: against protobuf for its bytes, against a real server for its calls, against liars for its manners."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from router.control.server import Server, serve
from router.errors import Kind, Refusal
from router.model import AttachmentKey
from router.rpc.v1 import attachment_pb2, router_pb2, status_pb2
from shim.lean import codec, document, hpack
from shim.lean.call import call
from shim.lean.errors import RouterError
from shim.lean.http2 import Exchange
from tests.control_daemon import MemoryDaemon

STUBS: dict[str, type[Message]] = {
    name: getattr(module, name)
    for module in (router_pb2, attachment_pb2, status_pb2)
    for name in ("AttachRequest", "Attachment", "SyncRequest", "CheckRequest", "Status", "Limits")
    if hasattr(module, name)
}


# Bytes

_texts = st.text(max_size=20)
_uints = st.integers(0, 2**63)
_attach_requests = st.fixed_dictionaries(
    {
        "key": st.fixed_dictionaries({"sandbox_id": _texts, "if_name": _texts}),
        "netns_path": _texts,
        "addresses": st.lists(_texts, max_size=3),
        "mtu_bytes": st.integers(0, 2**32 - 1),
        "labels": st.dictionaries(_texts, _texts, max_size=3),
        "owner": _texts,
        "ports": st.lists(
            st.fixed_dictionaries({"host_port": st.integers(0, 65535), "protocol": _texts, "host_address": _texts}),
            max_size=3,
        ),
        "limits": st.none() | st.fixed_dictionaries({"ingress_bits_per_s": _uints, "egress_burst_bits": _uints}),
        "began_ns": st.integers(0, 2**64 - 1),
    }
)


@given(_attach_requests)
def test_what_is_written_is_protobuf(values: dict[str, Any]) -> None:
    read = router_pb2.AttachRequest.FromString(codec.encode("AttachRequest", values))
    wanted = router_pb2.AttachRequest(**values)
    assert read == wanted
    again = codec.decode("AttachRequest", wanted.SerializeToString())
    assert {name: again[name] for name in ("key", "netns_path", "addresses", "mtu_bytes", "labels", "owner")} == {
        name: values[name] for name in ("key", "netns_path", "addresses", "mtu_bytes", "labels", "owner")
    }
    assert [port["host_port"] for port in again["ports"]] == [port["host_port"] for port in values["ports"]]
    assert (again["limits"] is None) == (values["limits"] is None)
    assert again["began_ns"] == values["began_ns"]


def test_a_status_is_read_whole() -> None:
    free = status_pb2.FreeAddresses(subnet="10.1.0.0/24", free=2**64 - 1)
    status = status_pb2.Status(node="n", started_at_s=1.5, free_addresses=[free], table_version=7, unreachable=["x"])
    found = codec.decode("Status", status.SerializeToString())
    assert (found["node"], found["started_at_s"], found["table_version"]) == ("n", 1.5, 7)
    assert found["free_addresses"] == [{"subnet": "10.1.0.0/24", "free": 2**64 - 1}]
    assert (found["unreachable"], found["offloads"], found["notes"], found["table_error"]) == (["x"], None, [], "")


@given(st.sampled_from(sorted(STUBS)), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(name: str, content: bytes) -> None:
    try:
        found = codec.decode(name, content)
    except ValueError:
        return  # UnicodeDecodeError is one
    assert isinstance(found, dict)


@given(st.sampled_from(sorted(STUBS)), _attach_requests, st.integers(0, 200), st.integers(0, 255))
def test_spoilt_bytes_are_read_or_refused(name: str, values: dict[str, Any], at: int, byte: int) -> None:
    content = bytearray(codec.encode("AttachRequest", values))
    if at < len(content):
        content[at] = byte
    try:
        codec.decode(name, bytes(content))
    except ValueError:
        return


def test_unknown_fields_are_passed_over() -> None:
    content = codec.encode("DetachRequest", {"key": {"sandbox_id": "x", "if_name": "y"}})
    later = content + b"\xf8\x07\x05" + b"\xfa\x07\x02hi" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4)
    assert codec.decode("DetachRequest", later) == codec.decode("DetachRequest", content)


def test_what_the_contract_does_not_have_is_no_field() -> None:
    with pytest.raises(KeyError):
        codec.encode("DetachRequest", {"kye": {}})
    with pytest.raises(OverflowError):
        codec.encode("AttachRequest", {"mtu_bytes": -1})


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=4))
def test_headers_go_there_and_back(headers: list[tuple[bytes, bytes]]) -> None:
    wanted = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    assert hpack.decode(hpack.encode(headers)) == wanted


@given(st.binary(max_size=100))
def test_any_header_block_is_read_or_refused(block: bytes) -> None:
    try:
        hpack.decode(block)
    except ValueError:
        return


# JSON

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_json, st.sampled_from(["", " ", "\n\t\r "]), st.sampled_from([None, 1]), st.booleans())
def test_json_is_read_as_the_library_reads_it(value: object, blanks: str, indent: int | None, ascii_only: bool) -> None:
    text = blanks + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + blanks
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return
    assert document.read(content) == value


@given(st.text('{}[]",:0123456789.-+eE tfnrulas\\u\n\x00', max_size=30) | st.text(max_size=20))
def test_what_is_no_json_is_refused_as_the_library_refuses_it(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            document.read(text.encode(errors="surrogatepass"))
        return
    if "NaN" not in text and "Infinity" not in text:
        assert document.read(text.encode()) == wanted


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "", "  ", "1 2", "\ufeff1", "[1,]", '"\n"'])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        document.read(text.encode())


def test_json_without_the_scanner_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another interpreter, or a later one whose scanner asks for more."""
    monkeypatch.setitem(sys.modules, "_json", None)
    assert document.read(b' {"a": [1, 2.5]} ') == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match="NaN is no number"):
        document.read(b"[NaN]")


# Calls


@pytest.fixture
def daemon() -> MemoryDaemon:
    return MemoryDaemon()


@pytest.fixture
def server(daemon: MemoryDaemon, tmp_path: Path) -> Iterator[Server]:
    made = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    made.start()
    yield made
    made.stop(0)


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    return lambda method, request, timeout_s=10.0: call(
        str(tmp_path / "router.sock"), method, request, timeout_s=timeout_s
    )


def key(name: str) -> dict[str, str]:
    return {"sandbox_id": name, "if_name": "eth0"}


def test_calls_of_the_contract(ask: Callable[..., dict[str, Any]], daemon: MemoryDaemon) -> None:
    request = {"key": key("web"), "netns_path": "/run/netns/web", "addresses": ["10.1.1.7"], "labels": {"a": "b"}}
    made = ask("Attach", request | {"owner": "cni:net"})["attachment"]
    assert (made["addresses"], made["labels"], made["owner"]) == (["10.1.1.7/24"], {"a": "b"}, "cni:net")
    assert ask("ListAttachments", {})["attachments"] == [made]
    assert ask("Check", {"key": key("web"), "routes": ["0.0.0.0/0"]})["attachment"] == made
    assert ask("GetStatus", {})["free_addresses"][0] == {"subnet": "10.1.1.0/24", "free": 253}
    assert ask("Detach", {"key": key("web")}) == {"detached": True}
    assert ask("Detach", {"key": key("web")}) == {"detached": False}


def test_refusals_arrive_with_their_words(ask: Callable[..., dict[str, Any]], daemon: MemoryDaemon) -> None:
    with pytest.raises(RouterError) as caught:
        ask("Check", {"key": key("nobody")})
    assert (caught.value.code, caught.value.message) == ("NOT_FOUND", "nobody/eth0 is not attached to this node")
    assert not caught.value.nobody_answered

    def refuse() -> None:
        raise Refusal(Kind.STATE, "größer als 100 %")

    daemon.on_status = refuse
    with pytest.raises(RouterError) as caught:
        ask("GetStatus", {})
    assert (caught.value.code, caught.value.message) == ("FAILED_PRECONDITION", "größer als 100 %")


def test_large_requests_and_answers_pass_the_windows(ask: Callable[..., dict[str, Any]], daemon: MemoryDaemon) -> None:
    live = [key(f"sandbox-{number:032}") for number in range(40_000)]  # 2 MB, of windows of 64 KiB
    assert ask("Sync", {"live": live, "owner": "cni:net", "as_of_ns": 5}) == {"released": []}
    assert daemon.synced == [("cni:net", 5)]
    ask("Attach", {"key": key("web"), "netns_path": "/run/netns/" + "x" * 400})
    (held,) = daemon.held.values()
    for number in range(3000):
        daemon.held[AttachmentKey(f"{number:0200}", "eth0")] = held
    assert len(ask("ListAttachments", {})["attachments"]) == 3001  # 1.3 MB


def test_the_largest_request_is_cut_in_time_that_grows_with_it() -> None:
    """Cutting by copying what is left takes minutes here, and no deadline is looked at meanwhile."""
    message = bytes(range(256)) * (60 << 12)  # 60 MiB, in frames of 16 KiB
    exchange = Exchange("/a/b", message, 60)
    opened = (LARGEST_WINDOW - 65535).to_bytes(4, "big")
    exchange.receive(SETTINGS + frame(8, 0, 0, opened) + frame(8, 0, 1, opened))
    sent, at, body, ended = bytes(exchange.pending), len(PREFACE), bytearray(), False
    assert sent.startswith(PREFACE)
    while at < len(sent):
        size, kind, flags = int.from_bytes(sent[at : at + 3], "big"), sent[at + 3], sent[at + 4]
        assert not ended or kind != 0, "nothing comes after the end"
        assert size <= 16384
        if kind == 0:
            body += sent[at + 9 : at + 9 + size]
            ended = bool(flags & 1)
        at += 9 + size
    assert ended
    assert body == len(message).to_bytes(5, "big") + message


def test_text_that_is_none_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="no Unicode") as caught:
        call(str(tmp_path / "none.sock"), "Detach", {"key": key("\udcff")}, timeout_s=5)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert not caught.value.nobody_answered, "else a tombstone would be left that no router can read"


def test_a_slow_answer_ends_the_wait(ask: Callable[..., dict[str, Any]], daemon: MemoryDaemon) -> None:
    released = threading.Event()
    daemon.on_status = lambda: released.wait(30)
    began_s = time.monotonic()
    with pytest.raises(RouterError) as caught:
        ask("GetStatus", {}, 0.3)
    released.set()
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert caught.value.nobody_answered
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize("where", ["none.sock", "d" * 120 + "/router.sock"])
def test_nobody_listens(tmp_path: Path, where: str) -> None:
    with pytest.raises(RouterError) as caught:
        call(str(tmp_path / where), "GetStatus", {}, timeout_s=5)
    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.nobody_answered


def test_a_server_that_stops_is_said(server: Server, ask: Callable[..., dict[str, Any]]) -> None:
    server.stop(0)
    with pytest.raises(RouterError) as caught:
        ask("GetStatus", {})
    assert caught.value.code == "UNAVAILABLE"


# Liars


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = (1 << 31) - 1
SETTINGS = frame(4, 0, 0)
OPENED = frame(1, 4, 1, b"\x88")
BODY = frame(0, 0, 1, bytes(5))
TRAILERS = frame(1, 5, 1, hpack.encode([(b"grpc-status", b"0")]))


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (b"", "UNAVAILABLE", "hung up"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "INTERNAL", "a frame of"),
        (SETTINGS + frame(7, 0, 0, bytes(8)), "UNAVAILABLE", "stopping"),
        (SETTINGS + frame(3, 0, 1, (7).to_bytes(4, "big")), "UNAVAILABLE", "error 7"),
        (SETTINGS + frame(1, 5, 1, b"\x88"), "INTERNAL", "HTTP status 200"),
        (SETTINGS + frame(1, 5, 1, b"\x8d"), "INTERNAL", "HTTP status 404"),
        (SETTINGS + frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"), "INTERNAL", "no end"),
        (SETTINGS + frame(1, 4, 1, b"\x00\x85abcde\x00"), "INTERNAL", "Huffman"),
        (SETTINGS + frame(1, 0, 1, b"\x88") + BODY, "INTERNAL", "interrupted"),
        (SETTINGS + OPENED + frame(0, 8, 1, b"\x09ab"), "INTERNAL", "padding"),
        (SETTINGS + OPENED + frame(0, 0, 1, b"\x01" + bytes(4)) + TRAILERS, "INTERNAL", "not one whole message"),
        (SETTINGS + OPENED + frame(0, 0, 1, b"\x00\x00\x00\x00\x09x") + TRAILERS, "INTERNAL", "whole message"),
        (SETTINGS + OPENED + TRAILERS, "INTERNAL", "whole message"),
        (SETTINGS + frame(1, 0, 1, b"\x00") + frame(9, 0, 1, bytes(16000)) * 9, "INTERNAL", "without an end"),
        (SETTINGS + OPENED + BODY + frame(1, 5, 1, hpack.encode([(b"grpc-status", b"99")])), "UNKNOWN", "UNKNOWN"),
        (SETTINGS + OPENED + BODY + frame(1, 5, 1, hpack.encode([(b"grpc-status", b"x")])), "UNKNOWN", "UNKNOWN"),
        (SETTINGS + OPENED + frame(0, 0, 1, b"\x00\x00\x00\x00\x01\xff") + TRAILERS, "INTERNAL", "makes no sense"),
    ],
)
def test_hostile_answers_are_refused(tmp_path: Path, sent: bytes, code: str, words: str) -> None:
    with listening(tmp_path, sent) as path, pytest.raises(RouterError, match=words) as caught:
        call(path, "Detach", {"key": key("x")}, timeout_s=5)
    assert caught.value.code == code


def test_an_answer_in_crumbs_with_pings_between(tmp_path: Path) -> None:
    body = frame(0, 8, 1, b"\x02\x00\x00\x00\x00\x02\x08\x01\x00\x00")
    sent = SETTINGS + frame(6, 0, 0, bytes(8)) + frame(1, 0, 1, b"\x20") + frame(9, 4, 1, b"\x88") + body + TRAILERS
    exchange = Exchange("/a/b", b"", 5)
    for at in range(len(sent)):
        exchange.receive(sent[at : at + 1])
    assert exchange.done
    assert exchange.answer == b"\x08\x01"
    assert frame(4, 1, 0) in exchange.pending
    assert frame(6, 1, 0, bytes(8)) in exchange.pending
    with listening(tmp_path, sent) as path:
        assert call(path, "Detach", {"key": key("x")}, timeout_s=5) == {"detached": True}


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_from_a_server_end(content: bytes) -> None:
    exchange = Exchange("/a/b", b"x" * 10, 5)
    try:
        exchange.receive(SETTINGS + OPENED + content)
        exchange.receive(b"")
    except RouterError:
        return
    assert exchange.done


class listening:  # noqa: N801 - reads as a sentence
    """A server that says what it was told, and hangs up."""

    def __init__(self, directory: Path, sent: bytes) -> None:
        self._path = str(directory / "liar.sock")
        self._sent = sent

    def __enter__(self) -> str:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self._path

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(1 << 16)  # hang up politely: unread bytes would reset the connection
            connection.sendall(self._sent)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            try:
                while connection.recv(1 << 16):
                    pass
            except OSError:
                pass

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()
