"""The other end of a UDP ping-pong: a process of its own, so that no interpreter lock lies between the two ends."""

from __future__ import annotations

import socket
import sys


def echo(fd: int) -> None:
    """Send every datagram of an open socket back to whom it came from, until killed."""
    bound = socket.socket(fileno=fd)
    while True:
        payload, sender = bound.recvfrom(2048)
        bound.sendto(payload, sender)


if __name__ == "__main__":
    echo(int(sys.argv[1]))
