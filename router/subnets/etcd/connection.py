"""Ways to an etcd cluster: one channel an endpoint, the first that answers is used; TLS, users, and errors in words.

Pings (10 s, 5 s) cut a connection whose server does not answer any more while something is asked of it; with nothing
asked there are none, for etcd takes those for an attack (its --grpc-keepalive-min-time).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from router.config import Etcd
from router.rpc.etcd import rpc_pb2
from router.rpc.etcd.rpc_pb2_grpc import AuthStub
from router.subnets.etcd.errors import EtcdError, Reason

DEADLINE_S = 3.0
"""Most that one server is waited for."""
MOST_CALLS = 64
"""Most calls at once; others wait before their deadline begins to run. Matters where many members share a client."""
MOST_BYTES = 256 * 1024 * 1024
"""Largest answer: 100,000 rows have 40 MB."""
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long an attempt may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", MOST_BYTES),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # else two clients of one endpoint share a connection, and what is wrong with it
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)
_AUTHORITIES = tuple(
    map(
        Path,
        (
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/ca-bundle.pem",
            "/etc/ssl/cert.pem",
        ),
    )
)
"""Where distributions keep the authorities that the machine trusts; grpc would bring its own list along."""
_WANTS_LEADER = ("hasleader", "true")
_STALE_TOKEN = ("invalid auth token", "user name is empty", "revision of auth store is old", "auth store is old")

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]
log = logging.getLogger(__name__)


class Connection:
    """Calls to the first server that answers. Belongs to one event loop; any number of tasks may use it."""

    def __init__(self, settings: Etcd) -> None:
        """Nothing is opened yet. Raise EtcdError when a file of TLS or the password cannot be read."""
        self._settings = settings
        self._certificates = self._read_certificates()
        self._read_password()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._current = 0
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._places = asyncio.Semaphore(MOST_CALLS)

    @property
    def where(self) -> str:
        """All endpoints, for people."""
        return ", ".join(self._settings.endpoints)

    @property
    def url(self) -> str:
        """The endpoint that is used now."""
        return self._settings.endpoints[self._current]

    async def close(self) -> None:
        """End all that is under way."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    def channel(self) -> grpc.aio.Channel:
        """Return the way to the endpoint that is used now."""
        url = self.url
        if url not in self._channels:
            target = url.partition("://")[2]
            if url.startswith("https:"):
                authorities, key, cert = self._certificates
                credentials = grpc.ssl_channel_credentials(authorities, key, cert)
                self._channels[url] = grpc.aio.secure_channel(target, credentials, _OPTIONS)
            else:
                self._channels[url] = grpc.aio.insecure_channel(target, _OPTIONS)
        return self._channels[url]

    def leave(self, url: str) -> None:
        """Use the next endpoint from now on, unless another is used already."""
        if url == self.url:
            self._current = (self._current + 1) % len(self._settings.endpoints)

    async def call(self, make: Callable[[grpc.aio.Channel, Metadata], Awaitable[T]]) -> T:
        """Make a call at the endpoint in use, else at the others once each. Raise EtcdError.

        A call that failed with AWAY may have been carried out all the same.
        """
        failures: dict[str, str] = {}
        for _ in self._settings.endpoints:
            url = self.url
            try:
                async with self._places:
                    return await self._authenticated(url, make)
            except EtcdError as error:
                if error.reason is Reason.REFUSED:
                    await self._take_new_certificates()
                if error.reason is not Reason.AWAY:
                    raise
                failures[url] = error.message
                self.leave(url)
        raise EtcdError(Reason.AWAY, "; ".join(failures.values()))

    async def metadata(self, *, renewed: bool = False) -> Metadata:
        """Return what goes with every call: a server without a leader is to refuse it, and who we are."""
        if not self._settings.user:
            return (_WANTS_LEADER,)
        if renewed or not self._token:
            stale = self._token
            async with self._authenticating:
                if self._token == stale:
                    self._token = await self._authenticate()
        return (_WANTS_LEADER, ("token", self._token)) if self._token else (_WANTS_LEADER,)

    def is_stale(self, text: str) -> bool:
        """Tell whether a server's words mean that one has to authenticate, again or at all, and that can be done."""
        return bool(self._settings.user) and any(words in text for words in _STALE_TOKEN)

    def explain(self, url: str, error: grpc.aio.AioRpcError) -> EtcdError:
        """Say what a failed call means."""
        return _explain(url, self._settings, error.code(), error.details() or "")

    def refused(self, url: str, text: str) -> EtcdError:
        """Say what a server's refusal to watch means."""
        return _explain(url, self._settings, grpc.StatusCode.PERMISSION_DENIED, text)

    async def _authenticated(self, url: str, make: Callable[[grpc.aio.Channel, Metadata], Awaitable[T]]) -> T:
        for renewed in (False, True):
            metadata = await self.metadata(renewed=renewed)
            try:
                return await make(self.channel(), metadata)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # Not we were cancelled, but the call, with its channel.
                raise EtcdError(Reason.AWAY, f"etcd {url}: the connection is made anew") from None
            except grpc.aio.UsageError:  # it was closed between two calls
                raise EtcdError(Reason.AWAY, f"etcd {url}: the connection is made anew") from None
            except grpc.aio.AioRpcError as error:
                if renewed or not self.is_stale(error.details() or ""):
                    raise self.explain(url, error) from None
        raise AssertionError

    async def _authenticate(self) -> str:
        url = self.url
        request = rpc_pb2.AuthenticateRequest(name=self._settings.user, password=self._read_password())
        try:
            answer = await AuthStub(self.channel()).Authenticate(request, timeout=DEADLINE_S, metadata=(_WANTS_LEADER,))
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                log.warning("etcd %s asks for no user: %r is not looked at", url, self._settings.user)
                return ""
            failed = self.explain(url, error)
            if failed.reason is Reason.AWAY:
                self.leave(url)
            raise failed from None
        return str(answer.token)

    def _read_certificates(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return authorities, our key and our certificate; nothing when no endpoint needs any. Raise EtcdError."""
        settings = self._settings
        if not any(url.startswith("https:") for url in settings.endpoints):
            return None, None, None
        ca = settings.ca or next((path for path in _AUTHORITIES if path.exists()), None)
        if ca is None:
            raise EtcdError(Reason.REFUSED, "this machine has no list of authorities: give one as etcd.ca")
        authorities = _read("etcd.ca", ca)
        if settings.cert is None or settings.key is None:
            return authorities, None, None
        return authorities, _read("etcd.key", settings.key), _read("etcd.cert", settings.cert)

    async def _take_new_certificates(self) -> None:
        """Begin anew if certificates were renewed since the channels were made: one cannot change them."""
        found = self._read_certificates()
        if found != self._certificates:
            self._certificates = found
            await self.close()

    def _read_password(self) -> str:
        if self._settings.password_file is None:
            return ""
        try:
            return _read("etcd.password_file", self._settings.password_file).decode().rstrip("\n")
        except UnicodeDecodeError:
            raise EtcdError(
                Reason.REFUSED, f"etcd.password_file {self._settings.password_file} is not UTF-8 text"
            ) from None


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EtcdError(Reason.REFUSED, f"cannot read {name} {path}: {error.strerror}") from None


def _explain(url: str, settings: Etcd, code: grpc.StatusCode, text: str) -> EtcdError:
    """Say what a status and its text mean, which differ by version only in places not looked at here."""
    user = f"the user {settings.user!r}" if settings.user else "who gives no user"
    plain = re.sub(r"^.*etcdserver: ", "", text)
    if "requested lease not found" in text:
        return EtcdError(Reason.LEASE_GONE, f"etcd {url}: the lease has ended")
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return EtcdError(Reason.COMPACTED, f"etcd {url}: that revision has been compacted away")
    if "authentication failed" in text or "user name is empty" in text or "invalid auth token" in text:
        return EtcdError(Reason.REFUSED, f"etcd {url} refuses {user}: {plain} (etcd.user, etcd.password_file)")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return EtcdError(
            Reason.REFUSED, f"etcd {url} refuses {user}: {plain}; {settings.prefix}/ has to be open to reads and writes"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        ca = settings.ca or "this machine's authorities"
        return EtcdError(Reason.REFUSED, f"etcd {url}: its certificate is not signed by {ca} (etcd.ca)")
    if "Hostname Verification" in text:
        return EtcdError(Reason.REFUSED, f"etcd {url}: its certificate is for another name; give the endpoint by that")
    if "TSI_DATA_CORRUPTED" in text:
        shown = (
            f"refuses the certificate {settings.cert}" if settings.cert else "wants a certificate: give etcd.cert, .key"
        )
        return EtcdError(Reason.REFUSED, f"etcd {url} {shown}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or "timed out" in text or "handshaker shutdown" in text:
        return EtcdError(Reason.AWAY, f"etcd {url} does not answer")
    if "Handshake read failed" in text:
        return EtcdError(Reason.AWAY, f"etcd {url} speaks no TLS: is it http?")
    if code is grpc.StatusCode.UNAVAILABLE:
        said = re.search(
            r"Failed to connect to remote host: (?:connect: )?([^(]*)|lookup failed for (.*?:\d+: .*?)\]", text
        )
        if said:
            return EtcdError(Reason.AWAY, f"etcd {url}: {(said[1] or said[2]).strip().lower()}")
        if "Socket closed" in text or "reset by peer" in text:
            return EtcdError(Reason.AWAY, f"etcd {url}: the connection was closed by the other side")
        return EtcdError(Reason.AWAY, f"etcd {url}: {plain}")
    return EtcdError(Reason.AWAY, f"etcd {url}: {code.name}: {plain}")
