"""Pods made through CRI on two nodes: they talk, are reached, and leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import who
from tests.conformance.conftest import Cluster, ClusterMaker
from tests.conformance.cri import CriError
from tests.conformance.kubelet import HostPort

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


@pytest.fixture
def cluster(make_cluster: ClusterMaker) -> Cluster:
    return make_cluster(outside=True)


def test_pods_of_two_nodes_talk_with_their_own_addresses_and_leave_nothing(cluster: Cluster) -> None:
    census = cluster.census()
    for kubelet in cluster.kubelets:
        for condition in ("RuntimeReady", "NetworkReady"):
            assert kubelet.conditions()[condition][0], kubelet.conditions()
    pods = [kubelet.run_pod() for kubelet in cluster.kubelets]
    assert [pod.addresses[0] in node.plan.subnets[0] for pod, node in zip(pods, cluster.lab.nodes, strict=True)] == [
        True
    ] * 2
    assert [pod.addresses[1] in node.plan.subnets[1] for pod, node in zip(pods, cluster.lab.nodes, strict=True)] == [
        True
    ] * 2
    servers = [kubelet.serve(pod) for kubelet, pod in zip(cluster.kubelets, pods, strict=True)]
    for here, there in ((0, 1), (1, 0)):
        kubelet, container = cluster.kubelets[here], servers[here]
        for own, other in zip(pods[here].addresses, pods[there].addresses, strict=True):
            status, said = kubelet.exec(container, "ping", "-c", "1", "-W", "5", str(other))
            assert status == 0, said
            assert who.ask(kubelet.inside(container), other) == own
            # Every node reaches every Pod, and is seen with its own address.
            node = cluster.lab.nodes[here]
            assert who.ask(who.inside(node.netns_path), other) in node.addresses
    for kubelet, pod in zip(cluster.kubelets, pods, strict=True):
        kubelet.remove_pod(pod.id)
        assert not kubelet.pod_ids()
    census.assert_nothing_left()


def test_a_host_port_is_reached_from_everywhere_and_goes_with_its_pod(cluster: Cluster) -> None:
    census = cluster.census()
    kubelet, other = cluster.kubelets
    node = kubelet.node
    pod = kubelet.run_pod(ports=[HostPort(18080, who.PORT)])
    server = kubelet.serve(pod)
    client = other.run_pod()
    prober = other.run_container(client)
    outside = who.inside(Path(cluster.lab.outside_path))
    for version, address in enumerate(interface.ip for interface in node.plan.underlay):
        gateway = cluster.lab.plan.gateway[version].ip
        assert who.ask(outside, address, 18080) == gateway
        who.ask(who.inside(other.node.netns_path), address, 18080)
        who.ask(who.inside(node.netns_path), address, 18080)
        who.ask(other.inside(prober), address, 18080)
        who.ask(kubelet.inside(server), address, 18080)
    with pytest.raises(CriError, match="18080"):
        kubelet.run_pod("second", ports=[HostPort(18080, 80)])
    for sandbox in kubelet.pod_ids("second"):
        kubelet.remove_pod(sandbox)
    kubelet.remove_pod(pod.id)
    with pytest.raises(AssertionError, match="did not answer"):
        who.ask(outside, node.plan.underlay[0].ip, 18080)
    other.remove_pod(client.id)
    census.assert_nothing_left()


def test_what_kubernetes_says_of_a_pod_reaches_the_router(cluster: Cluster) -> None:
    kubelet = cluster.kubelets[0]
    bandwidth = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "10M"}
    pod = kubelet.run_pod("web", ports=[HostPort(18080, 80), HostPort(18080, 53, "UDP")], annotations=bandwidth)
    with kubelet.node.client() as client:
        [found] = [each for each in client.attachments() if each.key.sandbox_id == pod.id]
    assert found.owner == "cni:podwire"
    assert (found.labels["namespace"], found.labels["name"]) == ("conformance", "web")
    assert found.labels["uid"] == pod.config["metadata"]["uid"]
    assert {(port.host_port, port.container_port, port.protocol) for port in found.ports} == {
        (18080, 80, "tcp"),
        (18080, 53, "udp"),
    }
    assert found.limits is not None
    assert found.limits.ingress_bits_per_s == 20_000_000
    assert found.limits.egress_bits_per_s == 10_000_000


def test_a_pod_outlives_its_router_and_its_containerd(cluster: Cluster) -> None:
    census = cluster.census()
    kubelet, other = cluster.kubelets
    pod, client = kubelet.run_pod(), other.run_pod()
    kubelet.serve(pod)
    prober = other.run_container(client)
    kubelet.node.kill9()
    kubelet.containerd.kill9()
    kubelet.node.start()
    kubelet.containerd.start()
    kubelet.reconnect()
    for own, address in zip(client.addresses, pod.addresses, strict=True):
        assert who.ask(other.inside(prober), address) == own
    kubelet.remove_pod(pod.id)
    other.remove_pod(client.id)
    census.assert_nothing_left()


def test_a_pod_removed_while_no_router_runs_is_released_by_the_next(cluster: Cluster) -> None:
    census = cluster.census()
    kubelet = cluster.kubelets[0]
    pod = kubelet.run_pod()
    kubelet.node.kill9()
    kubelet.remove_pod(pod.id)
    kubelet.node.start()
    census.assert_nothing_left()
    assert kubelet.run_pod().addresses != pod.addresses
