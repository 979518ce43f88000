"""The same Pods with newer containerds: each speaks another dialect of CNI and of its own configuration."""

from __future__ import annotations

import pytest

from tests.conformance import who
from tests.conformance.conftest import ClusterMaker

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("version", "cni_version"), [("1.6", "0.4.0"), ("1.7", "1.0.0"), ("2", "1.0.0"), ("2", "1.1.0")]
)
def test_pods_of_a_containerd_talk_and_leave_nothing(
    make_cluster: ClusterMaker, version: str, cni_version: str
) -> None:
    cluster = make_cluster(version, cni_version=cni_version)
    census = cluster.census()
    here, there = cluster.kubelets
    assert here.cri.call("Version")["runtime_version"].lstrip("v").startswith(version)
    assert here.conditions()["NetworkReady"] == (True, "")
    client, server = here.run_pod(), there.run_pod()
    prober = here.run_container(client)
    there.serve(server)
    for own, other in zip(client.addresses, server.addresses, strict=True):
        assert who.ask(here.inside(prober), other) == own
    here.remove_pod(client.id)
    there.remove_pod(server.id)
    census.assert_nothing_left()


def test_a_containerd_that_asks_says_not_ready_while_no_router_runs(make_cluster: ClusterMaker) -> None:
    # containerd 2.1 asks STATUS of a network that speaks CNI 1.1; the older ones are content with a configuration.
    cluster = make_cluster("2", nodes=1, cni_version="1.1.0")
    [kubelet] = cluster.kubelets
    assert kubelet.conditions()["NetworkReady"] == (True, "")
    kubelet.node.kill9()
    ready, message = kubelet.conditions()["NetworkReady"]
    assert not ready
    assert "router" in message
    kubelet.node.start()
    assert kubelet.conditions()["NetworkReady"] == (True, "")
