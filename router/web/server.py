"""Serves the web application with waitress: few threads, bounded connections, and nobody keeps one for long."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from typing import Any

from waitress import wasyncore
from waitress.server import create_server

from router.errors import Kind, Refusal
from router.model import Endpoint
from router.web.app import MOST_BODY_BYTES, App

THREADS = 4
MOST_CONNECTIONS = 64
IDLE_S = 30
"""How long a connection may say nothing."""
MOST_HEADER_BYTES = 16 << 10
_BACKLOG = 64
_MOST_WAITING_BYTES = 16 << 20
"""Of an answer that is not read; nothing is put into files."""

_log = logging.getLogger("router")


class WebServer:
    """Bound when made, answering from `start` to `stop`."""

    def __init__(self, app: App, where: Endpoint) -> None:
        """Refusal when it cannot listen there."""
        self._app = app
        self._socket = listen(where)
        self.port: int = self._socket.getsockname()[1]
        self._map: dict[Any, Any] = {}
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Answer requests, from threads of its own."""
        # Its warnings are one a request of whoever sends too many.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self._server = create_server(
            self._app,
            map=self._map,
            sockets=[self._socket],
            threads=THREADS,
            connection_limit=MOST_CONNECTIONS,
            channel_timeout=IDLE_S,
            cleanup_interval=IDLE_S // 3,
            max_request_header_size=MOST_HEADER_BYTES,
            max_request_body_size=MOST_BODY_BYTES,
            inbuf_overflow=MOST_BODY_BYTES * 4,
            outbuf_overflow=_MOST_WAITING_BYTES * 2,
            outbuf_high_watermark=_MOST_WAITING_BYTES,
            ident=None,
            asyncore_use_poll=True,
        )
        self._thread = threading.Thread(target=self._server.run, name="web", daemon=True)
        self._thread.start()
        host, port = self._socket.getsockname()[:2]
        _log.info("page and metrics at http://%s", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    def stop(self) -> None:
        """End every connection and thread. Can be repeated."""
        server, self._server = self._server, None
        if server is not None:
            # The loop's own thread closes what it watches; without anything to watch it ends.
            server.trigger.pull_trigger(lambda: wasyncore.close_all(self._map, ignore_all=True))
            if self._thread is not None:
                self._thread.join()
            server.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
        with suppress(OSError):
            self._socket.close()


def listen(where: Endpoint) -> socket.socket:
    """Return a socket that listens there. Raise Refusal(STATE)."""
    family = socket.AF_INET6 if where.address.version == 6 else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((str(where.address), where.port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise Refusal(Kind.STATE, f"--web-listen {where}: cannot listen there: {error.strerror}") from None
    return found
