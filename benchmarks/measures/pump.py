"""One end of many TCP streams, in a process of its own: fills them all, or empties them.

The one that empties has the kernel throw the bytes away (MSG_TRUNC, tcp(7)): it costs little. Imports little too, as it is
started for every figure.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Sequence

_CHUNK_BYTES = 256 * 1024


def send(fds: Sequence[int]) -> None:
    """Fill connections until killed."""
    chunk = bytes(_CHUNK_BYTES)
    sockets, ready = _polled(fds, select.EPOLLOUT)
    while True:
        for fd, _ in ready.poll():
            try:
                sockets[fd].send(chunk)
            except BlockingIOError:
                continue


def read(fds: Sequence[int]) -> None:
    """Empty connections until killed."""
    buffer = bytearray(4 * _CHUNK_BYTES)
    sockets, ready = _polled(fds, select.EPOLLIN)
    while True:
        for fd, _ in ready.poll():
            if not sockets[fd].recv_into(buffer, len(buffer), socket.MSG_TRUNC):
                ready.unregister(fd)


def _polled(fds: Sequence[int], events: int) -> tuple[dict[int, socket.socket], select.epoll]:
    sockets = {fd: socket.socket(fileno=fd) for fd in fds}
    ready = select.epoll()
    for fd, each in sockets.items():
        each.setblocking(False)
        ready.register(fd, events)
    return sockets, ready


if __name__ == "__main__":
    {"send": send, "read": read}[sys.argv[1]](list(map(int, sys.argv[2:])))
