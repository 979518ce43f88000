"""Kernel VXLAN set up as flannel does it (pkg/backend/vxlan): no learning, neighbour and FDB entries by hand."""

from __future__ import annotations

import json
from contextlib import ExitStack

from benchmarks.cluster import Cluster, Pod, await_reachable, plug, subnet, underlay_address
from benchmarks.contenders.interface import Network, Way
from benchmarks.namespace import Namespace

_DEVICE = "flannel.1"
_MTU_BYTES = 1450


class Vxlan:
    """Pods on a bridge cni0; flannel.1 between the nodes. What every ratio is taken to."""

    name = "vxlan"
    title = "kernel VXLAN"
    programs = ("ip", "bridge")
    packages = ("iproute2",)
    engine = ""
    only = ()

    def open(self, stack: ExitStack) -> Network:
        """Set up two nodes and two Pods on each."""
        cluster = Cluster(stack, self.name)
        for index, node in enumerate(cluster.nodes):
            self._open_device(node, index)
        for index, node in enumerate(cluster.nodes):
            self._add_peer(node, cluster.nodes[1 - index], 1 - index)
        client, neighbour, server, other = (self._pod(cluster, node, index) for node in range(2) for index in range(2))
        await_reachable(client.namespace, server.address, _MTU_BYTES)
        return Network(
            across=Way(client.namespace, server.namespace, server.address),
            beside=Way(client.namespace, neighbour.namespace, neighbour.address),
            other=Way(neighbour.namespace, other.namespace, other.address),
        )

    def _open_device(self, node: Namespace, index: int) -> None:
        node.ip("link", "add", _DEVICE, "type", "vxlan", "id", 1, "dstport", 8472, "nolearning",
                "local", underlay_address(index), "dev", "under0")  # fmt: skip
        node.ip("address", "add", f"10.244.{index}.0/32", "dev", _DEVICE)
        node.ip("link", "set", _DEVICE, "mtu", _MTU_BYTES, "up")
        node.ip("link", "add", "cni0", "mtu", _MTU_BYTES, "type", "bridge")
        node.ip("address", "add", f"10.244.{index}.1/24", "dev", "cni0")
        node.ip("link", "set", "cni0", "up")

    def _add_peer(self, node: Namespace, peer: Namespace, peer_index: int) -> None:
        mac = json.loads(peer.ip("-json", "link", "show", "dev", _DEVICE))[0]["address"]
        vtep = f"10.244.{peer_index}.0"
        node.ip("neigh", "replace", vtep, "lladdr", mac, "dev", _DEVICE, "nud", "permanent")
        node.bridge("fdb", "append", mac, "dev", _DEVICE, "dst", underlay_address(peer_index))
        node.ip("route", "add", subnet(peer_index), "via", vtep, "dev", _DEVICE, "onlink")

    def _pod(self, cluster: Cluster, node: int, index: int) -> Pod:
        pod = cluster.pod(node, index)
        plug(pod, cluster.nodes[node], f"pod{index}", _MTU_BYTES)
        cluster.nodes[node].ip("link", "set", f"pod{index}", "master", "cni0")
        pod.namespace.ip("address", "add", f"{pod.address}/24", "dev", "eth0")
        pod.namespace.ip("route", "add", "default", "via", f"10.244.{node}.1")
        return pod
