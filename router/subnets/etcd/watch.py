"""A watch: etcd says what changes, as long as it lives."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import grpc.aio

from router.rpc.etcd import rpc_pb2
from router.rpc.etcd.rpc_pb2_grpc import WatchStub
from router.subnets.etcd.connection import DEADLINE_S, Connection
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.messages import change
from router.subnets.etcd.transaction import Change, Changes

_WatchCall = grpc.aio.StreamStreamCall[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]


class Watch:
    """One watch: an asynchronous context, in which `next` waits for what changes."""

    def __init__(self, connection: Connection, create: rpc_pb2.WatchCreateRequest, silence_s: float) -> None:
        self._connection = connection
        self._create = create
        self._silence_s = silence_s
        self._answers: asyncio.Queue[rpc_pb2.WatchResponse | EtcdError] = asyncio.Queue()
        self._pieces: dict[int, list[Change]] = defaultdict(list)

    async def __aenter__(self) -> Watch:
        """Begin; raise EtcdError when no server lets us."""
        for renewed in (False, True):
            metadata = await self._connection.metadata(renewed=renewed)
            self._url = self._connection.url
            self._call: _WatchCall = WatchStub(self._connection.channel()).Watch(metadata=metadata)
            self._reader = asyncio.create_task(self._read())
            try:
                await self._write(rpc_pb2.WatchRequest(create_request=self._create))
                answer = await self._answer_by(DEADLINE_S)
                if not answer.canceled:
                    return self
                stale = self._connection.is_stale(answer.cancel_reason) or "permission denied" in answer.cancel_reason
                if answer.compact_revision or renewed or not stale:
                    raise self._cancelled(answer)
            except BaseException:
                await self._end()
                raise
            await self._end()
        raise AssertionError

    async def __aexit__(self, *_: object) -> None:
        """End the watch."""
        await self._end()

    async def next(self) -> Changes:
        """Wait for changes, or for word that there are none. Raise EtcdError when the watch has ended or fallen silent."""
        while True:
            try:
                answer = await self._answer(self._silence_s)
            except TimeoutError:
                await self._write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
                answer = await self._answer_by(self._silence_s / 2)
            if answer.canceled:
                raise self._cancelled(answer)
            pieces = self._pieces[answer.watch_id]
            pieces += map(change, answer.events)
            if not answer.fragment:
                del self._pieces[answer.watch_id]
                return Changes(answer.header.revision, tuple(pieces))

    async def _answer(self, timeout_s: float) -> rpc_pb2.WatchResponse:
        """Wait for an answer; raise TimeoutError, or EtcdError when the watch has ended."""
        async with asyncio.timeout(timeout_s):
            answer = await self._answers.get()
        if isinstance(answer, EtcdError):
            raise answer
        return answer

    async def _answer_by(self, timeout_s: float) -> rpc_pb2.WatchResponse:
        """Wait for an answer that has to come."""
        try:
            return await self._answer(timeout_s)
        except TimeoutError:
            self._connection.leave(self._url)
            raise EtcdError(Reason.AWAY, f"etcd {self._url} does not answer") from None

    async def _write(self, request: rpc_pb2.WatchRequest) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            pass  # the reader says why

    async def _read(self) -> None:
        error = EtcdError(Reason.AWAY, f"etcd {self._url}: the connection was closed by the other side")
        try:
            while answer := await self._call.read():
                assert isinstance(answer, rpc_pb2.WatchResponse)
                self._answers.put_nowait(answer)
        except grpc.aio.AioRpcError as failed:
            error = self._connection.explain(self._url, failed)
        except asyncio.CancelledError:  # by `_end`, or by a write that took too long
            error = EtcdError(Reason.AWAY, f"etcd {self._url} does not answer")
        if error.reason is Reason.AWAY:
            self._connection.leave(self._url)
        self._answers.put_nowait(error)

    async def _end(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _cancelled(self, answer: rpc_pb2.WatchResponse) -> EtcdError:
        if answer.compact_revision:
            return EtcdError(Reason.COMPACTED, f"etcd {self._url}: changes were compacted away before they were seen")
        if answer.cancel_reason and "leader" not in answer.cancel_reason:
            return self._connection.refused(self._url, answer.cancel_reason)
        self._connection.leave(self._url)
        return EtcdError(Reason.AWAY, f"etcd {self._url} ended the watch: {answer.cancel_reason or 'no reason given'}")
