"""What the router asks of etcd: transactions, leases, a watch. Plain values in and out; raises EtcdError alone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from contextlib import suppress

import grpc.aio

from router.config import Etcd
from router.rpc.etcd import rpc_pb2
from router.rpc.etcd.rpc_pb2_grpc import KVStub, LeaseStub
from router.subnets.etcd.connection import DEADLINE_S, Connection, Metadata
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.messages import comparison, end, operation, stored
from router.subnets.etcd.transaction import Condition, Outcome, Step, Stored
from router.subnets.etcd.watch import Watch

PAGE_ROWS = 2000
"""Most keys read at once, so that no answer holds a server up."""


class Client:
    """A client of one cluster. Belongs to one event loop; any number of tasks may share it."""

    def __init__(self, settings: Etcd) -> None:
        """Nothing is opened yet. Raise EtcdError when a file of TLS or the password cannot be read."""
        self._connection = Connection(settings)

    @property
    def where(self) -> str:
        """All endpoints, for people."""
        return self._connection.where

    async def close(self) -> None:
        """End all that is under way; leases live on."""
        await self._connection.close()

    async def transact(
        self, conditions: tuple[Condition, ...], then: tuple[Step, ...], otherwise: tuple[Step, ...] = ()
    ) -> Outcome:
        """Do the first steps at once if all conditions hold, else the others. After AWAY it may have been done."""
        request = rpc_pb2.TxnRequest(
            compare=map(comparison, conditions), success=map(operation, then), failure=map(operation, otherwise)
        )

        def make(channel: grpc.aio.Channel, metadata: Metadata) -> Awaitable[rpc_pb2.TxnResponse]:
            return KVStub(channel).Txn(request, timeout=DEADLINE_S, metadata=metadata)

        answer = await self._connection.call(make)
        found = tuple(tuple(map(stored, response.response_range.kvs)) for response in answer.responses)
        return Outcome(answer.succeeded, answer.header.revision, answer.header.cluster_id, found)

    async def list_all(self, prefix: str, *, keys_only: bool = False) -> tuple[int, tuple[Stored, ...]]:
        """Read every key that begins with something, all as of the revision that is returned with them."""
        found: list[Stored] = []
        request = rpc_pb2.RangeRequest(key=prefix.encode(), range_end=end(prefix), limit=PAGE_ROWS, keys_only=keys_only)

        def make(channel: grpc.aio.Channel, metadata: Metadata) -> Awaitable[rpc_pb2.RangeResponse]:
            return KVStub(channel).Range(request, timeout=DEADLINE_S, metadata=metadata)

        while True:
            answer = await self._connection.call(make)
            request.revision = request.revision or answer.header.revision
            found += map(stored, answer.kvs)
            if not answer.more:
                return request.revision, tuple(found)
            request.key = answer.kvs[-1].key + b"\0"

    async def grant(self, ttl_s: int) -> tuple[int, int]:
        """Take out a lease; return its id and for how many seconds it is."""
        # An id of our own: asked twice because an answer was lost, it is still one lease.
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_s, ID=secrets.randbits(62) + 1)

        async def make(channel: grpc.aio.Channel, metadata: Metadata) -> int:
            try:
                answer = await LeaseStub(channel).LeaseGrant(request, timeout=DEADLINE_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if "lease already exists" in (error.details() or ""):
                    return ttl_s
                raise
            return int(answer.TTL)

        return request.ID, await self._connection.call(make)

    async def renew(self, lease: int, timeout_s: float = DEADLINE_S) -> int:
        """Keep a lease alive; return for how many seconds from the call on, 0 when it has ended."""
        # One stream a renewal: over a lasting one an answer may be an earlier request's, and then promises too much.
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease)

        async def make(channel: grpc.aio.Channel, metadata: Metadata) -> int:
            call = LeaseStub(channel).LeaseKeepAlive(timeout=timeout_s, metadata=metadata)
            try:
                with suppress(asyncio.InvalidStateError):  # it has failed: `read` says why
                    await call.write(request)
                answer = await call.read()
            finally:
                call.cancel()
            if not isinstance(answer, rpc_pb2.LeaseKeepAliveResponse):
                raise EtcdError(Reason.AWAY, f"etcd {self.where}: a keep-alive was not answered")
            return int(answer.TTL)

        return await self._connection.call(make)

    async def remaining(self, lease: int) -> tuple[int, int]:
        """Return how many seconds a lease has left, -1 when it has ended, and the servers' term that counted them."""
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease)

        def make(channel: grpc.aio.Channel, metadata: Metadata) -> Awaitable[rpc_pb2.LeaseTimeToLiveResponse]:
            return LeaseStub(channel).LeaseTimeToLive(request, timeout=DEADLINE_S, metadata=metadata)

        answer = await self._connection.call(make)
        return answer.TTL, answer.header.raft_term

    async def revoke(self, lease: int) -> None:
        """End a lease, and with it the keys that depend on it; one that has ended is no error."""
        request = rpc_pb2.LeaseRevokeRequest(ID=lease)

        def make(channel: grpc.aio.Channel, metadata: Metadata) -> Awaitable[rpc_pb2.LeaseRevokeResponse]:
            return LeaseStub(channel).LeaseRevoke(request, timeout=DEADLINE_S, metadata=metadata)

        try:
            await self._connection.call(make)
        except EtcdError as error:
            if error.reason is not Reason.LEASE_GONE:
                raise

    def watch(self, prefix: str, revision: int, silence_s: float) -> Watch:
        """Follow all keys that begin with something, from a revision on; a silence longer than that is an error."""
        create = rpc_pb2.WatchCreateRequest(
            key=prefix.encode(), range_end=end(prefix), start_revision=revision, progress_notify=True, fragment=True
        )
        return Watch(self._connection, create, silence_s)
