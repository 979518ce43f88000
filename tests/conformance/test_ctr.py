"""Our containerd shim: plain `ctr run` without any CNI, and as a runtime handler of CRI."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_interface
from typing import Any

import pytest

from shim.lab import process
from tests.conformance import images, who
from tests.conformance.conftest import Cluster, ClusterMaker
from tests.conformance.containerd import Containerd
from tests.conformance.kubelet import HostPort

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

RUNTIME = "io.containerd.podwire.v2"


class Container:
    """One container that `ctr` made."""

    def __init__(self, containerd: Containerd, name: str, command: Sequence[str] = ()) -> None:
        self.containerd = containerd
        # runc keeps the containers of all containerds of a machine in one place.
        self.name = f"{name}-{secrets.token_hex(4)}"
        self.ctr("run", "--detach", "--runtime", RUNTIME, images.NAME, self.name, *command)

    def ctr(self, *words: str) -> str:
        done = self.containerd.ctr(*words)
        assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr}"
        return done.stdout

    def exec(self, command: Sequence[str]) -> tuple[int, str]:
        done = self.containerd.ctr("task", "exec", "--exec-id", secrets.token_hex(4), self.name, *command)
        return done.returncode, done.stdout + done.stderr

    @property
    def addresses(self) -> list[who.Address]:
        with self.containerd.node.client() as client:
            found = [each for each in client.attachments() if each.key.sandbox_id == f"default:{self.name}"]
        assert [each.owner for each in found] == ["containerd:default"]
        return [ip_interface(address).ip for address in found[0].addresses]

    def remove(self) -> None:
        self.containerd.ctr("task", "kill", "--signal", "SIGKILL", self.name)
        wait_until(lambda: " RUNNING" not in self.ctr("task", "ls"), f"{self.name} stops")
        self.containerd.ctr("task", "delete", self.name)
        self.ctr("container", "delete", self.name)


def wait_until(holds: Callable[[], Any], what: str, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def cluster(make_cluster: ClusterMaker) -> Cluster:
    return make_cluster(networked=False)


def test_containers_without_cni_talk_and_leave_nothing(cluster: Cluster) -> None:
    census = cluster.census()
    server = Container(cluster.kubelets[0].containerd, "server", images.SERVE)
    client = Container(cluster.kubelets[1].containerd, "client", images.SLEEP)
    who.wait_listening(server.exec)
    for own, other in zip(client.addresses, server.addresses, strict=True):
        assert who.ask(client.exec, other) == own
    for container in (server, client):
        container.remove()
    census.assert_nothing_left()


@pytest.mark.parametrize("also_containerd", [False, True])
def test_a_killed_shim_still_releases_its_container(cluster: Cluster, also_containerd: bool) -> None:
    census = cluster.census()
    containerd = cluster.kubelets[0].containerd
    container = Container(containerd, "doomed", images.SLEEP)
    [shim] = containerd.shims()
    if also_containerd:
        containerd.kill9()
    os.kill(shim.pid, signal.SIGKILL)
    wait_until(lambda: not shim.alive, "the shim ends")
    if also_containerd:
        containerd.start()
    wait_until(lambda: container.name not in container.ctr("task", "ls"), "containerd forgets the task")
    container.ctr("container", "delete", container.name)
    census.assert_nothing_left()
    assert not process.end(containerd.shims(), grace_s=0)


def test_a_command_that_is_not_there_leaves_nothing(cluster: Cluster) -> None:
    census = cluster.census()
    containerd = cluster.kubelets[0].containerd
    with pytest.raises(AssertionError, match="no-such-command"):
        Container(containerd, "hopeless", ["/no-such-command"])
    [name] = containerd.ctr("container", "ls", "--quiet").stdout.split()
    containerd.ctr("task", "delete", "--force", name)
    containerd.ctr("container", "delete", name)
    census.assert_nothing_left()


@pytest.mark.parametrize(
    ("version", "handler"),
    # containerd 1.6 does not look at runtime_path.
    [("1.6", "podwire"), ("1.7", "podwire"), ("1.7", "podwire-path"), ("2", "podwire"), ("2", "podwire-path")],
)
def test_as_a_runtime_handler_it_takes_the_pod_over_from_cni(
    make_cluster: ClusterMaker, version: str, handler: str
) -> None:
    cluster = make_cluster(version)
    census = cluster.census()
    here, there = cluster.kubelets
    client, server = here.run_pod(handler=handler), there.run_pod(handler=handler, ports=[HostPort(18080, who.PORT)])
    prober = here.run_container(client)
    there.serve(server)
    for own, other in zip(client.addresses, server.addresses, strict=True):
        assert who.ask(here.inside(prober), other) == own
    assert f"{client.id}: attached" in here.containerd.shim_log_path.read_text()
    # What CNI was asked for stays.
    who.ask(who.inside(here.node.netns_path), there.node.plan.underlay[0].ip, 18080)
    here.remove_pod(client.id)
    there.remove_pod(server.id)
    census.assert_nothing_left()
