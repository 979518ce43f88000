"""The CNI plugin: every verb, version, error code and capability, run as a runtime runs it against a real router."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from shim import launchers
from shim.answers import Attachment, Limits, PortMapping
from shim.client import ClientError
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.accounts import eventually, mended
from tests.conformance.cni_rig import CLIENTS, STOCK, Plugin, Said, Sandbox, chain, executable_of
from tests.crowd import interfaces, namespaces, path

pytestmark = pytest.mark.netns

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
HEAVY = frozenset("grpc google typing enum re dataclasses json json.decoder socket subprocess click pathlib".split())


@pytest.fixture(scope="module", params=CLIENTS)
def executable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of the two: whatever one does, the other does too."""
    return executable_of(request.param, tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def python_executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return executable_of("python", tmp_path_factory.mktemp("bin"))


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with mended(make_lab(nodes=2, pods=1, outside=True, router_args=("--address-rest-s", "0"))) as made:
        yield made


@pytest.fixture
def node(lab: Lab) -> LabNode:
    return lab.nodes[0]


@pytest.fixture
def plugin(node: LabNode, executable: Path) -> Plugin:
    config = {"cniVersion": "1.0.0", "name": "net", "type": "podwire-cni", "socket": str(node.socket)}
    return Plugin(executable, node, config)


@pytest.fixture
def sandboxes(lab: Lab, plugin: Plugin) -> Iterator[list[Sandbox]]:
    """Namespaces with nothing in them yet; whatever a test attached is gone afterwards, and nothing else."""
    before = attachments(plugin.node)
    with namespaces(lab.plan.pod_netns("cni"), 3) as names:
        made = [Sandbox(f"sandbox-{name}", path(name)) for name in names]
        yield made
        if plugin.node.pid is None:
            plugin.node.start()
        for each in made:
            for if_name in ("eth0", "net1"):
                plugin.run("DEL", Sandbox(each.container_id, each.netns_path, if_name).environment)
        assert attachments(plugin.node) == before


def attachments(node: LabNode) -> dict[str, Attachment]:
    with node.client() as client:
        return {str(each.key): each for each in client.attachments()}


def error(said: Said, code: int, *words: str) -> str:
    assert said.status == 1, said
    assert said.answer["code"] == code, said
    message = said.answer["msg"]
    for word in words:
        assert word in message, said
    assert "\n" not in message
    return str(message)


def added(plugin: Plugin, sandbox: Sandbox, **config: Any) -> dict[str, Any]:
    said = plugin.run("ADD", sandbox.environment, config)
    assert (said.status, said.stderr) == (0, ""), said
    assert isinstance(said.answer, dict)
    return said.answer


def reaches(source: Path, address: str) -> bool:
    return netns.run(source, ["ping", "-n", "-c1", "-W3", address]).returncode == 0


# ADD


@pytest.mark.parametrize("version", VERSIONS)
def test_add_answers_in_the_version_asked(lab: Lab, plugin: Plugin, sandboxes: list[Sandbox], version: str) -> None:
    sandbox = sandboxes[0]
    found = added(plugin, sandbox, cniVersion=version)
    held = attachments(plugin.node)[f"{sandbox.container_id}/eth0"]
    assert (held.owner, held.netns_path) == ("cni:net", sandbox.netns_path)
    (interface,) = found["interfaces"]
    assert re.fullmatch(r"02(:[0-9a-f]{2}){5}", interface.pop("mac"))
    assert interface.pop("mtu", None) == (1452 if version == "1.1.0" else None)
    assert interface == {"name": "eth0", "sandbox": sandbox.netns_path}
    assert found["cniVersion"] == version
    own = [text.partition("/")[0] for text in held.addresses]
    assert [each["address"] for each in found["ips"]] == [f"{own[0]}/32", f"{own[1]}/128"]
    assert [each["gateway"] for each in found["ips"]] == ["10.42.1.1", "fd42:0:0:1::1"]
    assert [each.get("version") for each in found["ips"]] == (["4", "6"] if version < "1" else [None, None])
    assert {each["interface"] for each in found["ips"]} == {0}
    assert [each["dst"] for each in found["routes"]] == ["0.0.0.0/0", "::/0"]
    for address in own:
        assert reaches(lab.pods[1].netns_path, address)
    listed = netns.run(Path(sandbox.netns_path), ["ip", "-o", "addr", "show", "dev", "eth0"]).stdout
    assert {each["address"] for each in found["ips"]} <= set(listed.split())
    again = added(plugin, sandbox, cniVersion=version)
    assert again["ips"] == found["ips"], "the same request again"


def test_add_takes_labels_from_kubernetes(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    first = sandboxes[0]
    arguments = (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=12-34;K8S_POD_INFRA_CONTAINER_ID=x"
    )
    sandbox = Sandbox(first.container_id, first.netns_path, "eth0", arguments)
    added(plugin, sandbox, args={"cni": {"labels": [{"key": "tier", "value": "front"}]}})
    held = attachments(plugin.node)[f"{sandbox.container_id}/eth0"]
    assert held.labels == {"namespace": "shop", "name": "web-0", "uid": "12-34", "tier": "front"}


@pytest.mark.parametrize("way", ["runtimeConfig", "args", "CNI_ARGS"])
def test_addresses_can_be_asked_for(plugin: Plugin, sandboxes: list[Sandbox], way: str) -> None:
    sandbox, wanted = sandboxes[0], ["10.42.1.99/24", "fd42:0:0:1::99"]
    config: dict[str, Any] = {}
    if way == "CNI_ARGS":
        sandbox = Sandbox(sandbox.container_id, sandbox.netns_path, "eth0", "IgnoreUnknown=1;IP=" + ",".join(wanted))
    else:
        config = {"runtimeConfig": {"ips": wanted}} if way == "runtimeConfig" else {"args": {"cni": {"ips": wanted}}}
    found = added(plugin, sandbox, **config)
    assert [each["address"] for each in found["ips"]] == ["10.42.1.99/32", "fd42:0:0:1::99/128"]
    taken = plugin.run("ADD", sandboxes[1].environment, {"runtimeConfig": {"ips": ["10.42.1.99"]}})
    error(taken, 100, "10.42.1.99", sandbox.container_id)
    assert interfaces(Path(sandboxes[1].netns_path).name) == []


def test_mac_dns_and_mtu(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    dns = {"servers": ["10.42.1.53"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]}
    found = added(plugin, sandboxes[0], mtu=1400, runtimeConfig={"mac": "0A:00:00:00:00:07", "dns": dns})
    assert found["interfaces"][0]["mac"] == "0a:00:00:00:00:07"
    assert found["dns"] == {"nameservers": ["10.42.1.53"], "search": ["svc.cluster.local"], "options": ["ndots:5"]}
    assert attachments(plugin.node)[f"{sandboxes[0].container_id}/eth0"].mtu_bytes == 1400
    first, second = (added(plugin, each)["interfaces"][0]["mac"] for each in sandboxes[1:])
    assert first != second


def test_ports_and_limits_are_the_routers(lab: Lab, plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    """The capabilities that no stock plugin serves a TUN: as containerd writes them, and as podman does."""
    first, second, third = sandboxes
    asked = {
        "portMappings": [
            {"hostPort": 18080, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
            {"HostPort": 18081, "ContainerPort": 81, "Protocol": "UDP", "HostIP": lab.nodes[0].endpoint},
            {"hostPort": 0, "containerPort": 9090, "protocol": "tcp"},
        ],
        "bandwidth": {
            "ingressRate": 8_000_000,
            "ingressBurst": 1_600_000,
            "egressRate": 4_000_000,
            "egressBurst": 800_000,
        },
    }
    found = added(plugin, first, runtimeConfig=asked)
    held = attachments(plugin.node)[f"{first.container_id}/eth0"]
    assert held.ports == (PortMapping(18080, 80, "tcp"), PortMapping(18081, 81, "udp", lab.nodes[0].endpoint))
    assert held.limits == Limits(8_000_000, 1_600_000, 4_000_000, 800_000)
    own = found["ips"][0]["address"].partition("/")[0]
    assert served(lab, Path(first.netns_path), own, 80, 18080)
    assert plugin.run("CHECK", first.environment, {"runtimeConfig": asked, "prevResult": found}) == Said(0, None, "")
    error(plugin.run("ADD", second.environment, {"runtimeConfig": asked}), 100, "18080", first.container_id)
    assert interfaces(Path(second.netns_path).name) == []
    added(plugin, third, runtimeConfig={"portMappings": [], "bandwidth": {}})
    assert attachments(plugin.node)[f"{third.container_id}/eth0"].ports == ()
    assert plugin.run("DEL", first.environment, {"runtimeConfig": asked}) == Said(0, None, "")
    assert "18080" not in plugin.node.run(["nft", "list", "ruleset"]).stdout
    again = added(plugin, second, runtimeConfig=asked)
    own = again["ips"][0]["address"].partition("/")[0]
    assert served(lab, Path(second.netns_path), own, 80, 18080)


def test_a_second_interface(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    sandbox = sandboxes[0]
    added(plugin, sandbox)
    second = Sandbox(sandbox.container_id, sandbox.netns_path, "net1")
    found = added(plugin, second)
    assert found["interfaces"][0]["name"] == "net1"
    assert interfaces(Path(sandbox.netns_path).name) == ["eth0", "net1"]


def test_an_interface_of_that_name_is_left_alone(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    inside = Path(sandboxes[0].netns_path)
    assert netns.run(inside, ["ip", "tuntap", "add", "eth0", "mode", "tap"]).returncode == 0
    error(plugin.run("ADD", sandboxes[0].environment), 100, "eth0", "there already")
    assert interfaces(inside.name) == ["eth0"]
    assert f"{sandboxes[0].container_id}/eth0" not in attachments(plugin.node)


# DEL


def test_three_deletes_and_no_namespace(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    """Stop, Stop, Remove of a runtime: with namespace and result, then twice with neither."""
    sandbox = sandboxes[0]
    previous = added(plugin, sandbox)
    for environment, config in (
        (sandbox.environment, {"prevResult": previous}),
        (sandbox.without_netns, {"prevResult": previous}),
        ({name: value for name, value in sandbox.environment.items() if name != "CNI_NETNS"}, {}),
    ):
        said = plugin.run("DEL", environment, config)
        assert said == Said(0, None, "")
        assert interfaces(Path(sandbox.netns_path).name) == []
        assert f"{sandbox.container_id}/eth0" not in attachments(plugin.node)


def test_a_delete_without_its_namespace_frees_the_address(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    wanted = {"runtimeConfig": {"ips": ["10.42.1.77"]}}
    added(plugin, sandboxes[0], **wanted)
    netns.delete(Path(sandboxes[0].netns_path).name)
    assert plugin.run("DEL", sandboxes[0].without_netns).status == 0
    added(plugin, sandboxes[1], **wanted)


def test_a_delete_does_not_fail_by_what_only_add_uses(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    added(plugin, sandboxes[0])
    nonsense = {"mtu": "huge", "ipam": {"type": "x"}, "runtimeConfig": {"portMappings": 7}, "prevResult": "?"}
    assert plugin.run("DEL", sandboxes[0].environment, nonsense) == Said(0, None, "")
    assert f"{sandboxes[0].container_id}/eth0" not in attachments(plugin.node)


def test_deletes_find_no_router_and_are_done_by_the_next(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    node = plugin.node
    for each in sandboxes:
        added(plugin, each)
    node.kill9()
    for each in sandboxes:
        assert plugin.run("DEL", each.without_netns) == Said(0, None, "")
    tombstones = node.socket.parent / "tombstones"
    assert len(list(tombstones.glob("*.json"))) == 3
    assert tombstones.stat().st_mode & 0o777 == 0o700
    node.start()
    assert list(tombstones.iterdir()) == []
    assert not {f"{each.container_id}/eth0" for each in sandboxes} & set(attachments(node))
    assert [interfaces(Path(each.netns_path).name) for each in sandboxes] == [[], [], []]


def test_a_late_add_loses_against_its_delete(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    """A runtime is killed in ADD, its successor deletes, and the orphan comes to its router only then."""
    sandbox, node = sandboxes[0], plugin.node
    node.kill9()
    with ThreadPoolExecutor() as pool:
        orphan = pool.submit(plugin.run, "ADD", sandbox.environment, {"wait_s": 30})
        name = plugin.executable.name
        eventually(lambda: waiting(running(name, sandbox.container_id)), what="an orphan that found no router yet")
        assert plugin.run("DEL", sandbox.without_netns) == Said(0, None, "")
        node.start()
        error(orphan.result(), 102, "detached")
    assert interfaces(Path(sandbox.netns_path).name) == []
    added(plugin, sandbox)


def waiting(processes: list[str]) -> bool:
    """Tell whether one of them sleeps: between two tries, so its time counts already."""
    for process in processes:
        try:
            if (Path("/proc") / process / "wchan").read_text() == "hrtimer_nanosleep":
                return True
        except OSError:
            continue
    return False


def running(name: str, container_id: str) -> list[str]:
    """Return the processes of an executable that work for a container."""
    found = []
    for entry in Path("/proc").glob("[1-9]*"):
        try:
            command, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if name.encode() in command and container_id.encode() in environ:
            found.append(entry.name)
    return found


def test_an_add_waits_for_a_router_that_restarts(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    node = plugin.node
    node.kill9()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(plugin.run, "ADD", sandboxes[0].environment, {"wait_s": 30})
        node.start()
        assert waiting.result().status == 0


# CHECK


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_check(plugin: Plugin, sandboxes: list[Sandbox], version: str) -> None:
    sandbox = sandboxes[0]
    config: dict[str, Any] = {"cniVersion": version}
    config["prevResult"] = added(plugin, sandbox, **config)

    def check(**changed: Any) -> Said:
        return plugin.run("CHECK", sandbox.environment, config | changed)

    assert check() == Said(0, None, "")
    lied = json.loads(json.dumps(config["prevResult"]))
    lied["ips"][0]["address"] = "10.42.1.200/32"
    error(check(prevResult=lied), 103, "10.42.1.200")
    lied = json.loads(json.dumps(config["prevResult"]))
    lied["interfaces"][0]["name"] = "eth7"
    error(check(prevResult=lied), 7, "eth0")
    inside = Path(sandbox.netns_path)
    netns.run(inside, ["ip", "route", "del", "default"])
    error(check(), 103, "route to 0.0.0.0/0")
    netns.run(inside, ["ip", "addr", "flush", "dev", "eth0"])
    error(check(), 103, "address")
    netns.run(inside, ["ip", "link", "del", "eth0"])
    error(check(), 103, "interface eth0")
    plugin.run("DEL", sandbox.environment, config)
    error(check(), 3, "not attached")
    plugin.node.stop()
    error(check(), 11, "cannot reach the router")


# STATUS


def test_status_is_ready(plugin: Plugin) -> None:
    assert plugin.run("STATUS", {}, {"cniVersion": "1.1.0"}) == Said(0, None, "")


def test_status_says_when_addresses_are_exhausted(make_lab: Callable[..., Lab], executable: Path) -> None:
    lab = make_lab(nodes=1, pods=0, router_args=("--address-rest-s", "0"))
    node = lab.nodes[0]
    lab.write_subnets({node.name: (node.endpoint, ["10.42.1.0/30", "fd42:0:0:1::/64"])})
    config = {"cniVersion": "1.1.0", "name": "net", "type": "podwire-cni", "socket": str(node.socket)}
    plugin = Plugin(executable, node, config)
    with node.client() as client, namespaces(lab.plan.pod_netns("full"), 2) as names:
        eventually(lambda: "10.42.1.0/30" in client.status().subnets, what="the small subnet")
        assert plugin.run("STATUS", {}).status == 0
        added(plugin, Sandbox("one", path(names[0])))
        error(plugin.run("STATUS", {}), 50, "no address is free in 10.42.1.0/30")
        error(plugin.run("ADD", Sandbox("two", path(names[1])).environment), 101, "10.42.1.0/30")
        plugin.run("DEL", Sandbox("one", path(names[0])).environment)
        client.sync([])


def test_status_says_when_no_peer_can_be_reached(lab: Lab, plugin: Plugin) -> None:
    node = plugin.node
    assert node.run(["ip", "link", "set", "eth0", "down"]).returncode == 0
    try:
        with node.client() as client:
            eventually(lambda: client.status().peers_unreachable == 1, what="the loss")
        error(plugin.run("STATUS", {}, {"cniVersion": "1.1.0"}), 51, "1 of 1 peers", "n2 at", "eth0 is down")
    finally:
        node.run(["ip", "link", "set", "eth0", "up"])
        node.run(["ip", "route", "add", "default", "via", str(lab.plan.gateway[0].ip)])
        with node.client() as client:
            eventually(lambda: client.status().peers_unreachable == 0, what="the way back")


def test_status_says_when_there_is_no_router(plugin: Plugin) -> None:
    plugin.node.stop()
    error(plugin.run("STATUS", {}, {"cniVersion": "1.1.0"}), 50, "podwire router run")


# GC


@pytest.mark.parametrize("word", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_frees_all_but_the_listed_of_its_network(plugin: Plugin, sandboxes: list[Sandbox], word: str) -> None:
    kept, gone, other = sandboxes
    for each in (kept, gone):
        added(plugin, each)
    added(plugin, other, name="another")
    listed = [{"containerID": kept.container_id, "ifname": "eth0"}, {"containerID": "unknown", "ifname": "eth0"}]
    assert plugin.run("GC", {}, {"cniVersion": "1.1.0", word: listed}) == Said(0, None, "")
    left = set(attachments(plugin.node))
    assert {f"{kept.container_id}/eth0", f"{other.container_id}/eth0"} <= left
    assert f"{gone.container_id}/eth0" not in left
    assert interfaces(Path(gone.netns_path).name) == []
    error(plugin.run("GC", {}, {"cniVersion": "1.1.0"}), 7, "valid-attachments")
    assert plugin.run("GC", {}, {"cniVersion": "1.1.0", word: []}).status == 0
    assert f"{other.container_id}/eth0" in attachments(plugin.node)


# VERSION


@pytest.mark.parametrize("asked", [*VERSIONS, "0.2.0", "9.9.9"])
def test_version(plugin: Plugin, asked: str) -> None:
    """As podman asks first, with a namespace that is none."""
    said = plugin.run("VERSION", {"CNI_NETNS": "dummy"}, json.dumps({"cniVersion": asked}).encode())
    assert said.status == 0
    assert said.answer == {
        "cniVersion": asked if asked in VERSIONS else "1.1.0",
        "supportedVersions": list(VERSIONS),
    }


# Errors


def test_versions_that_are_not_spoken(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    environment = sandboxes[0].environment
    for version in ("0.2.0", "2.0.0", ""):
        error(plugin.run("ADD", environment, {"cniVersion": version}), 1, version, "1.1.0")
    error(plugin.run("CHECK", environment, {"cniVersion": "0.3.1"}), 1, "CHECK came with CNI 0.4.0")
    error(plugin.run("STATUS", environment), 1, "STATUS came with CNI 1.1.0")
    error(plugin.run("GC", environment), 1, "GC came with CNI 1.1.0")


@pytest.mark.parametrize("name", ["", "sixteen-letters!", ".", "..", "a/b", "a:b", "a b", "\x07"])
def test_bad_interface_names(plugin: Plugin, sandboxes: list[Sandbox], name: str) -> None:
    for command in ("ADD", "DEL"):
        error(plugin.run(command, sandboxes[0].environment | {"CNI_IFNAME": name}), 4, "CNI_IFNAME")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../etc"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "x" * 300}, "CNI_CONTAINERID"),
        ({"CNI_NETNS": ""}, "CNI_NETNS"),
        ({"CNI_NETNS": "relative"}, "CNI_NETNS"),
        ({"CNI_ARGS": "no equals sign"}, "CNI_ARGS"),
        ({"CNI_ARGS": "K8S_POD_NAME=\udcff"}, "UTF-8"),
        ({"CNI_NETNS": "/run/netns/\udcff"}, "UTF-8"),
    ],
)
def test_bad_environments(plugin: Plugin, sandboxes: list[Sandbox], environment: dict[str, str], words: str) -> None:
    error(plugin.run("ADD", sandboxes[0].environment | environment), 4, words)


def test_an_unknown_verb(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    error(plugin.run("FETCH", sandboxes[0].environment), 4, "FETCH")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_configurations_that_are_none(plugin: Plugin, sandboxes: list[Sandbox], content: bytes) -> None:
    for command in ("ADD", "DEL", "VERSION"):
        error(plugin.run(command, sandboxes[0].environment, content), 6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "two words"}, "name"),
        ({"name": 7}, "name"),
        ({"ipam": {"type": "host-local"}}, "ipam"),
        ({"socket": "relative.sock"}, "socket"),
        ({"socket": ["x"]}, "socket"),
        ({"socket": "/run/a\0b"}, "socket"),
        ({"mtu": -1}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"mtu": 9000}, "mtu_bytes 9000"),
        ({"wait_s": "long"}, "wait_s"),
        ({"prevResult": []}, "prevResult"),
        ({"prevResult": {"interfaces": 5}}, "prevResult.interfaces"),
        ({"prevResult": {"ips": [1]}}, "prevResult.ips"),
        ({"prevResult": {"routes": ["0.0.0.0/0"]}}, "prevResult.routes"),
        ({"prevResult": {"dns": "10.42.1.53"}}, "prevResult.dns"),
        ({"args": {"cni": {"labels": [{"key": "a", "value": "\ud800"}]}}}, "no Unicode"),
        ({"runtimeConfig": 1}, "runtimeConfig"),
        ({"runtimeConfig": {"ips": "10.42.1.9"}}, "ips"),
        ({"runtimeConfig": {"ips": ["10.42.9.9"]}}, "10.42.9.9"),
        ({"runtimeConfig": {"ips": ["not-one"]}}, "not-one"),
        ({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}, "mac"),
        ({"runtimeConfig": {"mac": "nonsense"}}, "mac"),
        ({"runtimeConfig": {"dns": {"servers": "x"}}}, "dns.servers"),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": -5}}}, "ingressRate"),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 1}}}, "egress_bits_per_s"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}, "hostPort"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}}, "protocol"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "here"}]}}, "here"),
    ],
)
def test_configurations_that_cannot_work(
    plugin: Plugin, sandboxes: list[Sandbox], config: dict[str, Any], words: str
) -> None:
    error(plugin.run("ADD", sandboxes[0].environment, config), 7, words)
    assert interfaces(Path(sandboxes[0].netns_path).name) == []


@pytest.mark.parametrize(
    ("capability", "value"), [("ipRanges", [[{"subnet": "10.9.0.0/16"}]]), ("aliases", ["web", "www"])]
)
def test_capabilities_it_does_not_have(
    plugin: Plugin, sandboxes: list[Sandbox], capability: str, value: list[object]
) -> None:
    """Said aloud, and not passed over: an address out of the ranges asked for would be worse than none."""
    config = {"runtimeConfig": {capability: value}}
    error(plugin.run("ADD", sandboxes[0].environment, config), 2, capability, str(value[-1]))
    assert interfaces(Path(sandboxes[0].netns_path).name) == []
    assert plugin.run("DEL", sandboxes[0].environment, config) == Said(0, None, "")
    added(plugin, sandboxes[0], runtimeConfig={capability: []})


@pytest.mark.parametrize("socket", ["relative.sock", "/run/a\0b"])
def test_a_delete_that_leads_to_no_router_leaves_nothing_anywhere(
    plugin: Plugin, sandboxes: list[Sandbox], socket: str
) -> None:
    """A NUL once ended the path early: the tombstone lay where no router looks, and the runtime was told "done"."""
    error(plugin.run("DEL", sandboxes[0].environment, {"socket": socket}), 7, "socket")


@pytest.mark.parametrize("result", [{"interfaces": [1]}, {"ips": 5}, {"routes": [None]}, {"dns": [1]}])
def test_a_check_against_a_result_that_is_none(
    plugin: Plugin, sandboxes: list[Sandbox], result: dict[str, object]
) -> None:
    added(plugin, sandboxes[0])
    error(plugin.run("CHECK", sandboxes[0].environment, {"prevResult": result}), 7, "prevResult")


def test_no_router_says_try_again(plugin: Plugin, sandboxes: list[Sandbox], tmp_path: Path) -> None:
    config = {"socket": str(tmp_path / "none.sock"), "wait_s": 0}
    error(plugin.run("ADD", sandboxes[0].environment, config), 11, "none.sock", "podwire router run")


def test_no_router_and_no_place_for_a_tombstone(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    config = {"socket": "/proc/none/router.sock"}
    error(plugin.run("DEL", sandboxes[0].environment, config), 5, "/proc/none")


def test_a_namespace_that_is_none(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    error(plugin.run("ADD", sandboxes[0].environment | {"CNI_NETNS": "/run/netns/nowhere"}), 7, "nowhere")


def test_run_by_hand_it_explains_itself(executable: Path) -> None:
    done = subprocess.run([executable], capture_output=True, text=True, timeout=60, check=False, env={})
    assert (done.returncode, done.stdout) == (1, "")
    assert "CNI_COMMAND" in done.stderr
    done = subprocess.run([executable, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0


def test_what_it_imports_is_little() -> None:
    """Its start is most of its time: neither gRPC nor what costs as much may come back."""
    code = f"import sys; sys.path.insert(0, {str(launchers.package_parent())!r}); import shim.cni.main; print(*sys.modules)"
    done = subprocess.run(
        [launchers.interpreter(), "-IS", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) & HEAVY == set()
    assert "shim.lean.call" in done.stdout.split()


def test_what_a_delete_imports_is_little(node: LabNode, python_executable: Path) -> None:
    """Nor may a whole DEL import it on its way, its configuration read and the router asked."""
    config = json.dumps({"cniVersion": "1.0.0", "name": "net", "socket": str(node.socket)}).encode()
    command = [launchers.interpreter(), "-X", "importtime", "-IS", str(python_executable)]
    environ = {"CNI_COMMAND": "DEL", **Sandbox("none", "").environment}
    done = netns.run(node.netns_path, command, input=config, env=environ, text=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert {"shim.lean.call", "_socket"} <= imported
    assert imported & HEAVY == set()


# Chains with the stock plugins


def stock(node: LabNode, name: str) -> Plugin:
    return Plugin(STOCK / name, node, {"cniVersion": "1.0.0", "name": "net", "type": name})


def test_a_chain_with_plugins_before_and_after(lab: Lab, plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    sandbox, node = sandboxes[0], plugin.node
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8181, "containerPort": 80, "protocol": "tcp"}]}}
    plugins = [
        (stock(node, "loopback"), {}),
        (plugin, {}),
        (stock(node, "tuning"), {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
        (stock(node, "portmap"), ports),
    ]
    found = chain(plugins, "ADD", sandbox)
    assert [each["name"] for each in found["interfaces"]] == ["lo", "eth0"]
    own = [each for each in found["ips"] if each["interface"] == 1]
    assert len(own) == 2
    said = plugin.run("CHECK", sandbox.environment, {"prevResult": found})
    assert said == Said(0, None, "")
    inside = Path(sandbox.netns_path)
    assert netns.run(inside, ["sysctl", "-n", "net.ipv4.conf.eth0.arp_filter"]).stdout.strip() == "1"
    assert served(lab, inside, str(ip_address(own[0]["address"].partition("/")[0])), 80, 8181)
    chain(plugins[1:], "DEL", sandbox, found)
    assert "8181" not in node.run(["iptables-save"]).stdout


def served(lab: Lab, inside: Path, address: str, port: int, host_port: int) -> bool:
    """Tell whether who asks the node's port from outside is answered from the Pod's."""
    with ExitStack() as closing:
        code = (
            "import socket,sys; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); print(flush=True)\n"
            "c, _ = s.accept(); c.sendall(b'served'); c.close()"
        )
        server = netns.popen(inside, [sys.executable, "-c", code, address, str(port)], stdout=subprocess.PIPE)
        closing.callback(server.wait)
        closing.callback(server.kill)
        assert server.stdout is not None
        closing.callback(server.stdout.close)
        server.stdout.readline()
        ask = "import socket,sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(9).decode())"
        where = [sys.executable, "-c", ask, lab.nodes[0].endpoint, str(host_port)]
        return netns.run(Path(lab.outside_path), where).stdout.strip() == "served"


def test_nobody_else_may_detach_by_network_name(plugin: Plugin, sandboxes: list[Sandbox]) -> None:
    """A name does not lead to another network's attachments, but the key does: the runtime owns its ids."""
    added(plugin, sandboxes[0], name="one")
    with plugin.node.client() as client, pytest.raises(ClientError):
        client.attach(sandboxes[0].container_id, "eth0", sandboxes[1].netns_path)
