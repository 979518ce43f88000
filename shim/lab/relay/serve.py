"""The relay's loop: frames from port to port, and a Unix socket where it is told which lines there are.

A request is a line of JSON, and so is its answer:

    {"lines": [{"source": "n1", "target": "n2", "mac": "02…", "faults": {…}, "seed": 0}, …], "cut": [["n1", "n3"], …],
     "pods": [{"source": "n1p1", "target": "n2p1", "way": ["n1", "n2"], "ends": ["0a2a…", …], "faults": {…}, "seed": 0}, …]}
    {}                                                          only ask
    → {"error": "", "lines": [{"source": …, "target": …, "counts": {…}}, …], "missed": {"n1": 0, …}}
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shim.lab.errors import LabError
from shim.lab.relay.faults import Faults
from shim.lab.relay.port import HEADER_BYTES, Port
from shim.lab.relay.switch import LinePlan, PodLinePlan, Switch

_BATCH = 32
"""Frames taken from one port before it is looked at what is due."""
_ANSWER_TIMEOUT_S = 5.0


class Relay:
    """One relay, in the namespace that it was started in."""

    def __init__(self, path: Path) -> None:
        """Listen for requests at this path."""
        self._switch = Switch(frame_at=HEADER_BYTES)
        self._ports: dict[str, Port] = {}
        self._asking: dict[socket.socket, bytes] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        draft = path.with_name(f".{path.name}")
        draft.unlink(missing_ok=True)
        self._listener.bind(str(draft))
        self._listener.listen()
        self._listener.setblocking(False)
        draft.replace(path)  # so whoever finds it is served

    def run(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Carry frames and answer until the process is ended."""
        while True:
            self._send_due(now_s())
            due_s = self._switch.due_s
            waiting: list[socket.socket | Port] = [self._listener, *self._asking, *self._ports.values()]
            # select(2), not epoll: it waits for microseconds, and there are few of them
            ready, _, _ = select.select(waiting, (), (), None if due_s is None else max(0.0, due_s - now_s()))
            for found in ready:
                if isinstance(found, Port):
                    self._receive(found, now_s())
                elif found is self._listener:
                    asking, _ = self._listener.accept()
                    self._asking[asking] = b""
                else:
                    self._hear(found)

    def _receive(self, port: Port, now_s: float) -> None:
        for destination, frame in port.receive(_BATCH):
            self._switch.receive(port.name, destination, frame, len(frame) - HEADER_BYTES, now_s)

    def _send_due(self, now_s: float) -> None:
        for line, target, size_bytes, frame in self._switch.take(now_s):
            (line.passed if self._ports[target].send(frame) else line.refused)(size_bytes)

    def _hear(self, asking: socket.socket) -> None:
        """Read on; with a whole request, answer. Who hangs up before that asked nothing."""
        try:
            piece = asking.recv(1 << 16)
        except OSError:
            piece = b""
        self._asking[asking] += piece
        if piece and not self._asking[asking].endswith(b"\n"):
            return
        request = self._asking.pop(asking)
        with asking:
            if piece:
                asking.settimeout(_ANSWER_TIMEOUT_S)
                with suppress(OSError):  # it has gone
                    asking.sendall(json.dumps(self._answer(request)).encode() + b"\n")

    def _answer(self, request: bytes) -> dict[str, Any]:
        error = ""
        try:
            asked = json.loads(request)
            if "lines" in asked:
                self._set_lines(asked)
        except (OSError, LabError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as failure:
            error = str(failure) or type(failure).__name__
        return {
            "error": error,
            "lines": [
                {"source": source, "target": target, "counts": asdict(line.counts)}
                for (source, target), line in self._switch.lines.items()
            ],
            "missed": {name: port.count_missed() for name, port in self._ports.items()},
        }

    def _set_lines(self, request: dict[str, Any]) -> None:
        plans = [
            LinePlan(
                each["source"],
                each["target"],
                bytes.fromhex(each["mac"]),
                Faults.from_json(each["faults"]),
                each["seed"],
            )
            for each in request["lines"]
        ]
        pods = [
            PodLinePlan(
                each["source"],
                each["target"],
                (each["way"][0], each["way"][1]),
                frozenset(map(bytes.fromhex, each["ends"])),
                Faults.from_json(each["faults"]),
                each["seed"],
            )
            for each in request.get("pods", ())
        ]
        names = {port for plan in plans for port in plan.pair}
        opened = {name: self._open(name) for name in sorted(names - self._ports.keys())}
        self._ports |= opened
        cut = {(source, target) for source, target in request["cut"]}
        for (_, target), frame in self._switch.set_lines(plans, cut, pods):
            self._ports[target].send(frame)
        for name in self._ports.keys() - names:
            self._ports.pop(name).close()
        for name, port in self._ports.items():
            port.listen_for(self._switch.macs(name))

    @staticmethod
    def _open(name: str) -> Port:
        try:
            return Port(name)
        except OSError as error:
            raise LabError(f"the relay cannot use port {name}: {error.strerror}") from None
