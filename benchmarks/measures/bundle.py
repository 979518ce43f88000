"""TCP streams over several ways at once, by two processes whatever their number: one that sends, one that reads.

What came is what the kernel says of each connection (TCP_INFO), so nothing is told between processes (pump.py).
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contenders.interface import Way
from benchmarks.measures.interface import MeasureFailed
from benchmarks.namespace import end

_PORT = 5303
_CONNECT_S = 5
_PUMP = Path(__file__).with_name("pump.py")
_TCP_INFO_BYTES, _BYTES_RECEIVED_AT = 136, 128  # struct tcp_info, linux/tcp.h: tcpi_bytes_received


def throughput_bps(ways: Sequence[Way], seconds: float, warm_up_s: float) -> float:
    """Return the bits a second that all streams together brought, one stream a way."""
    with ExitStack() as stack:
        senders, receivers = [], []
        for way in ways:
            listener = stack.enter_context(way.server.inside(_tcp_socket))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((way.address, _PORT))
            listener.listen()
            sender = stack.enter_context(way.client.inside(_tcp_socket))
            sender.settimeout(_CONNECT_S)
            sender.connect((way.address, _PORT))
            senders.append(sender)
            receivers.append(stack.enter_context(listener.accept()[0]))
            listener.close()
        for role, sockets in (("read", receivers), ("send", senders)):
            stack.callback(end, _spawn(role, sockets))
        _await_bytes(receivers)
        time.sleep(warm_up_s)
        start, before = time.monotonic(), _received_bytes(receivers)
        time.sleep(seconds)
        span_s, came = time.monotonic() - start, _received_bytes(receivers) - before
    if not came:
        raise MeasureFailed(f"{len(ways)} TCP streams are connected, but nothing arrived")
    return came * 8 / span_s


def _spawn(role: str, sockets: Sequence[socket.socket]) -> subprocess.Popen[bytes]:
    fds = [each.fileno() for each in sockets]
    command = [sys.executable, "-IS", _PUMP, role, *map(str, fds)]
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)


def _await_bytes(receivers: Sequence[socket.socket]) -> None:
    """Wait until something came over every stream: interpreters take a while to start."""
    deadline = time.monotonic() + _CONNECT_S
    while silent := [each for each in receivers if not _received_bytes([each])]:
        if time.monotonic() > deadline:
            raise MeasureFailed(f"{len(silent)} of {len(receivers)} TCP streams are connected, but bring nothing")
        time.sleep(0.02)


def _received_bytes(sockets: Sequence[socket.socket]) -> int:
    infos = (each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES) for each in sockets)
    return sum(struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)[0] for info in infos)


def _tcp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
