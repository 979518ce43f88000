"""An API server in this process that knows Nodes: list, watch and their failures, as the real one says them, over HTTP or TLS."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from router.subnets.kubernetes.api import Pace

QUICK = Pace(0.5, answer_s=0.6, watch_s=1.0, read_s=3.0, first_wait_s=0.02, most_wait_s=0.2, short_s=0.2)
"""As the router does it, but in less time."""
DEADLINE_S = 30.0


def until(fulfilled: Any, what: str = "it never came") -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not fulfilled():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)


def node(
    name: str,
    pod_cidrs: list[str] | None = None,
    internal: list[str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a Node as `kubectl get node -o json` shows it, shortened."""
    addresses = [{"type": "InternalIP", "address": address} for address in internal or ()]
    spec: dict[str, Any] = {"providerID": f"kind://docker/kind/{name}"}
    if pod_cidrs:
        spec |= {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs}
    return {
        "metadata": {
            "name": name,
            "uid": f"8e1b7a0c-0000-4000-8000-{hash(name) & 0xFFFFFFFFFFFF:012x}",
            "creationTimestamp": "2026-11-25T08:00:00Z",
            "labels": {"beta.kubernetes.io/os": "linux", "kubernetes.io/hostname": name},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0", **(annotations or {})},
        },
        "spec": spec,
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": name}],
            "capacity": {"cpu": "4", "memory": "16384Mi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "nodeInfo": {"kubeletVersion": "v1.36.1", "osImage": "Debian GNU/Linux 12 (bookworm)"},
            "images": [{"names": [f"registry.example/image-{i}:1"], "sizeBytes": 10_000_000 + i} for i in range(20)],
        },
    }


class ApiServer:
    """Nodes at versions, and how the server behaves. Its methods may be called while it serves."""

    def __init__(self, folder: Path, token: str = "s3cret", tls: bool = False) -> None:
        self.folder = folder
        self.token = token
        self.nodes: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.requests: list[dict[str, str]] = []
        """The queries, in the order they came."""
        self.refuse_with: tuple[int, str] | None = None
        """Status and message for every request."""
        self.dead = False
        """Take connections and requests, and say nothing more: a black hole."""
        self.cut_watches = False
        """Break each watch off right after its head."""
        self.gone_as_status = False
        """Say 410 with the HTTP status, not in an event."""
        self.garbage: bytes | None = None
        """What every body is instead."""
        self.open_watches = 0
        self._log: list[tuple[int, bytes]] = []
        self._kept_from = 100
        self._lists: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._tls = _certificate(folder) if tls else None
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    # Life

    def start(self) -> None:
        server = _Server(("127.0.0.1", self.port), _Handler)
        server.api = self
        server.tls = None
        if self._tls is not None:
            server.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            server.tls.load_cert_chain(self._tls[0], self._tls[1])
        self.port = server.server_address[1]
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """End as a killed process does; `start` begins again at the same port."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self.reset()

    def reset(self) -> None:
        """Reset every connection (RST)."""
        with self._changed:
            for connection in list(self._connections):
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._server is None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def kubeconfig(self, token: str | None = None, authority: Path | None = None) -> Path:
        """Write a kubeconfig with two contexts: `good`, the current one, and `elsewhere`, where nobody is."""
        cluster: dict[str, Any] = {"server": self.url}
        if self._tls is not None:
            cluster["certificate-authority"] = str(authority or self._tls[0])
        path = self.folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "good",
                    "clusters": [
                        {"name": "here", "cluster": cluster},
                        {"name": "elsewhere", "cluster": {"server": "http://127.0.0.1:1"}},
                    ],
                    "users": [{"name": "podwire", "user": {"token": token or self.token}}],
                    "contexts": [
                        {"name": "good", "context": {"cluster": "here", "user": "podwire"}},
                        {"name": "elsewhere", "context": {"cluster": "elsewhere", "user": "podwire"}},
                    ],
                }
            )
        )
        return path

    # Nodes

    def put(self, *items: dict[str, Any]) -> None:
        """Add Nodes, or change those of their name."""
        with self._changed:
            for item in items:
                name = item["metadata"]["name"]
                kind = "MODIFIED" if name in self.nodes else "ADDED"
                self.nodes[name] = self._stamped(item)
                self._record(kind, self.nodes[name])

    def delete(self, *names: str) -> None:
        with self._changed:
            for name in names:
                self._record("DELETED", self._stamped(self.nodes.pop(name)))

    def bookmark(self) -> None:
        """Say to all who watch that they have seen everything; a while later than the last change."""
        with self._changed:
            empty = {"metadata": {"creationTimestamp": None}, "spec": {}, "status": {"daemonEndpoints": {}}}
            self._record("BOOKMARK", self._stamped(empty))

    def send(self, kind: str, item: object) -> None:
        """Send an event that means nothing to the server itself."""
        with self._changed:
            self.version += 1
            self._record(kind, item)

    def compact(self) -> None:
        """Forget what was before: who watches from an earlier version is told that it is gone."""
        with self._changed:
            self.version += 1
            self._kept_from = self.version
            self._log.clear()
            self._lists.clear()
            self._changed.notify_all()

    def count(self, **query: str) -> int:
        """Count the requests so far whose query holds these."""
        return sum(query.items() <= request.items() for request in self.requests)

    @property
    def lists(self) -> int:
        return len(self.requests) - self.watches

    @property
    def watches(self) -> int:
        return self.count(watch="True") + self.count(watch="true")

    def _stamped(self, item: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = item["metadata"] | {"resourceVersion": str(self.version)}
        return {"kind": "Node", "apiVersion": "v1"} | item | {"metadata": metadata}

    def _record(self, kind: str, item: object) -> None:
        self._log.append((self.version, json.dumps({"type": kind, "object": item}).encode() + b"\n"))
        self._changed.notify_all()

    # Answers

    def page(self, limit: int, token: str) -> tuple[int, dict[str, Any]]:
        """Return status and body of a list."""
        with self._changed:
            if token:
                of, _, first = token.partition(":")
                if of not in self._lists:
                    return 410, status(410, "Expired", "The provided continue parameter is too old.")
            else:
                of, first = str(self.version), "0"
                self._lists[of] = self.version, [self.nodes[name] for name in sorted(self.nodes)]
            version, items = self._lists[of]
            end = int(first) + limit if limit else len(items)
            metadata = {"resourceVersion": str(version)}
            if end < len(items):
                metadata |= {"continue": f"{of}:{end}", "remainingItemCount": len(items) - end}
            return 200, {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items[int(first) : end]}

    def follow(self, version: int, timeout_s: float) -> Iterator[bytes]:
        """Yield the events after a version, until the time is over or the server ends."""
        ends_s = time.monotonic() + timeout_s
        while True:
            with self._changed:
                if version < self._kept_from:
                    gone = status(410, "Expired", f"too old resource version: {version} ({self._kept_from})")
                    events = [json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"]
                    yield from events
                    return
                events = [event for at, event in self._log if at > version]
                version = max(version, self.version)
                if not events:
                    left_s = ends_s - time.monotonic()
                    if left_s <= 0 or self.stopped:
                        return
                    self._changed.wait(min(left_s, 0.1))
                    continue
            yield from events


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    kind = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return kind | {"message": message, "reason": reason, "code": code}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    api: ApiServer
    tls: ssl.SSLContext | None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections break here on purpose."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        self.api._connections.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self.api._connections.discard(request)
            request.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        api, url = self.server.api, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        api.requests.append(query)
        while api.dead and not api.stopped:
            time.sleep(0.01)
        if api.refuse_with is not None:
            code, message = api.refuse_with
            self._answer(code, status(code, "Forbidden" if code == 403 else "InternalError", message))
        elif self.headers.get("Authorization") != f"Bearer {api.token}":
            self._answer(401, status(401, "Unauthorized", "Unauthorized"))
        elif url.path != "/api/v1/nodes":
            self._answer(404, status(404, "NotFound", "the server could not find the requested resource"))
        elif query.get("watch", "").lower() == "true":
            self._watch(api, query)
        else:
            self._answer(*api.page(int(query.get("limit", 0)), query.get("continue", "")))

    def _answer(self, code: int, document: object) -> None:
        body = json.dumps(document).encode()
        if code == 200 and self.server.api.garbage is not None:
            body = self.server.api.garbage
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, api: ApiServer, query: Mapping[str, str]) -> None:
        version = int(query["resourceVersion"])
        assert query["allowWatchBookmarks"].lower() == "true"
        if api.gone_as_status and version < api._kept_from:
            self._answer(410, status(410, "Expired", "too old resource version"))
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        api.open_watches += 1
        try:
            if api.cut_watches:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            for event in api.follow(version, float(query["timeoutSeconds"])):
                while api.dead and not api.stopped:
                    time.sleep(0.01)
                # In two parts: a line need not come whole.
                for part in (event[:7], event[7:]):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
            while api.dead and not api.stopped:
                time.sleep(0.01)
            self.wfile.write(b"0\r\n\r\n")
        finally:
            api.open_watches -= 1


def _certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "server.pem", folder / "server.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    extensions = ["-subj", "/CN=kube", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *extensions, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key
