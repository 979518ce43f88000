"""podman 4 with its CNI back end: containers, Pods and published ports on the router's network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import ip_interface
from pathlib import Path

import pytest

from shim.lab import Lab
from tests.conformance import images, network, parts, who
from tests.conformance.podman import Podman, PodmanFailed
from tests.conformance.remnants import Census
from tests.conftest import LabMaker

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


@pytest.fixture
def lab(make_lab: LabMaker) -> Lab:
    return make_lab(nodes=2, pods=0, outside=True)


@pytest.fixture
def podman(lab: Lab, image: Path) -> Iterator[Podman]:
    node = lab.nodes[0]
    try:
        made = Podman(node, network.podwire(node.socket), image)
    except parts.MissingPart as missing:
        pytest.skip(str(missing))
    with made:
        yield made


def in_container(podman: Podman, container: str) -> who.Run:
    def run(command: Sequence[str]) -> tuple[int, str]:
        try:
            return 0, podman.run("exec", container, *command)
        except PodmanFailed as failed:
            return 1, str(failed)

    return run


def addresses(lab: Lab, sandbox: str) -> list[who.Address]:
    with lab.nodes[0].client() as client:
        [found] = [each for each in client.attachments() if each.key.sandbox_id == sandbox]
    return [ip_interface(address).ip for address in found.addresses]


def test_containers_reach_each_other_with_their_own_addresses(lab: Lab, podman: Podman) -> None:
    census = Census(lab.nodes)
    server = podman.run("run", "-d", "--network", "podwire", images.NAME)
    podman.run("exec", "-d", server, *images.SERVE)
    who.wait_listening(in_container(podman, server))
    client = podman.run("run", "-d", "--network", "podwire", images.NAME)
    seen = json.loads(podman.run("inspect", client))[0]["NetworkSettings"]["Networks"]["podwire"]
    own = addresses(lab, client)
    assert [seen["IPAddress"], seen["GlobalIPv6Address"]] == [str(address) for address in own]
    for address, other in zip(own, addresses(lab, server), strict=True):
        assert who.ask(in_container(podman, client), other) == address
        assert who.ask(who.inside(lab.nodes[1].netns_path), other) in lab.nodes[1].addresses
    podman.run("rm", "-f", "-t", "0", client, server)
    census.assert_nothing_left()


def test_a_pod_shares_one_attachment(lab: Lab, podman: Podman) -> None:
    census = Census(lab.nodes)
    podman.run("pod", "create", "--network", "podwire", "--name", "pair")
    server = podman.run("run", "-d", "--pod", "pair", "--entrypoint", json.dumps(images.SERVE), images.NAME)
    client = podman.run("run", "-d", "--pod", "pair", images.NAME)
    who.wait_listening(in_container(podman, server))
    with lab.nodes[0].client() as router:
        [attachment] = [each for each in router.attachments() if each.key.sandbox_id]
    for text in attachment.addresses:
        own = ip_interface(text).ip
        assert who.ask(in_container(podman, client), own) == own
        assert who.ask(who.inside(lab.nodes[1].netns_path), own) in lab.nodes[1].addresses
    assert json.loads(podman.run("inspect", server))[0]["State"]["Running"]
    podman.run("pod", "rm", "-f", "-t", "0", "pair")
    census.assert_nothing_left()


def test_a_published_port_is_reached_from_outside(lab: Lab, podman: Podman) -> None:
    census = Census(lab.nodes)
    server = podman.run("run", "-d", "--network", "podwire", "-p", "18081:8080", images.NAME)
    podman.run("exec", "-d", server, *images.SERVE)
    who.wait_listening(in_container(podman, server))
    outside = who.inside(Path(lab.outside_path))
    for version, interface in enumerate(lab.nodes[0].plan.underlay):
        assert who.ask(outside, interface.ip, 18081) == lab.plan.gateway[version].ip
    podman.run("rm", "-f", "-t", "0", server)
    census.assert_nothing_left()
