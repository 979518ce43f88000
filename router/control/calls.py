"""What every call of a servicer has in common: whatever it raises becomes its status."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from router.errors import Refusal

_MESSAGE_BYTES = 1200
"""A status message travels percent-encoded in a trailer of a few KiB at most."""

log = logging.getLogger(__name__)

_S = TypeVar("_S", bound=Any)
_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


def unary(
    method: Callable[[_S, _Request, grpc.ServicerContext], _Answer],
) -> Callable[[_S, _Request, grpc.ServicerContext], _Answer]:
    """Turn whatever a call raises into its status."""

    @functools.wraps(method)
    def answer(self: _S, request: _Request, context: grpc.ServicerContext) -> _Answer:
        try:
            return method(self, request, context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            refusal = _refusal(method.__name__, error)
        return context.abort(*refusal)

    return answer


def stream(
    method: Callable[[_S, _Request, grpc.ServicerContext], Iterator[_Answer]],
) -> Callable[[_S, _Request, grpc.ServicerContext], Iterator[_Answer]]:
    """Turn whatever a stream raises into its status."""

    @functools.wraps(method)
    def answer(self: _S, request: _Request, context: grpc.ServicerContext) -> Iterator[_Answer]:
        try:
            return (yield from method(self, request, context))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            refusal = _refusal(method.__name__, error)
        if context.is_active():
            context.abort(*refusal)

    return answer


def _refusal(call: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Refusal):
        return grpc.StatusCode[error.kind.value], _one_line(error.message)
    log.error("%s failed: a bug of the router", call, exc_info=error)
    what = f"{type(error).__name__}: {error}"
    return grpc.StatusCode.INTERNAL, _one_line(f"{call} failed in the router ({what}); see the router's log")


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    encoded = line.encode(errors="replace")
    if len(encoded) <= _MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:_MESSAGE_BYTES].decode(errors="ignore") + "…"
