"""Whose namespace an attachment is in: made anew, the node's own, shared by two interfaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shim.client import Client, ClientError
from shim.lab import Lab, netns, plan
from tests.crowd import interfaces, namespaces, path

_OWN = "/proc/self/ns/net"


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(nodes=1, pods=1, router_args=("--address-rest-s", "0"))


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with lab.nodes[0].client() as made:
        yield made


def default_routes(name: str) -> list[str]:
    return netns.run(path(name), ["ip", "route", "show", "default"]).stdout.split()


def test_a_namespace_made_anew_gets_its_interface(lab: Lab, client: Client) -> None:
    """The router's fd keeps the old one alive, so that nothing but its identity tells them apart."""
    with namespaces(lab.plan.pod_netns("anew"), 1) as (name,):
        client.attach(name, "eth0", path(name))
        netns.delete(name)
        netns.create(name, plan.POD_SYSCTLS)
        found = client.attach(name, "eth0", path(name))
        assert interfaces(name) == ["eth0"]
        address = found.addresses[0].partition("/")[0]
        assert lab.pods[0].run(["ping", "-c1", "-W2", address]).returncode == 0
        assert client.detach(name, "eth0")


def test_the_nodes_own_namespace_is_refused(lab: Lab, client: Client) -> None:
    node = lab.nodes[0]
    before = node.run(["ip", "route"]).stdout
    with pytest.raises(ClientError) as caught:
        client.attach("host", "eth9", str(node.netns_path))
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "own namespace" in caught.value.message
    assert node.run(["ip", "route"]).stdout == before


def test_a_second_interface_takes_nothing_from_the_first(lab: Lab, client: Client) -> None:
    with namespaces(lab.plan.pod_netns("two"), 1) as (name,):
        first = client.attach(name, "eth0", path(name))
        before = default_routes(name)
        assert before[:5:4] == ["default", "eth0"]
        client.attach(name, "net1", path(name))
        assert default_routes(name) == before
        address = first.addresses[0].partition("/")[0]
        assert lab.pods[0].run(["ping", "-c1", "-W2", address]).returncode == 0
        assert client.detach(name, "net1")
        assert lab.pods[0].run(["ping", "-c1", "-W2", address]).returncode == 0
        assert client.detach(name, "eth0")


def test_masquerading_ends_when_it_is_switched_off(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1, pods=0)
    node = lab.nodes[0]
    assert "masquerade" in node.run(["nft", "list", "ruleset"]).stdout
    node.stop()
    config = node.state_dir.parent / "router.toml"
    config.write_text("masquerade = false\n")
    node.router_args = (*node.router_args, "--config", str(config))
    node.start()
    assert "masquerade" not in node.run(["nft", "list", "ruleset"]).stdout
