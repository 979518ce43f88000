"""Two nodes on one underlay, and Pods routed behind them: the ground every kernel and tunnel contender stands on.

    pod 0a ─veth┐                                       ┌veth─ pod 1a
                node 0 ─veth─ bridge (underlay) ─veth─ node 1
    pod 0b ─veth┘            MTU 1500

The lab of Podwire builds the same underlay, so that all contenders cross the same wires.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.namespace import CommandFailed, Namespace

UNDERLAY_MTU_BYTES = 1500
GATEWAY = "169.254.1.1"
"""The node as its Pods see it, as the ptp plugin and Calico do it: no address of the Pod range is spent."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod's namespace and its address."""

    namespace: Namespace
    address: str


class Cluster:
    """Namespaces of two nodes joined by an underlay; Pods are added by the contender."""

    def __init__(self, stack: ExitStack, label: str) -> None:
        self._stack = stack
        self._label = f"{label}-{secrets.token_hex(2)}"
        self.underlay = Namespace(stack, f"{self._label}-u")
        self.underlay.ip("link", "add", "br0", "type", "bridge")
        self.underlay.ip("link", "set", "br0", "mtu", UNDERLAY_MTU_BYTES, "up")
        self.nodes = tuple(self._node(index) for index in range(2))

    def _node(self, index: int) -> Namespace:
        node = Namespace(self._stack, f"{self._label}-n{index}")
        _veth(node, "under0", self.underlay, f"node{index}", UNDERLAY_MTU_BYTES)
        self.underlay.ip("link", "set", f"node{index}", "master", "br0")
        node.ip("address", "add", f"{underlay_address(index)}/24", "dev", "under0")
        return node

    def pod(self, node: int, index: int) -> Pod:
        """Make an empty Pod namespace with the address it is to have."""
        return Pod(Namespace(self._stack, f"{self._label}-p{node}{index}"), f"10.244.{node}.{10 + index}")

    def routed_pod(self, node: int, index: int, mtu_bytes: int) -> Pod:
        """Make a Pod joined to its node by a veth and a host route."""
        pod = self.pod(node, index)
        plug(pod, self.nodes[node], f"pod{index}", mtu_bytes)
        self.nodes[node].ip("address", "add", f"{GATEWAY}/32", "dev", f"pod{index}", "scope", "link")
        self.nodes[node].ip("route", "add", pod.address, "dev", f"pod{index}")
        pod.namespace.ip("address", "add", f"{pod.address}/32", "dev", "eth0")
        pod.namespace.ip("route", "add", "default", "via", GATEWAY, "dev", "eth0", "onlink")
        return pod


def plug(pod: Pod, node: Namespace, interface: str, mtu_bytes: int) -> None:
    """Join a Pod's eth0 to an interface of its node."""
    _veth(pod.namespace, "eth0", node, interface, mtu_bytes)


def underlay_address(node: int) -> str:
    """Return the address of a node on the underlay."""
    return f"10.200.0.{1 + node}"


def subnet(node: int) -> str:
    """Return the Pod range of a node."""
    return f"10.244.{node}.0/24"


def await_device(namespace: Namespace, name: str, timeout_s: float = 10) -> None:
    """Wait until a process has made its network device."""
    _poll(lambda: namespace.ip("link", "show", "dev", name), f"{name} did not appear in {namespace.name}", timeout_s)


def await_reachable(namespace: Namespace, address: str, packet_bytes: int, timeout_s: float = 20) -> None:
    """Wait until packets of that size pass unfragmented; a contender whose MTU is wrong fails here, not in a figure."""
    ping = ("ping", "-n", "-q", "-c", 1, "-W", 1, "-M", "do", "-s", packet_bytes - 28, address)
    _poll(
        lambda: namespace.run(*ping), f"no ping of {packet_bytes} bytes from {namespace.name} to {address}", timeout_s
    )


def _poll(attempt: Callable[[], object], complaint: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            attempt()
        except CommandFailed as error:
            if time.monotonic() > deadline:
                raise CommandFailed(f"{complaint} within {timeout_s:g} s: {error}") from error
            time.sleep(0.05)
        else:
            return


def _veth(one: Namespace, name: str, other: Namespace, other_name: str, mtu_bytes: int) -> None:
    one.ip("link", "add", name, "mtu", mtu_bytes, "type", "veth",
           "peer", "name", other_name, "mtu", mtu_bytes, "netns", other.name)  # fmt: skip
    one.ip("link", "set", name, "up")
    other.ip("link", "set", other_name, "up")
