"""The namespaces and wires of a lab, made and taken away as its plan says."""

from __future__ import annotations

from collections.abc import Iterable

from shim.lab import netns, plan
from shim.lab.ledger import PodRecord
from shim.lab.plan import LabPlan, NodePlan


def make_namespaces(lab: LabPlan, pods: Iterable[PodRecord]) -> None:
    """Make every namespace of a new lab."""
    netns.create(lab.underlay_netns, plan.UNDERLAY_SYSCTLS)
    if lab.with_outside:
        netns.create(lab.outside_netns, plan.POD_SYSCTLS)
    if lab.store == "etcd":
        netns.create(lab.store_netns, plan.POD_SYSCTLS)
    for node in lab.nodes:
        netns.create(node.netns, plan.NODE_SYSCTLS)
    for pod in pods:
        netns.create(pod.netns, plan.POD_SYSCTLS)


def wire(lab: LabPlan) -> None:
    """Make the bridge, and give everybody on it their eth0."""
    netns.ip_batch(netns.path_of(lab.underlay_netns), plan.underlay_links(lab))
    for node in lab.nodes:
        netns.ip_batch(netns.path_of(node.netns), plan.node_links(lab, node))
    if lab.with_outside:
        netns.ip_batch(netns.path_of(lab.outside_netns), plan.outside_links(lab))
    if lab.store == "etcd":
        netns.ip_batch(netns.path_of(lab.store_netns), plan.store_links(lab))


def add_node(lab: LabPlan, node: NodePlan) -> None:
    """Make the namespace of one more node, and wire it."""
    netns.create(node.netns, plan.NODE_SYSCTLS)
    station = next(each for each in lab.stations if each.name == node.name)
    netns.ip_batch(netns.path_of(lab.underlay_netns), plan.port_links(lab, station))
    netns.ip_batch(netns.path_of(node.netns), plan.node_links(lab, node))


def remove_node(lab: LabPlan, node: NodePlan, namespaces: Iterable[str]) -> None:
    """Remove a node's namespaces, in which nothing runs any more, and its port. Missing is fine."""
    for name in namespaces:
        netns.delete(name)
    # It would stay until the kernel has taken the namespace down, and its name be taken.
    netns.run(netns.path_of(lab.underlay_netns), ["ip", "link", "delete", node.name])
