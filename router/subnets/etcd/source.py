"""Subnets leased in etcd, for a router: one thread with an event loop, in which its member and its roster run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace

from router.config import Etcd
from router.errors import Kind, Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.etcd.claimant import Wish
from router.subnets.etcd.client import Client
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.layout import Config, Layout
from router.subnets.etcd.member import Member
from router.subnets.etcd.memory import Memory
from router.subnets.etcd.relay import Relay
from router.subnets.etcd.roster import Roster
from router.subnets.source import Listener, SourceState

READ_S = 5.0
"""Most that `read` takes."""
AWAY_S = 1.0
"""How long `read` goes on when each server says at once that it is not there."""

log = logging.getLogger(__name__)


class EtcdSource:
    """The table in etcd, and this node's lease in it. From `read` to `stop` its thread runs."""

    def __init__(
        self,
        settings: Etcd,
        *,
        node: str,
        identity: str,
        endpoint: Endpoint,
        networks: tuple[Prefix, ...],
        vni: int,
        memory: Memory,
        offload: bool = True,
        place: str = "",
    ) -> None:
        """Take who we are; nothing is asked yet.

        `identity` is the UUID of the state directory's life. `memory` keeps the lease over a restart. `place` names what
        this router alone has locked, such as "DEVICE:INODE" of its state file: by it a successor in another container
        sees that its predecessor has ended; without it, it waits until the lease has.
        """
        self._settings = settings
        self._memory = memory
        self._identity = identity
        self._place = place
        config = Config(networks, settings.ipv4_length, settings.ipv6_length, vni)
        self._wish = Wish(node, endpoint, config, int(settings.ttl_s), settings.reserve, offload)
        self._relay = Relay()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._member: Member | None = None
        self._read: tuple[Node, ...] | None = None

    def read(self) -> tuple[Node, ...] | None:
        """Join the network, and return its table; None when etcd does not answer within 5 s (1 s, if it is not there).

        Raise Refusal when another router has our name or our endpoint, when the network is another, or when etcd
        refuses our user or certificate.
        """
        first: Future[tuple[Node, ...] | None] = Future()
        self._thread = threading.Thread(target=self._run, args=(first,), name="subnets-etcd", daemon=True)
        self._thread.start()
        try:
            self._read = first.result()
        except BaseException:
            self.stop()
            raise
        return self._read

    def start(self, listener: Listener) -> None:
        """Tell of every change from now on, from a thread of its own."""
        self._relay.start(listener, self._read)

    def stop(self) -> None:
        """End; the lease lives on for a successor. May be called twice."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(stopping.set)
        if self._thread is not None:
            self._thread.join()
        self._relay.stop()

    def state(self) -> SourceState:
        """Say how it stands. From any thread."""
        if self._member is None:
            return SourceState("etcd", ", ".join(self._settings.endpoints), False, 0.0, "not read yet")
        state = self._member.state()
        return state if state.error else replace(state, error=self._relay.refused)

    def _run(self, first: Future[tuple[Node, ...] | None]) -> None:
        try:
            asyncio.run(self._main(first))
        except Exception as error:  # a bug: it must not be silent
            log.exception("the subnets from etcd are not followed any more")
            if not first.done():
                first.set_exception(error)

    async def _main(self, first: Future[tuple[Node, ...] | None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            client = Client(self._settings)
        except EtcdError as error:
            first.set_exception(Refusal(Kind.STATE, error.message))
            return
        layout = Layout(self._settings.prefix)
        roster = Roster(client, layout, self._wish.ttl_s)
        failures: asyncio.Queue[EtcdError | Refusal] = asyncio.Queue()
        self._member = member = Member(
            client,
            layout,
            roster,
            self._wish,
            self._memory,
            self._identity,
            place=self._place,
            failed=lambda error: None if first.done() else failures.put_nowait(error),
        )
        tasks = [
            asyncio.create_task(_outlive_bugs(roster.run, "the watch")),
            asyncio.create_task(_outlive_bugs(lambda: member.run(self._relay), "the lease")),
        ]
        try:
            try:
                first.set_result(await _first_table(member, roster, failures))
            except Refusal as refusal:
                first.set_exception(refusal)
            await self._stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()


async def _first_table(
    member: Member, roster: Roster, failures: asyncio.Queue[EtcdError | Refusal]
) -> tuple[Node, ...] | None:
    """Wait until we are in the network and know its table; None when that takes too long. Raise Refusal."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def joined() -> None:
        await member.joined.wait()
        await roster.loaded.wait()

    ready = asyncio.create_task(joined())
    try:
        while (left_s := began_s + READ_S - loop.time()) > 0:
            failure = asyncio.create_task(failures.get())
            await asyncio.wait((ready, failure), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                failure.cancel()
                break
            if not failure.done():
                failure.cancel()
                continue
            error = failure.result()
            if isinstance(error, Refusal):
                raise error
            if error.reason is Reason.REFUSED:
                raise Refusal(Kind.STATE, error.message)
            if roster.loaded.is_set() if error.reason is Reason.FULL else loop.time() - began_s > AWAY_S:
                break
    finally:
        ready.cancel()
    return member.nodes if roster.loaded.is_set() else None


async def _outlive_bugs(run: Callable[[], Awaitable[None]], what: str) -> None:
    while True:
        try:
            await run()
        except Exception:
            log.exception("%s in etcd met a bug, and begins afresh", what)
        await asyncio.sleep(1)
