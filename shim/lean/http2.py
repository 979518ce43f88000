"""One unary gRPC call over HTTP/2, without a socket: bytes in, bytes out (RFC 9113; gRPC over HTTP2).

The connection carries this one call on stream 1. We allow the peer all the window there is, so nothing large has to be
acknowledged piece by piece, and no header table, so nothing has to be remembered.
"""

from __future__ import annotations

from shim.lean import hpack
from shim.lean.errors import STATUS_NAMES, RouterError

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 2, 4, 5
_LARGEST_WINDOW = (1 << 31) - 1
_WINDOW = 65535
_FRAME_BYTES = 16384
_MOST_BYTES = 64 << 20
"""As the router's own limit: a larger answer is none of the contract's."""
_MOST_HEADER_BYTES = 64 << 10


class Exchange:
    """A call from its request to its answer. Feed `receive`, send what `pending` holds, until `done`."""

    def __init__(self, path: str, message: bytes, timeout_s: float) -> None:
        """Begin a call of a method ("/package.Service/Method"), which the server gives up after the timeout."""
        self.done = False
        self.answer = b""
        """The answer's message, once done."""
        self._inbox = bytearray()
        self._body = bytearray()
        self._block = bytearray()
        self._block_ends_stream = False
        self._headers: dict[str, str] = {}
        # A flag byte of 0: not compressed. A view, so that cutting a piece off copies no more than the piece.
        self._outbox = memoryview(len(message).to_bytes(5, "big") + message)
        self._connection_window = self._stream_window = self._initial_window = _WINDOW
        self._frame_bytes = _FRAME_BYTES
        settings = ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
        block = hpack.encode(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", b"localhost"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"podwire-lean"),
                (b"grpc-timeout", b"%dm" % max(1, int(timeout_s * 1000))),
            ]
        )
        self.pending = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(
            _SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in settings)
        )
        self._send(_WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _WINDOW).to_bytes(4, "big"))
        self._send(_HEADERS, _END_HEADERS, 1, block)
        self._send_body()

    def receive(self, content: bytes) -> None:
        """Take what the server sent; none at all means it hung up. RouterError when the call has failed."""
        if not content:
            raise RouterError("UNAVAILABLE", "the router hung up before it had answered")
        self._inbox += content
        while not self.done and len(self._inbox) >= 9:
            size = int.from_bytes(self._inbox[:3], "big")
            if size > _FRAME_BYTES:
                raise _broken(f"a frame of {size} bytes, and {_FRAME_BYTES} were allowed")
            if len(self._inbox) < 9 + size:
                return
            kind, flags = self._inbox[3], self._inbox[4]
            stream = int.from_bytes(self._inbox[5:9], "big") & _LARGEST_WINDOW
            payload = bytes(self._inbox[9 : 9 + size])
            del self._inbox[: 9 + size]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block and kind != _CONTINUATION:
            raise _broken("headers were interrupted")
        if kind == _SETTINGS:
            if not flags & _ACK:
                self._settings(payload)
        elif kind == _PING:
            if not flags & _ACK:
                self._send(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE and len(payload) == 4:
            grown = int.from_bytes(payload, "big") & _LARGEST_WINDOW
            if stream:
                self._stream_window += grown
            else:
                self._connection_window += grown
            self._send_body()
        elif kind == _GOAWAY:
            # Of no matter when our stream is among those it still answers.
            if int.from_bytes(payload[:4], "big") & _LARGEST_WINDOW < 1:
                raise RouterError("UNAVAILABLE", "the router is stopping; try again when it has started")
        elif stream == 1:
            self._take_ours(kind, flags, payload)

    def _take_ours(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _RST_STREAM:
            raise RouterError(
                "UNAVAILABLE", f"the router reset the call (HTTP/2 error {int.from_bytes(payload, 'big')})"
            )
        if kind == _DATA:
            self._body += _unpadded(flags, payload)
            if len(self._body) > _MOST_BYTES:
                raise _broken(f"an answer of more than {_MOST_BYTES} bytes")
            if flags & _END_STREAM:
                self._finish()
        elif kind in (_HEADERS, _CONTINUATION):
            if kind == _HEADERS:
                payload = _unpadded(flags, payload)[5 if flags & _PRIORITY else 0 :]
                self._block_ends_stream = bool(flags & _END_STREAM)
            self._block += payload
            if len(self._block) > _MOST_HEADER_BYTES:
                raise _broken("headers without an end")
            if flags & _END_HEADERS:
                try:
                    self._headers |= hpack.decode(bytes(self._block))
                except ValueError as error:
                    raise _broken(str(error)) from None
                self._block.clear()
                if self._block_ends_stream:
                    self._finish()

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload) - 5, 6):
            key, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == _INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window  # RFC 9113 section 6.9.2
                self._initial_window = value
            elif key == _MAX_FRAME_SIZE:
                self._frame_bytes = max(_FRAME_BYTES, value)
        self._send(_SETTINGS, _ACK, 0, b"")
        self._send_body()

    def _send_body(self) -> None:
        """Send as much of the request as the windows allow."""
        while self._outbox:
            size = min(len(self._outbox), self._connection_window, self._stream_window, self._frame_bytes)
            if size <= 0:
                return
            piece, self._outbox = self._outbox[:size], self._outbox[size:]
            self._connection_window -= size
            self._stream_window -= size
            self._send(_DATA, 0 if self._outbox else _END_STREAM, 1, piece)

    def _send(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        self.pending += len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

    def _finish(self) -> None:
        http, status = self._headers.get(":status", ""), self._headers.get("grpc-status", "")
        if not status:
            raise _broken(f"HTTP status {http or 'none'} and no gRPC status; is it a gRPC server?")
        number = int(status) if status.isdecimal() and len(status) < 3 else 2
        if number:
            code = STATUS_NAMES[number] if number < len(STATUS_NAMES) else "UNKNOWN"
            raise RouterError(code, _percent_decoded(self._headers.get("grpc-message", "")) or code)
        body = self._body
        if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise _broken("an answer that is not one whole message")
        self.answer = bytes(body[5:])
        self.done = True


def _broken(what: str) -> RouterError:
    return RouterError("INTERNAL", f"what answers there is no router, or a broken one: it sent {what}")


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _broken("padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _percent_decoded(text: str) -> str:
    """Decode grpc-message (gRPC over HTTP2, "Status-Message"); what is no code stays as it is."""
    if "%" not in text:
        return text
    first, *rest = text.encode("latin-1").split(b"%")
    out = bytearray(first)
    for piece in rest:
        try:
            out += bytes((int(piece[:2], 16),)) + piece[2:]
        except ValueError:
            out += b"%" + piece
    return out.decode("utf-8", "replace")
