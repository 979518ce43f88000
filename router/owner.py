"""What a router does with its parts while a successor takes over from it; see router/takeover."""

from __future__ import annotations

import socket
import threading
from dataclasses import asdict
from typing import Any

from router.attachments import Attachments
from router.cluster import Cluster
from router.config import Settings
from router.engine.interface import Engine
from router.errors import Kind, Refusal
from router.journal import SCHEMA, Journal
from router.model import NODE_KEY, Offloads
from router.takeover import counts
from router.takeover.gate import Gate
from router.takeover.inherited import UNDERLAY, name_of, set_offloads
from router.uplink import Uplink

_CALLS_S = 20.0
"""How long calls under way may take to end: an attachment takes a tenth of a second, hundreds at once some."""


class Owner:
    """The running router's side. Its calls come one at a time, from one thread."""

    def __init__(
        self,
        settings: Settings,
        counters_epoch: str,
        offloads: Offloads,
        journal: Journal,
        cluster: Cluster,
        attachments: Attachments,
        uplink: Uplink,
        engine: Engine,
        underlay: socket.socket,
        gate: Gate,
    ) -> None:
        self._settings = settings
        self._counters_epoch = counters_epoch
        self._offloads = offloads
        self._journal = journal
        self._cluster = cluster
        self._attachments = attachments
        self._uplink = uplink
        self._engine = engine
        self._underlay = underlay
        self._gate = gate

    def check(self, hello: dict[str, Any]) -> None:
        """Raise Refusal when the one who says this cannot be our successor."""
        ours = identity(self._settings)
        for what, own in ours.items():
            if hello.get(what) != own:
                raise Refusal(
                    Kind.STATE,
                    f"the running router's {what.replace('_', ' ')} is {own}, its successor's would be "
                    f"{str(hello.get(what))[:200]}: stop the one, and start the other",
                )

    def freeze(self) -> None:
        """Change nothing from now on, and have everything in the journal; packets go on. Raise Refusal; thaw then too."""
        self._gate.close(_CALLS_S)
        self._cluster.pause()
        self._journal.freeze(True)

    def estate(self) -> tuple[dict[str, Any], dict[str, int], int]:
        """Return what a successor has to know, every fd by its name, and the lock's."""
        fds = self._attachments.fds() | {UNDERLAY: self._underlay.fileno()}
        if self._uplink.fd >= 0:
            fds[name_of(NODE_KEY)] = self._uplink.fd
        told = {
            "switches": asdict(self._settings.offloads),
            "offloads": asdict(self._offloads),
            "counters_epoch": self._counters_epoch,
            "listens": [str(each.listen) for each in (self._settings.tls, self._settings.web) if each],
        }
        return told, fds, self._journal.lend_lock()

    def stop_engine(self) -> None:
        """Carry nothing any more; what was in hand is sent."""
        self._engine.stop()

    def start_engine(self) -> None:
        """Carry packets again, with our offloads: a successor may have set its own."""
        set_offloads((*self._attachments.fds().values(), self._uplink.fd), self._offloads, self._underlay)
        self._engine.start()

    def counters(self) -> dict[str, Any]:
        """Return what was counted to the end."""
        return counts.encode(self._engine.counters())

    def let_go(self) -> None:
        """Close every TUN: from now on they are the successor's alone, and it may delete them."""
        self._attachments.close()
        self._uplink.close()

    def thaw(self, ended: threading.Event) -> None:
        """Go on as before: the successor did not come to it."""
        self._journal.freeze(False)
        self._journal.claim()
        self._gate.open()
        self._cluster.resume(ended)


def identity(settings: Settings) -> dict[str, Any]:
    """Return in what a router and its successor must be the same."""
    return {"node": settings.node, "state_directory": str(settings.state_dir.resolve()), "journal_schema": SCHEMA}
