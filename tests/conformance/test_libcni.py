"""libcni itself, as CRI-O and nerdctl use it, with our plugin before Debian's portmap and tuning in one chain."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.conformance import network, parts, who
from tests.conformance.cni_rig import CLIENTS, need
from tests.conformance.remnants import Census
from tests.conftest import LabMaker

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Driver:
    """The Go driver, for one sandbox on one node."""

    node: LabNode
    directory: Path
    sandbox: str
    netns: str

    def drive(self, verb: str, path: str = "", capabilities: dict[str, Any] | None = None) -> Any:
        """Run a verb; return the result, or raise AssertionError with what it said."""
        [conflist] = (self.directory / "net.d").iterdir()
        words = [str(conflist), str(self.directory / "bin"), str(self.directory / "cache"), self.sandbox, path, "eth0"]
        done = self.node.run(
            [str(parts.DRIVER), verb, *words, json.dumps(capabilities or {})],
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            timeout=60,
        )
        assert done.returncode == 0, f"{verb}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout else None

    @property
    def path(self) -> str:
        return str(netns.path_of(self.netns))


@contextmanager
def serving(driver: Driver, web: Path) -> Iterator[None]:
    """Run the image's web server in the sandbox, from files of its own."""
    (web / "cgi-bin").mkdir(parents=True)
    script = web / "cgi-bin/who"
    script.write_text('#!/bin/sh\necho\necho "$REMOTE_ADDR"\n')
    script.chmod(0o755)
    server = netns.popen(Path(driver.path), ["busybox", "httpd", "-f", "-p", str(who.PORT), "-h", str(web)])
    try:
        who.wait_listening(who.inside(Path(driver.path)))
        yield
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def lab(make_lab: LabMaker) -> Lab:
    return make_lab(nodes=2, pods=0, outside=True)


@pytest.fixture(params=CLIENTS)
def driver(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Driver]:
    if not parts.DRIVER.exists():
        pytest.skip("no libcni driver here: scripts/conformance-setup.sh has not run")
    node = lab.nodes[0]
    # The stock portmap serves the ports here, so ours is not to be asked for them.
    ours = {"type": "podwire-cni", "socket": str(node.socket)}
    chain = (
        ours,
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "tuning", "sysctl": {"net.ipv4.ip_unprivileged_port_start": "7"}},
    )
    need(request.param)
    network.write_programs(tmp_path / "bin", request.param)
    network.Network("chain", chain).write(tmp_path / "net.d")
    name = f"{lab.name}-cni"
    netns.create(name)
    try:
        yield Driver(node, tmp_path, f"libcni-{secrets.token_hex(4)}", name)
    finally:
        netns.delete(name)


def test_a_chain_is_added_checked_and_deleted_three_times(lab: Lab, driver: Driver, tmp_path: Path) -> None:
    census = Census(lab.nodes)
    ports = {"portMappings": [{"hostPort": 18082, "containerPort": who.PORT, "protocol": "tcp"}]}
    result = driver.drive("add", driver.path, ports)
    own = [ip_interface(entry["address"]).ip for entry in result["ips"]]
    assert sorted(address.version for address in own) == [4, 6]
    # Without the ports: portmap 1.1.1 looks for its IPv4 rules among the IPv6 ones, behind the stock bridge too.
    driver.drive("check", driver.path)
    sysctl = netns.run(Path(driver.path), ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"])
    assert sysctl.stdout.strip() == "7"
    with serving(driver, tmp_path / "www"):
        for address in own:
            assert who.ask(who.inside(lab.nodes[1].netns_path), address) in lab.nodes[1].addresses
        outside = who.inside(Path(lab.outside_path))
        assert who.ask(outside, driver.node.plan.underlay[0].ip, 18082) == lab.plan.gateway[0].ip
    driver.drive("del", driver.path, ports)
    driver.drive("del", "", ports)
    driver.drive("del", "", ports)
    assert "eth0" not in netns.run(Path(driver.path), ["ip", "-o", "link"]).stdout
    # The stock portmap keeps its empty chains, so rules are not compared: only what is ours.
    left = {sort: things for sort, things in census.new().items() if "rules" not in sort}
    assert not left


def test_check_finds_an_address_that_somebody_took_away(driver: Driver) -> None:
    result = driver.drive("add", driver.path)
    driver.drive("check", driver.path)
    netns.run(Path(driver.path), ["ip", "addr", "del", result["ips"][0]["address"], "dev", "eth0"], check=True)
    with pytest.raises(AssertionError, match="check:.*address"):
        driver.drive("check", driver.path)
    driver.drive("del", driver.path)
