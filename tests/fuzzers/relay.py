"""Requests to the lab's relay, and frames on its links."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from shim.lab.relay import port, serve
from tests.fuzzers import mutate
from tests.fuzzers.target import Target


class _Port:
    """Stands for a port of the bridge: makes the filter that the real one gives the kernel, and keeps no frame."""

    def __init__(self, name: str) -> None:
        self.name = name

    def listen_for(self, macs: list[bytes]) -> None:
        port._program(macs)

    def send(self, frame: bytes) -> bool:
        return True

    def count_missed(self) -> int:
        return 0

    def close(self) -> None:
        return None


class _Relay(serve.Relay):
    @staticmethod
    def _open(name: str) -> Any:
        if not isinstance(name, str):
            raise TypeError("a port's name is text")
        return _Port(name)


_LINE = {"source": "n1", "target": "n2", "mac": "020000000001", "faults": {"loss": 0.1, "delay_s": 0.01}, "seed": 3}
_VALID: tuple[Any, ...] = (
    {},
    {"lines": [_LINE, {**_LINE, "source": "n2", "target": "n1"}], "cut": [["n1", "n3"]]},
    {"lines": [{**_LINE, "faults": {"rate_bits_per_s": 1000, "jitter_s": 0.01, "delay_s": 0.02}}], "cut": []},
)
_KEYS = (
    "lines",
    "cut",
    "source",
    "target",
    "mac",
    "faults",
    "seed",
    "loss",
    "delay_s",
    "rate_bits_per_s",
    "mtu_hole",
    "flows",
)


class RelayRequests(Target):
    """A line of JSON, as `podwire lab link` sends it."""

    name = "relay"
    reached_by = "root, at the lab's own socket"

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="podwire-fuzz-")
        self._relay = _Relay(Path(self._directory.name) / "relay.sock")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._relay._listener.close()
        self._directory.cleanup()

    def make(self, random: Random) -> bytes:
        return mutate.document(random, _VALID, _KEYS)

    def feed(self, given: bytes) -> None:
        json.dumps(self._relay._answer(given))
        frame = bytes(10) + b"\x02\0\0\0\0\1" + given[:64].ljust(60, b"\0")
        self._relay._switch.receive("n1", frame[10:16], frame, len(frame) - 10, 0.0)
        self._relay._send_due(1e9)
