"""A process with many simulated nodes in one event loop: reads commands as JSON lines, answers each with one.

{"do": "start", "nodes": [0, 1, …]}      {"do": "stop", "nodes": […]}      {"do": "restart", "nodes": […]}
{"do": "wait", "rows": 1000, "timeout_s": 60}     until every running node holds its subnets and sees that many
{"do": "arrivals", "name": "n00007"}              when that node came into each one's snapshot
{"do": "state"}
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import sys
import time
from typing import Any

from benchmarks.simulation.node import SharedRoster, SimulatedNode
from router.config import Etcd
from router.subnets.etcd.client import Client

_CLIENTS = 8
"""Connections that the nodes of a process share: enough that no stream waits for another's window."""


class Crowd:
    """The nodes of this process."""

    def __init__(self, url: str, ttl_s: int, one_follows_of: int) -> None:
        self._url, self._ttl_s = url, ttl_s
        self._one_follows_of = one_follows_of
        self._shared: list[SharedRoster] = []
        """What nodes that do not follow the table themselves look at to find a free subnet; one a client."""
        self._clients = [Client(Etcd((url,), ttl_s=ttl_s)) for _ in range(_CLIENTS)]
        self._nodes: dict[int, SimulatedNode] = {}

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a line says."""
        return await getattr(self, f"_{command.pop('do')}")(**command)  # type: ignore[no-any-return]

    async def _start(self, nodes: list[int]) -> dict[str, Any]:
        for index in nodes:
            if index not in self._nodes:
                client = self._clients[index % len(self._clients)]
                shared = None if index % self._one_follows_of == 0 else self._roster(index % len(self._clients))
                self._nodes[index] = SimulatedNode(index, client, self._url, self._ttl_s, shared)
        began_s = time.monotonic()
        for index in nodes:
            self._nodes[index].start()
        return {"began_s": began_s}

    def _roster(self, client: int) -> SharedRoster:
        if not self._shared:
            self._shared = [SharedRoster(each, self._ttl_s) for each in self._clients]
        return self._shared[client]

    async def _stop(self, nodes: list[int]) -> dict[str, Any]:
        await asyncio.gather(*(self._nodes[index].stop() for index in nodes))
        return {"ended_s": time.monotonic()}

    async def _restart(self, nodes: list[int]) -> dict[str, Any]:
        await self._stop(nodes)
        return await self._start(nodes)

    async def _wait(self, rows: int, timeout_s: float) -> dict[str, Any]:
        deadline_s = time.monotonic() + timeout_s
        while behind := [node for node in self._running() if not node.settled(rows)]:
            if time.monotonic() > deadline_s:
                worst = behind[0]
                return {"behind": len(behind), "example": f"{worst.name}: {worst.rows} rows, {worst.lease}"}
            await asyncio.sleep(0.02)
        return {"behind": 0}

    async def _arrivals(self, name: str) -> dict[str, Any]:
        return {"seen_s": [node.seen_s.get(name) for node in self._followers() if node.name != name]}

    async def _state(self) -> dict[str, Any]:
        running = self._running()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "start_s": [node.start_s for node in running],
            "held_s": [node.held_s for node in running],
            "changed_s": [node.changed_s for node in self._followers()],
            "changes": sum(node.changes for node in running),
            "epochs": [node.lease.epoch if node.lease else 0 for node in running],
            "subnets": [str(subnet) for node in running if node.lease for subnet in node.lease.subnets],
            "refused": [message for node in running for message in node.refused],
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "resident_bytes": usage.ru_maxrss * 1024,
        }

    def _running(self) -> list[SimulatedNode]:
        return [node for node in self._nodes.values() if node.running]

    def _followers(self) -> list[SimulatedNode]:
        return [node for node in self._running() if node.follows]

    async def close(self) -> None:
        await asyncio.gather(*(node.stop() for node in self._running()))
        await asyncio.gather(*(each.stop() for each in self._shared))
        for client in self._clients:
            await client.close()


async def _main(url: str, ttl_s: int, one_follows_of: int) -> None:
    loop = asyncio.get_running_loop()
    crowd = Crowd(url, ttl_s, one_follows_of)
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            answer = await crowd.obey(json.loads(line))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        await crowd.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # a thousand nodes that are cut off need not say so one by one
    # A full collection over millions of rows would stop all nodes at once; a router keeps it out of traffic's way too.
    gc.disable()
    asyncio.run(_main(sys.argv[1], *map(int, sys.argv[2:4])))
