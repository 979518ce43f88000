"""Transactions and changes as etcd's messages, and back."""

from __future__ import annotations

from router.rpc.etcd import kv_pb2, rpc_pb2
from router.subnets.etcd.transaction import Change, Condition, Delete, Get, GetAll, LeasedBy, Put, Step, Stored


def comparison(condition: Condition) -> rpc_pb2.Compare:
    """Say a condition as etcd does."""
    key = condition.key.encode()
    if isinstance(condition, LeasedBy):
        return rpc_pb2.Compare(target=rpc_pb2.Compare.LEASE, key=key, lease=condition.lease)
    return rpc_pb2.Compare(target=rpc_pb2.Compare.MOD, key=key, mod_revision=condition.mod_revision)


def operation(step: Step) -> rpc_pb2.RequestOp:
    """Say a step as etcd does."""
    match step:
        case Put():
            put = rpc_pb2.PutRequest(key=step.key.encode(), value=step.value, lease=step.lease)
            return rpc_pb2.RequestOp(request_put=put)
        case Delete():
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=step.key.encode()))
        case Get():
            return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=step.key.encode()))
        case GetAll():
            ranged = rpc_pb2.RangeRequest(
                key=step.prefix.encode(), range_end=end(step.prefix), keys_only=step.keys_only, limit=step.limit
            )
            return rpc_pb2.RequestOp(request_range=ranged)


def stored(kv: kv_pb2.KeyValue) -> Stored:
    """Read what etcd stores under a key. A key that is no text is escaped, and no key of ours."""
    return Stored(kv.key.decode(errors="backslashreplace"), kv.value, kv.mod_revision, kv.lease)


def end(prefix: str) -> bytes:
    """Return the first key behind all that begin with `prefix`, which ends in "/"."""
    key = prefix.encode()
    return key[:-1] + bytes([key[-1] + 1])


def change(event: kv_pb2.Event) -> Change:
    """Read what a watch saw."""
    found = stored(event.kv)
    return Change(found.key, None if event.type == kv_pb2.Event.DELETE else found, found.mod_revision)
