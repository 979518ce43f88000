"""Routed veth pairs: the kernel without any tunnel, the ceiling for everybody (flannel calls it host-gw)."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.cluster import UNDERLAY_MTU_BYTES, Cluster, await_reachable, subnet, underlay_address
from benchmarks.contenders.interface import Network, Way


class Veth:
    """Pods behind their nodes by veth; the nodes route to each other."""

    name = "veth"
    title = "kernel veth"
    programs = ("ip",)
    packages = ("iproute2",)
    engine = ""
    only = ()

    def open(self, stack: ExitStack) -> Network:
        """Set up two nodes and two Pods on each."""
        cluster = Cluster(stack, self.name)
        client, neighbour = (cluster.routed_pod(0, index, UNDERLAY_MTU_BYTES) for index in range(2))
        server, other = (cluster.routed_pod(1, index, UNDERLAY_MTU_BYTES) for index in range(2))
        for node in range(2):
            cluster.nodes[node].ip("route", "add", subnet(1 - node), "via", underlay_address(1 - node))
        await_reachable(client.namespace, server.address, UNDERLAY_MTU_BYTES)
        return Network(
            across=Way(client.namespace, server.namespace, server.address),
            beside=Way(client.namespace, neighbour.namespace, neighbour.address),
            other=Way(neighbour.namespace, other.namespace, other.address),
        )
