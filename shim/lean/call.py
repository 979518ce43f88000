"""Call the router at a Unix socket once, and hang up."""

from __future__ import annotations

import _socket  # the wrapper `socket` imports enum and selectors: 5 ms
import os
import time

from shim.lean import codec
from shim.lean.errors import RouterError
from shim.lean.fields import METHODS
from shim.lean.http2 import Exchange

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_MOST_PATH_BYTES = 107  # sizeof(sun_path) - 1, linux/un.h
_READ_BYTES = 1 << 18


def call(socket_path: str, method: str, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Call a method ("Attach") with its request's fields by name, and return its answer's, unset ones with defaults.

    RouterError: what the router refused, or UNAVAILABLE when nobody listens, or DEADLINE_EXCEEDED; INVALID_ARGUMENT for
    text that is no Unicode, which protobuf cannot carry.
    """
    asked, answered, path = METHODS[method]
    deadline_s = time.monotonic() + timeout_s
    try:
        exchange = Exchange(path, codec.encode(asked, request), timeout_s)
    except UnicodeEncodeError as error:
        raise RouterError("INVALID_ARGUMENT", f"{error.object!r} is no Unicode text: write it in UTF-8") from None
    if len(os.fsencode(socket_path)) > _MOST_PATH_BYTES:
        raise RouterError(
            "UNAVAILABLE", f"{socket_path} is longer than the {_MOST_PATH_BYTES} bytes of a socket's path"
        )
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        try:
            _left(connection, deadline_s)
            connection.connect(socket_path)
            while not exchange.done:
                if exchange.pending:
                    _left(connection, deadline_s)
                    connection.sendall(exchange.pending)
                    exchange.pending.clear()
                _left(connection, deadline_s)
                exchange.receive(connection.recv(_READ_BYTES))
        except TimeoutError:
            message = (
                f"the router at unix:{socket_path} did not answer within {timeout_s:g} s; see its log, and try again"
            )
            raise RouterError("DEADLINE_EXCEEDED", message) from None
        except OSError as error:
            why = error.strerror or str(error)
            message = f"cannot reach the router at unix:{socket_path}: {why}; is `podwire router run` running?"
            raise RouterError("UNAVAILABLE", message) from None
        try:
            return codec.decode(answered, exchange.answer)
        except ValueError as error:
            raise RouterError("INTERNAL", f"the router's answer to {method} makes no sense: {error}") from None
    finally:
        connection.close()


def _left(connection: _socket.socket, deadline_s: float) -> None:
    """Give the next step what is left of the time."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)
