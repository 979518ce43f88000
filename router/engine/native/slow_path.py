"""The slow path of the native engine: a thread of Python that finishes what the compiled threads hand over.

refused packet     → ICMP error, if the RFCs ask for one → back to the thread, which sends it and counts it
path too small     → the kernel's path MTU → every thread
answer to a probe  → the daemon, as are a question, a device, an offload or a thread that failed
"""

from __future__ import annotations

import os
import threading
from typing import Any

from router.engine.interface import EngineSettings, Host
from router.engine.native import _core
from router.engine.native.seen import REASONS
from router.engine.native.slots import PeerId, Slots
from router.model import Address, AttachmentKey
from router.wire.icmp import make_error

_WAIT_S = 3600.0
"""Nothing depends on it: what comes ends the wait, and so does `stop`."""


class SlowPath:
    """Handles exceptions: in a thread of its own between `start` and `stop`, else whenever `drain` is called."""

    def __init__(
        self,
        core: _core.Core,
        settings: EngineSettings,
        host: Host,
        ports: Slots[AttachmentKey],
        peers: Slots[PeerId],
    ) -> None:
        self._core = core
        self._settings = settings
        self._host = host
        self._ports = ports
        self._peers = peers
        self.node_addresses: tuple[Address, ...] = ()
        """What ICMP errors are sent from."""
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Handle exceptions as they come."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="slow-path", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Handle what is left, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping = True
            self._core.nudge()
            thread.join()
        self.drain()

    def drain(self) -> None:
        """Handle what waits now."""
        for exception in self._core.exceptions(0.0):
            self._handle(exception)

    def _run(self) -> None:
        while not self._stopping:
            for exception in self._core.exceptions(_WAIT_S):
                self._handle(exception)

    def _handle(self, exception: tuple[Any, ...]) -> None:
        what, *details = exception
        try:
            getattr(self, f"_{what}")(*details)
        except Exception as error:  # noqa: BLE001 - a bug must cost an ICMP error, not all that come after
            self._host.engine_failed(f"slow path: {type(error).__name__}: {error}")

    def _refused(
        self, thread: int, kind: int, slot: int, serial: int, reason: int, packet: bytes, mtu_bytes: int,
        path: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        if path is not None:
            mtu_bytes = self._core.mtu_of(*path) or mtu_bytes
        error = make_error(packet, REASONS[reason], self.node_addresses, mtu_bytes or self._settings.mtu_bytes)
        if error is not None:
            self._core.emit(thread, error, kind, slot, serial)

    def _path(self, slot: int, serial: int) -> None:
        peer = self._peers.known(slot, serial)
        if peer is not None:
            mtu_bytes = self._host.path_mtu(peer.endpoint) - self._settings.overhead_bytes
            self._core.lower_mtu(slot, serial, max(0, mtu_bytes))

    def _answered(self, slot: int, serial: int, answer: bytes, received_ns: int) -> None:
        peer = self._peers.known(slot, serial)
        if peer is not None:
            self._host.probe_answered(peer.endpoint, answer, received_ns)

    def _question(self, slot: int, serial: int, datagram: bytes, received_ns: int) -> None:
        peer = self._peers.known(slot, serial)
        if peer is not None:
            self._host.question_came(peer.endpoint, datagram, received_ns)

    def _lost(self, slot: int, serial: int, errno: int) -> None:
        key = self._ports.known(slot, serial)
        if key is not None:
            self._host.attachment_lost(key, os.strerror(errno))

    def _offload(self, feature: str, party: tuple[int, int] | None, errno: int) -> None:
        peer = self._peers.known(*party) if party is not None else None
        if peer is not None:
            self._host.offload_failed(feature, f"towards {peer.node}: {os.strerror(errno)}")
        else:
            self._host.offload_failed(feature, "the TUN refused 16 super-packets in a row")

    def _failed(self, why: str) -> None:
        self._host.engine_failed(why)
