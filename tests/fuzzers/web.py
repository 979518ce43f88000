"""Requests to the web page's server, byte by byte as they come over TCP."""

from __future__ import annotations

import logging
import re
import socket
from contextlib import ExitStack
from ipaddress import ip_address
from random import Random
from types import TracebackType
from typing import Self

from router.model import Endpoint
from router.web.app import App
from router.web.server import WebServer
from tests.control_daemon import MemoryDaemon
from tests.engine_rig import Rig
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

_HOST = "localhost"
_BODY = '{"src": "a", "dst": "b", "protocol": "tcp", "dst_port": 80, "dry_run": true}'
_PATHS = (
    "/",
    "/trace",
    "/pod/a%2Fb",
    "/metrics",
    "/api/cluster.json",
    "/api/pod.json?name=x",
    "/static/page.js",
    "/static/../app.py",
)
_WORDS = (
    "GET ", "POST ", "HEAD ", "OPTIONS * ", "HTTP/1.0", "HTTP/9.9", "\r\n", "\r\n\r\n", "Content-Length: -1\r\n", "Content-Length: 99999999999\r\n",
    "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: x\r\n", "Host: evil.example\r\n", "Host: [::1\r\n", "Host:\r\n", "Expect: 100-continue\r\n",
    "Origin: null\r\n", "Accept: application/openmetrics-text;version=1.0.0\r\n", "Connection: close\r\n", "0\r\n\r\n", "fffffffff\r\n", "%00", "%ff",
    "name=" + "a=b&" * 300,
)  # fmt: skip
_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d) ")
_OWN = frozenset(
    (
        b"200",
        b"400",
        b"403",
        b"404",
        b"405",
        b"409",
        b"411",
        b"413",
        b"414",
        b"415",
        b"421",
        b"429",
        b"431",
        b"501",
        b"503",
    )
)
_TIMEOUT_S = 20.0


class WebRequests(Target):
    """The real server; an input is what one connection sends."""

    name = "web"
    reached_by = "who reaches the address of --web-listen, and pages of others in such a one's browser"

    def __init__(self) -> None:
        plain = [f"GET {path} HTTP/1.1\r\nHost: {_HOST}\r\n\r\n" for path in _PATHS]
        asked = (
            f"POST /api/trace HTTP/1.1\r\nHost: {_HOST}\r\nOrigin: http://{_HOST}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(_BODY)}\r\n\r\n{_BODY}"
        )
        self._valid = [*plain, *[asked] * 4, "".join(plain[:2])]
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            rig = undo.enter_context(Rig("python"))
            daemon = MemoryDaemon(rig.engine)
            undo.callback(daemon.observatory.close)
            self._server = WebServer(App(daemon), Endpoint(ip_address("127.0.0.1"), 0))
            self._server.start()
            undo.callback(self._server.stop)
            log = logging.getLogger("waitress")
            undo.callback(log.setLevel, log.level)
            log.setLevel(logging.CRITICAL + 1)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def make(self, random: Random) -> bytes:
        return mutate.text(random, self._valid, _WORDS)

    def feed(self, given: bytes) -> None:
        answer = self._ask(given)
        statuses = _STATUS.findall(answer)
        assert not answer or answer.startswith(b"HTTP/1."), answer[:100]
        assert set(statuses) <= _OWN | {b"100"}, answer[:500]

    def _ask(self, given: bytes) -> bytes:
        out = b""
        with socket.create_connection(("127.0.0.1", self._server.port), _TIMEOUT_S) as asking:
            try:
                asking.sendall(given)
                asking.shutdown(socket.SHUT_WR)
                while piece := asking.recv(1 << 16):
                    out += piece
            except (ConnectionError, BrokenPipeError):  # it need not hear us out
                pass
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
        return out
