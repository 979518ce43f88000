"""The web application (PEP 3333): what it serves to whom.

    whose name is in Host? ──► which page ──► GET: a page, a part of it, JSON, metrics   no name of ours: 421
                                          └─► POST of our own page: a trace              else 404, 405, 403

Nothing of a request is written into a page: pages are files, and what they show comes as JSON that their script puts into
text nodes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from router.errors import Kind, Refusal
from router.metrics.collector import Metrics
from router.observe.trace.steps import TraceRequest
from router.web.pages import Daemon, Pages

MOST_TRACES = 2
"""At a time, so that pages are served meanwhile."""
MOST_BODY_BYTES = 4096

_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PLAIN, _JSON, _LINES = "text/plain; charset=utf-8", "application/json", "application/x-ndjson"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_STATUS = {
    Kind.INVALID: "400 Bad Request",
    Kind.NOT_FOUND: "404 Not Found",
    Kind.EXHAUSTED: "429 Too Many Requests",
    Kind.UNAVAILABLE: "503 Service Unavailable",
}

_log = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., object]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: str
    content_type: str
    body: bytes | Iterator[bytes]
    headers: tuple[tuple[str, str], ...] = ()


class App:
    """A WSGI application. Thread-safe."""

    def __init__(self, daemon: Daemon, hosts: Collection[str] = ()) -> None:
        """`hosts` are names by which people reach it, beside localhost and any address."""
        self._daemon = daemon
        self._hosts = frozenset(("localhost", *hosts))
        self._pages = Pages(daemon)
        self._metrics = Metrics(daemon)
        # Read once: later the router may not be allowed to open files.
        self._static = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.suffix in _TYPES}
        self._traces = threading.BoundedSemaphore(MOST_TRACES)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            answer = self._answer(environ)
        except Refusal as refusal:
            answer = _refused(refusal)
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
            _log.exception("a page failed: a bug of the router")
            answer = _said("500 Internal Server Error", "this failed in the router; see its log")
        headers = [("Content-Type", answer.content_type), *_HEADERS, *answer.headers]
        if isinstance(answer.body, bytes):
            headers.append(("Content-Length", str(len(answer.body))))
            start_response(answer.status, headers)
            return [answer.body]
        start_response(answer.status, headers)
        return answer.body

    def _answer(self, environ: Environ) -> _Answer:
        host = str(environ.get("HTTP_HOST", ""))
        if not self._is_ours(host):
            return _said(
                "421 Misdirected Request",
                "this name is not one of this page's: use an address, localhost, or a name that web.hosts has",
            )
        path = str(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode(errors="replace")
        method = environ.get("REQUEST_METHOD")
        allowed = "POST" if path == "/api/trace" else "GET"
        if method != allowed:
            return _said("405 Method Not Allowed", f"only {allowed} is answered here", (("Allow", allowed),))
        if path == "/api/trace":
            return self._trace(environ, host)
        return self._get(path, str(environ.get("QUERY_STRING", "")), str(environ.get("HTTP_ACCEPT", "")))

    def _is_ours(self, host: str) -> bool:
        """Tell whether a Host header is no stranger's name that was made to lead here (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def _get(self, path: str, query: str, accept: str) -> _Answer:
        if path in ("/", "/trace") or path.startswith("/pod/"):
            return _Answer("200 OK", _TYPES[".html"], self._static["page.html"])
        if path == "/metrics":
            body, content_type = self._metrics.scrape(accept)
            return _Answer("200 OK", content_type, body)
        if path == "/api/cluster.json":
            return _json(self._pages.cluster())
        if path == "/api/pod.json":
            return _json(self._pages.pod(_name(query)))
        folder, _, name = path.rpartition("/")
        if folder == "/static" and name in self._static:
            return _Answer("200 OK", _TYPES[Path(name).suffix], self._static[name])
        return _said("404 Not Found", "there is no such page; / is the cluster, /metrics are the metrics")

    # A trace

    def _trace(self, environ: Environ, host: str) -> _Answer:
        # A form of another page cannot send JSON, and a script of another page not our Origin (Fetch, section 3.2).
        if str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower() != "application/json":
            return _said("415 Unsupported Media Type", "send application/json")
        try:
            origin = urlsplit(str(environ.get("HTTP_ORIGIN", ""))).netloc
        except ValueError:
            origin = ""
        if origin != host or environ.get("HTTP_SEC_FETCH_SITE", "same-origin") != "same-origin":
            return _said(
                "403 Forbidden", "only this router's own page may ask for a trace; `podwire trace` does so, too"
            )
        request = _trace_request(environ["wsgi.input"].read(MOST_BODY_BYTES + 1))
        if not self._traces.acquire(blocking=False):
            raise Refusal(Kind.EXHAUSTED, f"{MOST_TRACES} traces run already: try again in some seconds")
        try:
            steps = self._daemon.observatory.tracer.trace(request)
        except BaseException:
            self._traces.release()
            raise
        return _Answer("200 OK", _LINES, _Steps(steps, self._traces.release))


class _Steps:
    """Lines of JSON, a step each; whatever ends it gives the trace's place back. WSGI calls `close`."""

    def __init__(self, steps: Iterator[Any], ended: Callable[[], None]) -> None:
        self._lines = self._make(steps)
        self._steps = steps
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        return self._lines

    def __next__(self) -> bytes:
        return next(self._lines)

    def close(self) -> None:
        """Give the place back."""
        ended, self._ended = self._ended, lambda: None
        try:
            if (close := getattr(self._steps, "close", None)) is not None:
                close()
        finally:
            ended()

    def _make(self, steps: Iterator[Any]) -> Iterator[bytes]:
        try:
            for step in steps:
                yield _line(asdict(step))
        except Refusal as refusal:  # the answer has begun: it ends with why
            yield _line({"error": refusal.message})
        except Exception:  # noqa: BLE001 - likewise
            _log.exception("a trace failed: a bug of the router")
            yield _line({"error": "this failed in the router; see its log"})


def _name(query: str) -> str:
    try:
        return parse_qs(query, max_num_fields=8).get("name", [""])[0]
    except ValueError:
        raise Refusal(Kind.INVALID, "ask for one Pod: /api/pod.json?name=NAME") from None


def _line(value: Any) -> bytes:
    return json.dumps(value, default=lambda known: known.value).encode() + b"\n"


_FIELDS: dict[str, type] = {
    "src": str,
    "dst": str,
    "protocol": str,
    "dst_port": int,
    "packet_bytes": int,
    "dont_fragment": bool,
    "dry_run": bool,
    "ip_version": int,
}


def _trace_request(body: bytes) -> TraceRequest:
    try:
        sent = json.loads(body[:MOST_BODY_BYTES] if len(body) <= MOST_BODY_BYTES else b"")
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise Refusal(Kind.INVALID, f"send one JSON object of at most {MOST_BODY_BYTES} bytes")
    for name, value in sent.items():
        if type(value) is not _FIELDS.get(name):
            raise Refusal(Kind.INVALID, f"{name[:40]!r} is no field of a trace, or its value is of another type")
    if not {"src", "dst"} <= sent.keys():
        raise Refusal(Kind.INVALID, "src and dst must be given")
    return TraceRequest(**sent)


def _json(value: Any) -> _Answer:
    return _Answer("200 OK", _JSON, json.dumps(value).encode())


def _refused(refusal: Refusal) -> _Answer:
    return _Answer(_STATUS.get(refusal.kind, "409 Conflict"), _JSON, json.dumps({"error": refusal.message}).encode())


def _said(status: str, text: str, headers: tuple[tuple[str, str], ...] = ()) -> _Answer:
    return _Answer(status, _PLAIN, f"{text}\n".encode(), headers)
