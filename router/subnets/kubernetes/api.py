"""The API server's Nodes through the official client library: pages, events, and what can go wrong, in words.

Of the library this takes what is hard: kubeconfig, credentials and their renewal, TLS, the request. What comes back is read
here, a line or a page at a time: its models would be built of everything a kubelet reports (15 KB a Node, every few
minutes), and its watch tries again by itself where we have to know.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from router.config import Kubernetes
from router.errors import Kind, Refusal
from router.subnets.kubernetes.rows import version_of

IN_CLUSTER = "in-cluster"
_PAGE = 100
"""Nodes in one answer: their JSON keeps the interpreter from the engine for some 20 ms."""
_MOST_BYTES = 64 << 20
"""Of one page or event; etcd holds no object larger than 1.5 MB."""
_SILENT = "it does not answer"
_KEEPALIVE_S = (10, 5, 3)
"""A connection over which nothing comes is asked after 10 s, then every 5 s; three without an answer end it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take."""

    connect_s: float = 2.0
    answer_s: float = 4.0
    """Until an answer begins, and between its parts."""
    watch_s: float = 60.0
    """After which the server ends a watch, and a new one goes on. Silence for longer means that nobody is there."""
    read_s: float = 8.0
    """For the first list of all Nodes."""
    gather_s: float = 0.05
    """How long after a change others may join it."""
    first_wait_s: float = 0.1
    most_wait_s: float = 5.0
    """Between two tries, doubling from the one to the other."""
    short_s: float = 1.0
    """A watch that ends sooner counts as one that failed: who tries again at once would spin."""


class Trouble(Exception):
    """A request that came to nothing. The message says which server, and what was wrong."""

    def __init__(self, message: str, *, gone: bool = False, denied: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.gone = gone
        """What was asked about is too long ago: list again."""
        self.denied = denied
        """The server knows us not, or does not let us: trying again helps once somebody has mended that."""
        self.silent = silent
        """It had its time to say something."""


class NodeApi:
    """An API server. Nothing is asked before `pages`."""

    def __init__(self, settings: Kubernetes, pace: Pace) -> None:
        """Load the library and the configuration. Raise Refusal when either is not there, or wrong."""
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise Refusal(
                Kind.STATE,
                f'--kubernetes needs the Kubernetes client library ({error}): pip install "podwire[kubernetes]"',
            ) from None
        self._pace = pace
        self._who = "this Pod's service account" if settings.config == IN_CLUSTER else f"kubeconfig {settings.config}"
        configuration = client.Configuration()
        try:
            if settings.config == IN_CLUSTER:
                config.load_incluster_config(client_configuration=configuration)
            else:
                Path(settings.config).stat()  # the library would say that there is no configuration
                config.load_kube_config(settings.config, settings.context or None, configuration, persist_config=False)
        except OSError as error:
            raise Refusal(Kind.INVALID, f"cannot read {self._who}: {error.strerror or error}") from None
        except Exception as error:  # noqa: BLE001 - a YAML error, a missing key, a credential plugin's: what the file leads to
            raise Refusal(Kind.INVALID, f"{self._who} cannot be used: {_first_line(error)}") from None
        configuration.retries = False
        configuration.socket_options = [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            *zip(
                (socket.IPPROTO_TCP,) * 3,
                (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT),
                _KEEPALIVE_S,
                strict=True,
            ),
        ]
        self.host = str(configuration.host)
        self._client = client.ApiClient(configuration)
        self._nodes = client.CoreV1Api(self._client)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def pages(self) -> Iterator[tuple[list[Any], str]]:
        """Yield all Nodes, some at a time, with the resourceVersion they are of. Raise Trouble."""
        token = None
        while True:
            answer = self._ask(self._pace.answer_s, limit=_PAGE, _continue=token)
            try:
                document = json.loads(self._read(answer))
                if not isinstance(document, dict) or not isinstance(document.get("items"), list):
                    raise ValueError("no list of Nodes")  # noqa: TRY004 - wrong bytes, not wrong code
                version = version_of(document)
                token = document["metadata"].get("continue")
            except (ValueError, RecursionError) as error:
                raise self._trouble(f"its answer cannot be understood: {error}") from None
            yield document["items"], version
            if not token:
                return

    def watch(self, version: str) -> Watch:
        """Ask for all changes after that resourceVersion. Raise Trouble."""
        seconds = max(1, round(self._pace.watch_s * random.uniform(0.75, 1.0)))
        answer = self._ask(
            seconds + self._pace.answer_s,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=seconds,
        )
        return Watch(self, answer)

    def _ask(self, answer_s: float, **what: object) -> Any:
        """Send a request and return the answer's head, or raise Trouble."""
        timeout = (self._pace.connect_s, answer_s)
        try:
            answer = self._nodes.list_node(**what, _preload_content=False, _request_timeout=timeout)
        except Exception as error:  # noqa: BLE001 - the library's, urllib3's, the system's, a credential plugin's
            code = getattr(error, "status", None)
            if isinstance(code, int) and code:
                raise self._refused(code, getattr(error, "body", None)) from None
            raise self._failed(error) from None
        return answer

    def _read(self, answer: Any) -> bytes:
        """Read a whole answer and give its connection back."""
        try:
            content = bytes(answer.read(_MOST_BYTES + 1))
        except Exception as error:  # noqa: BLE001 - see _ask
            answer.close()
            raise self._failed(error) from None
        finally:
            answer.release_conn()
        if len(content) > _MOST_BYTES:
            answer.close()
            raise self._trouble(f"its answer is longer than {_MOST_BYTES} bytes")
        return content

    def _refused(self, code: int, body: object) -> Trouble:
        try:
            message = str(json.loads(str(body))["message"])
        except (ValueError, KeyError, TypeError):
            message = ""
        return self._said(code, message)

    def _said(self, code: int, message: str) -> Trouble:
        """Return what an HTTP status, or a Status object with that code, means for us."""
        said = f"{code}{f', {_first_line(message)}' if message else ''}"
        if code == HTTPStatus.UNAUTHORIZED:
            return self._trouble(
                f"it does not know us ({said}): mend or renew the credentials of {self._who}", denied=True
            )
        if code == HTTPStatus.FORBIDDEN:
            return self._trouble(
                f"it does not let us list Nodes ({said}): give {self._who} get, list and watch on nodes", denied=True
            )
        return self._trouble(f"it answers {said}", gone=code == HTTPStatus.GONE)

    def _failed(self, error: Exception) -> Trouble:
        why = _why(error)
        return Trouble(f"API server {self.host}: {why}", silent=why == _SILENT)

    def _trouble(self, why: str, *, gone: bool = False, denied: bool = False) -> Trouble:
        return Trouble(f"API server {self.host}: {why}", gone=gone, denied=denied)

    def events(self, answer: Any) -> Iterator[tuple[str, Any]]:
        """Yield what a watch brings, as (type, object), until the server ends it. Raise Trouble."""
        parts = answer.stream(amt=None, decode_content=False)
        line = bytearray()
        while True:
            try:
                part = next(parts, None)
            except Exception as error:  # noqa: BLE001 - see _ask
                raise self._failed(error) from None
            if part is None:
                return
            line += part
            if b"\n" in part:
                *whole, rest = line.split(b"\n")
                line = bytearray(rest)
                for text in filter(None, whole):
                    yield self._event(text)
            if len(line) > _MOST_BYTES:
                raise self._trouble(f"an event is longer than {_MOST_BYTES} bytes")

    def _event(self, text: bytearray) -> tuple[str, Any]:
        try:
            event = json.loads(text)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                code, message = int(item["code"]), str(item.get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._trouble("an event cannot be understood") from None
        if kind == "ERROR":
            raise self._said(code, message)
        return str(kind), item


class Watch:
    """A watch that is open. Of one thread, but for `interrupt`."""

    def __init__(self, api: NodeApi, answer: Any) -> None:
        self._answer = answer
        self._events = api.events(answer)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._events

    def interrupt(self) -> None:
        """Wake who waits for the next event: it gets Trouble. From any thread, at any time."""
        try:
            self._answer.shutdown()
        except (OSError, ValueError, RuntimeError):
            pass  # it has ended by itself

    def close(self) -> None:
        """End it."""
        self._answer.close()
        self._answer.release_conn()


def _why(error: BaseException) -> str:
    """Say what an exception of the library's or below it means."""
    chain: list[BaseException] = []
    at: object = error
    while isinstance(at, BaseException) and at not in chain:
        chain.append(at)
        at = getattr(at, "reason", None) or at.__cause__ or at.__context__
    kinds = [type(each).__name__ for each in chain]
    if any("ReadTimeout" in kind for kind in kinds):
        return _SILENT
    if any("ConnectTimeout" in kind for kind in kinds):
        return "no connection to it can be made: it does not answer"
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror[:1].lower() + each.strerror[1:]
    if any(kind in ("IncompleteRead", "InvalidChunkLength", "ProtocolError") for kind in kinds):
        return "the connection broke off"
    return _first_line(chain[-1])


def _first_line(error: object) -> str:
    """Return an error's text on one line, and not too long."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= 300 else text[:299] + "…"
