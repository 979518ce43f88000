"""`podwire doctor` as people run it: each fault is planted, and must be named with how to mend it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from router.control.server import serve
from router.model import AttachmentKey, Endpoint
from router.status import AttachRequest, Status
from shim import launchers
from shim.doctor import examination, leftovers
from shim.doctor.site import Site, ask
from shim.install.root import Root
from shim.lab import Lab, netns
from tests.conftest import LabMaker
from tests.control_daemon import MemoryDaemon

ROOT = Path(__file__).resolve().parents[2]
CONFLIST = "/etc/cni/net.d/10-podwire.conflist"


@dataclass(frozen=True)
class Examined:
    """What the doctor said."""

    findings: list[dict[str, str]]
    status: int
    text: str

    def one(self, check: str, words: str) -> dict[str, str]:
        """Return the finding of a check with these words in it; it must be not well, and say what to do."""
        found = [each for each in self.findings if each["check"] == check and words in each["what"]]
        assert len(found) == 1, (check, words, self.findings)
        assert found[0]["verdict"] != "ok"
        assert found[0]["remedy"]
        return found[0]

    def well(self, check: str) -> None:
        """Fail unless that check found something, and all of it well."""
        found = [each for each in self.findings if each["check"] == check]
        assert found, (check, self.findings)
        assert {each["verdict"] for each in found} == {"ok"}, found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "router", "doctor", *arguments]


def read(done: subprocess.CompletedProcess[str]) -> Examined:
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    for each in document["findings"]:
        assert "broke down" not in each["what"], each
        assert bool(each["remedy"]) is (each["verdict"] != "ok"), each
    assert done.returncode == (1 if document["verdict"] == "fail" else 0)
    return Examined(document["findings"], done.returncode, done.stdout)


def examine(*arguments: str, before: Sequence[str] = (), **environment: str) -> Examined:
    environ = {**os.environ, **environment}
    done = subprocess.run(
        [*before, *command(*arguments, "--json")], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    return read(done)


class Tree:
    """A directory that stands for a node's files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def at(self, path: str) -> Path:
        return self.directory / path.lstrip("/")

    def put(self, path: str, content: str = "", mode: int = 0o644) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(content)
        self.at(path).chmod(mode)

    def examine(self, *arguments: str) -> Examined:
        return examine("--root", str(self.directory), *arguments)


@pytest.fixture
def tree() -> Iterator[Tree]:
    with tempfile.TemporaryDirectory(prefix="node") as short:  # a socket in it may have a path of 107 bytes
        yield Tree(Path(short))


@pytest.fixture
def installed(tree: Tree) -> Tree:
    """A node with containerd and podman, and Podwire installed for both."""
    for program in ("usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/podman", "opt/cni/bin/loopback"):
        tree.put(program, "", 0o755)
    tree.put("/etc/containerd/config.toml", "version = 2\n")
    arguments = ["install", "--yes", "--root", str(tree.directory)]
    subprocess.run([sys.executable, "-m", "router", *arguments], cwd=ROOT, capture_output=True, timeout=60, check=True)
    return tree


class Told(MemoryDaemon):
    """A daemon whose status is what a test wants it to be."""

    def __init__(self) -> None:
        super().__init__()
        self.change: Callable[[Status], Status] = lambda status: status

    def status(self) -> Status:
        healthy = replace(super().status(), notes=(), table_error="", peers_unreachable=0, unreachable=())
        return self.change(healthy)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    daemon = Told()
    server = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    server.start()
    yield daemon
    server.stop(0)


@pytest.fixture
def asked(told: Told, tree: Tree, tmp_path: Path) -> Callable[..., Examined]:
    return lambda *arguments: tree.examine("--socket", str(tmp_path / "router.sock"), *arguments)


# The kernel.


def test_missing_rights_are_named() -> None:
    found = examine(before=["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"])
    assert "lacks CAP_NET_ADMIN" in found.one("rights", "CAP_NET_ADMIN")["what"]
    assert "as root" in found.one("tun", "Operation not permitted")["remedy"]
    assert "rmem_max" in found.one("receive buffer", "bursts are lost")["remedy"]


def test_this_machine_can_carry_a_router() -> None:
    found = examine()
    for check in ("rights", "tun", "nftables", "offloads", "receive buffer", "clock"):
        found.well(check)


def test_a_missing_tun_device_is_named(tree: Tree) -> None:
    tree.at("/dev").mkdir()
    assert "modprobe tun" in tree.examine().one("tun", "/dev/net/tun: No such file")["remedy"]


def test_a_tun_device_that_is_none_is_named(tree: Tree) -> None:
    tree.put("/dev/net/tun")
    tree.examine().one("tun", "no TUN device can be made")


def test_missing_nftables_is_named(tmp_path: Path) -> None:
    assert "install nftables" in examine(PATH=str(tmp_path)).one("nftables", "nft is not installed")["remedy"]


def test_nftables_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\necho 'Operation not supported' >&2\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "modprobe nf_tables" in examine(PATH=path).one("nftables", "nft fails: Operation not supported")["remedy"]


def test_an_old_kernel_is_named(tree: Tree) -> None:
    tree.put("/proc/sys/kernel/osrelease", "5.15.0-91-generic\n")
    assert "Linux 6.2" in tree.examine().one("offloads", "5.15.0-91-generic has no UDP super-packets")["remedy"]


# What the router says.


def test_a_router_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = examine("--socket", str(tmp_path / "router.sock"))
    assert "podwire router run" in found.one("router", "cannot reach the router")["remedy"]
    assert found.status == 1


def test_a_router_that_says_nothing_is_named_with_its_pid(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(str(tmp_path / "router.sock"))
        silent.listen(16)
        found = examine("--socket", str(tmp_path / "router.sock"))
    assert "restart it" in found.one("router", f"process {os.getpid()} listens at")["remedy"]


def test_a_healthy_router_is_well(asked: Callable[..., Examined]) -> None:
    found = asked()
    for check in ("router", "addresses", "subnet table"):
        found.well(check)


@pytest.mark.parametrize(
    ("change", "check", "words", "verdict", "remedy"),
    [
        ({"version": "0.0.1"}, "router", "podwire 0.0.1 runs, and", "warn", "restart the router"),
        (
            {"subnets": (), "free_addresses": {}},
            "addresses",
            "node here has no subnet",
            "fail",
            "podwire subnets set",
        ),
        (
            {"free_addresses": {ip_network("10.1.1.0/24"): 0}},
            "addresses",
            "10.1.1.0/24 has no free",
            "fail",
            "podwire pods",
        ),
        (
            {"free_addresses": {ip_network("10.1.1.0/24"): 7}},
            "addresses",
            "has 7 free addresses",
            "warn",
            "another subnet",
        ),
        ({"table_error": "a and b clash"}, "subnet table", "not in force: a and b clash", "warn", "correct it"),
        (
            {"peers": 2, "peers_unreachable": 1, "unreachable": ("x at 192.0.2.7",)},
            "peers",
            "1 of 2",
            "warn",
            "underlay",
        ),
        ({"peers": 2, "peers_unreachable": 2}, "peers", "2 of 2 other nodes cannot", "fail", "underlay"),
        ({"notes": ("attachment p/eth0 lost its device; x",)}, "attachments", "p/eth0 lost", "warn", "podwire detach"),
        ({"notes": ("podwire0 is gone: restart it",)}, "attachments", "podwire0 is gone", "fail", "restart the router"),
        ({"notes": ("tun_uso is off: self-test failed",)}, "offloads", "tun_uso is off", "warn", "newer kernel"),
    ],
)
def test_what_the_router_complains_of_is_named(
    told: Told,
    asked: Callable[..., Examined],
    change: dict[str, Any],
    check: str,
    words: str,
    verdict: str,
    remedy: str,
) -> None:
    told.change = lambda status: replace(status, **change)
    finding = asked().one(check, words)
    assert finding["verdict"] == verdict
    assert remedy in finding["remedy"]


def test_an_underlay_address_that_is_gone_is_named(asked: Callable[..., Examined]) -> None:
    assert "--underlay" in asked().one("mtu", "192.0.2.1 is on no interface of this node")["remedy"]


def test_a_pod_with_a_larger_mtu_is_named(told: Told, asked: Callable[..., Examined]) -> None:
    told.change = lambda status: replace(status, endpoint=Endpoint(ip_address("127.0.0.1")))
    told.attach(AttachRequest(AttachmentKey("old", "eth0"), "/run/netns/old", mtu_bytes=9000))
    assert "anew" in asked().one("mtu", "old/eth0 was attached with an MTU of 9000")["remedy"]


def test_another_time_namespace_is_named(told: Told, tmp_path: Path) -> None:
    found = examine(
        "--socket", str(tmp_path / "router.sock"), before=["unshare", "--time", "--boottime", "500000", "--fork"]
    )
    assert "unshare --time" in found.one("router", "different time namespaces")["remedy"]


# The node's network, in a lab.


@pytest.fixture(scope="module")
def node_lab(make_lab: LabMaker) -> Lab:
    return make_lab(nodes=2, pods=1)


@pytest.fixture
def visit(node_lab: Lab) -> Iterator[Callable[..., Examined]]:
    """Run commands that plant something in the first node, examine it, and run those that take it away at the end."""
    node = node_lab.nodes[0]
    undo: list[str] = []

    def run(lines: Sequence[str]) -> None:
        for line in lines:
            done = node.run(["sh", "-c", line])
            assert done.returncode == 0, (line, done.stderr)

    def work(plant: Sequence[str] = (), mend: Sequence[str] = (), arguments: Sequence[str] = ()) -> Examined:
        undo.extend(mend)
        run(plant)
        return read(node.run(command("--socket", str(node.socket), "--json", *arguments), cwd=ROOT, timeout=60))

    yield work
    run(undo)


@pytest.mark.netns
def test_a_node_of_a_lab_is_well(visit: Callable[..., Examined]) -> None:
    found = visit()
    for check in (
        "router", "addresses", "subnet table", "forwarding", "mtu", "overlap", "return paths",
        "open files", "processes", "tombstones",
    ):  # fmt: skip
        found.well(check)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("check", "words", "remedy", "verdict", "plant", "mend"),
    [
        (
            "forwarding", "IPv4 forwarding is off", "net.ipv4.ip_forward=1", "warn",
            "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1",
        ),
        (
            "forwarding", "IPv6 forwarding is off", "net.ipv6.conf.all.forwarding=1", "warn",
            "sysctl -qw net.ipv6.conf.all.forwarding=0", "sysctl -qw net.ipv6.conf.all.forwarding=1",
        ),
        (
            "mtu", "carries no more than 1352", "ip link set eth0 mtu 1500", "fail",
            "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500",
        ),
        (
            "mtu", "podwire0 has an MTU of 1300", "ip link set podwire0 mtu 1452", "warn",
            "ip link set podwire0 mtu 1300", "ip link set podwire0 mtu 1452",
        ),
        (
            "overlap", "overlaps 10.42.77.0/24 of interface br9", "move br9", "fail",
            "ip link add br9 type bridge && ip link set br9 up && ip addr add 10.42.77.1/24 dev br9", "ip link del br9",
        ),
        (
            "overlap", "the route 10.42.9.0/24 by eth0", "ip route del 10.42.9.0/24 dev eth0", "fail",
            "ip route add 10.42.9.0/24 dev eth0", "ip route del 10.42.9.0/24 dev eth0",
        ),
        (
            "overlap", "the route 10.0.0.0/8 by eth0", "has an address of 10.42.0.0/16", "warn",
            "ip route add 10.0.0.0/8 dev eth0", "ip route del 10.0.0.0/8 dev eth0",
        ),
        (
            "return paths", "eth0 drops what node n2 sends", "rp_filter=2", "fail",
            "ip link add br8 type bridge && ip link set br8 up && ip route add 192.168.64.2/32 dev br8", "ip link del br8",
        ),
    ],
)  # fmt: skip
def test_a_fault_of_the_nodes_network_is_named(
    visit: Callable[..., Examined],
    node_lab: Lab,
    check: str,
    words: str,
    remedy: str,
    verdict: str,
    plant: str,
    mend: str,
) -> None:
    finding = visit([plant], [mend]).one(check, words)
    assert finding["verdict"] == verdict
    assert remedy in finding["remedy"]


@pytest.mark.netns
def test_no_ipv6_on_the_node_is_named(make_lab: LabMaker) -> None:
    """In a lab of its own: switching IPv6 off takes every IPv6 address away."""
    node = make_lab(nodes=1, pods=1).nodes[0]
    plant = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1"
    assert node.run(["sh", "-c", plant]).returncode == 0
    try:
        found = read(node.run(command("--socket", str(node.socket), "--json"), cwd=ROOT, timeout=60))
    finally:
        node.run(["sh", "-c", plant.replace("=1", "=0")])
        node.restart()
    assert "disable_ipv6=0" in found.one("forwarding", "IPv6 is switched off")["remedy"]


@pytest.mark.netns
def test_another_network_in_the_cluster_range_is_named(visit: Callable[..., Examined], tree: Tree) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.42.128.0/20"}]]}
    other = {"name": "other", "plugins": [{"type": "bridge", "ipam": ipam}]}
    tree.put("/etc/cni/net.d/87-other.conflist", json.dumps(other))
    found = visit(arguments=["--root", str(tree.directory)])
    assert "another range" in found.one("overlap", "87-other.conflist gives out addresses of 10.42.128.0/20")["remedy"]


@pytest.mark.netns
def test_a_router_without_egress_needs_no_forwarding(make_lab: LabMaker) -> None:
    node = make_lab(nodes=1, pods=0, router_args=("--no-egress",)).nodes[0]
    assert node.run(["sh", "-c", "sysctl -qw net.ipv4.ip_forward=0"]).returncode == 0
    read(node.run(command("--socket", str(node.socket), "--json"), cwd=ROOT, timeout=60)).well("forwarding")


# What Pods that are gone have left.


@pytest.mark.netns
def test_a_detachment_that_waits_for_the_router_is_named(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=1)
    node = lab.nodes[0]
    node.stop()
    try:
        stones = node.socket.parent / "tombstones"
        stones.mkdir(mode=0o700, exist_ok=True)
        stone = stones / "1.json"
        stone.write_text(json.dumps({"sandbox_id": "gone", "if_name": "eth0", "detached_ns": 1}))
        os.utime(stone, (time.time() - 60,) * 2)
        found = read(node.run(command("--socket", str(node.socket), "--json"), cwd=ROOT, timeout=60))
        assert "start the router" in found.one("tombstones", "1 detachments wait")["remedy"]
    finally:
        node.start()


def test_a_detachment_the_router_leaves_is_named(told: Told, tmp_path: Path) -> None:
    stone = tmp_path / "tombstones/1.json"
    stone.parent.mkdir()
    stone.write_text("{}")
    os.utime(stone, (time.time() - 60,) * 2)
    found = examine("--socket", str(tmp_path / "router.sock"))
    assert "its log" in found.one("tombstones", "does not carry them out")["remedy"]


def test_a_namespace_that_belongs_to_nothing_is_named(told: Told, tree: Tree, asked: Callable[..., Examined]) -> None:
    for name in ("podwire-lost", "podwire-held", "podwire-young", "cni-else"):
        tree.put(f"/run/netns/{name}")
        if name != "podwire-young":
            os.utime(tree.at(f"/run/netns/{name}"), (time.time() - 600,) * 2)
    told.attach(AttachRequest(AttachmentKey("held", "eth0"), "/run/netns/podwire-held"))
    finding = asked().one("namespaces", "1 namespaces of ours")
    assert "/run/netns/podwire-lost" in finding["what"]
    assert "ip netns delete podwire-lost" in finding["remedy"]


@pytest.mark.netns
def test_a_namespace_in_use_is_not_called_lost(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_YOUNG_S", -1)  # nobody can make a namespace look old
    name = f"podwire-test-{os.getpid()}"
    path = str(tmp_path / "router.sock")

    def look() -> str:
        return " ".join(each.what for each in leftovers.namespaces(Site(Root(), path, 1, "", *ask(path))))

    netns.create(name)
    try:
        with netns.popen(netns.path_of(name), ["sleep", "60"]) as inside:
            assert name not in look()
            inside.kill()
        assert name in look()
    finally:
        netns.delete(name)


# Limits and clocks.


def test_too_few_open_files_are_named() -> None:
    found = examine("--pods", "500", before=["prlimit", "--nofile=1000:1000"])
    assert "LimitNOFILE=65536" in found.one("open files", "may open 1000 files, and 500 Pods need about 1064")["remedy"]


@pytest.mark.parametrize(
    ("path", "content", "check", "words", "remedy"),
    [
        ("/proc/sys/kernel/pid_max", "4096", "processes", "4096 processes and threads", "kernel.pid_max=4194304"),
        ("/proc/sys/fs/inotify/max_user_instances", "8", "watches", "8 inotify instances", "max_user_instances=512"),
        ("/proc/sys/kernel/random/boot_id", "", "clock", "no boot id", "boot_id"),
        ("/proc/uptime", "5.00 1.00", "clock", "s apart", "one time namespace"),
    ],
)
def test_a_limit_of_the_kernel_is_named(
    tree: Tree, path: str, content: str, check: str, words: str, remedy: str
) -> None:
    tree.put(path, content)
    assert remedy in tree.examine().one(check, words)["remedy"]


def test_a_clock_that_was_set_back_is_named(tree: Tree) -> None:
    tree.put("/var/lib/podwire/router.db")
    os.utime(tree.at("/var/lib/podwire/router.db"), (time.time() + 7200,) * 2)
    assert "set the clock" in tree.examine().one("clock", "router.db was written 7")["remedy"]


# The runtimes.


def test_a_node_without_runtimes_is_told(tree: Tree) -> None:
    assert "podwire install" in tree.examine().one("runtimes", "neither containerd nor podman")["remedy"]


def test_what_was_installed_is_well(installed: Tree) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        installed.at("/run/containerd").mkdir(parents=True)
        listening.bind(str(installed.at("/run/containerd/containerd.sock")))
        listening.listen()
        found = installed.examine()
    for check in ("containerd", "podman", "installed files"):
        found.well(check)


def test_a_containerd_that_does_not_run_is_named(installed: Tree) -> None:
    finding = installed.examine().one("containerd", "does not answer at /run/containerd/containerd.sock")
    assert "systemctl start containerd" in finding["remedy"]


def test_a_runtime_that_does_not_use_the_router_is_named(installed: Tree) -> None:
    installed.at(CONFLIST).unlink()
    found = installed.examine()
    for runtime in ("containerd", "podman"):
        assert found.one(runtime, "has no network of ours")["remedy"] == f"podwire install {runtime}"
    assert "podwire install" in found.one("installed files", f"{CONFLIST} was installed, and is gone")["remedy"]


def test_a_network_that_is_read_first_is_named(installed: Tree) -> None:
    installed.put("/etc/cni/net.d/05-bridge.conflist", '{"plugins": [{"type": "bridge"}]}')
    assert (
        "move /etc/cni/net.d/05-bridge.conflist away"
        in installed.examine().one("containerd", "is read before")["remedy"]
    )


def test_a_network_that_cannot_be_read_is_named(installed: Tree) -> None:
    installed.put("/etc/cni/net.d/50-broken.conflist", "{")
    installed.examine().one("containerd", "50-broken.conflist is not JSON")


def test_a_missing_plugin_is_named(installed: Tree) -> None:
    installed.at("/opt/cni/bin/podwire-cni").unlink()
    finding = installed.examine().one("containerd", "which is not in /opt/cni/bin: no Pod starts")
    assert (finding["verdict"], finding["remedy"]) == ("fail", "podwire install containerd")


def test_a_missing_loopback_plugin_is_named(installed: Tree) -> None:
    installed.at("/opt/cni/bin/loopback").unlink()
    assert "containernetworking-plugins" in installed.examine().one("containerd", "no `loopback` plugin")["remedy"]


def test_a_network_that_asks_another_router_is_named(installed: Tree) -> None:
    found = installed.examine("--socket", "/run/other.sock")
    assert (
        "--socket /run/other.sock" in found.one("containerd", "asks the router at /run/podwire/router.sock")["remedy"]
    )


def test_an_mtu_the_overlay_does_not_carry_is_named(
    told: Told, installed: Tree, asked: Callable[..., Examined]
) -> None:
    document = json.loads(installed.at(CONFLIST).read_text())
    document["plugins"][0]["mtu"] = 1500
    installed.put(CONFLIST, json.dumps(document))
    found = asked()
    assert "--mtu" in found.one("containerd", "wants an MTU of 1500, and the overlay carries 1452")["remedy"]
    assert "--overwrite" in found.one("installed files", f"{CONFLIST} is not as it was installed")["remedy"]


def test_a_handler_without_its_shim_is_named(installed: Tree) -> None:
    handler = (
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.podwire]\nruntime_type = "io.containerd.podwire.v2"\n'
    )
    installed.put("/etc/containerd/config.toml", f"version = 2\n{handler}")
    installed.at("/usr/local/bin/containerd-shim-podwire-v2").unlink()
    assert "podwire install" in installed.examine().one("containerd", "handler `podwire` needs")["remedy"]


def test_a_missing_stock_shim_is_named(installed: Tree) -> None:
    installed.at("/usr/bin/containerd-shim-runc-v2").unlink()
    assert "own shims" in installed.examine().one("containerd", "which our shim wraps, is not there")["remedy"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (launchers.interpreter(), "/opt/python3.9/bin/python3", "needs the interpreter /opt/python3.9/bin/python3"),
        (str(launchers.package_parent()), "/opt/gone", "imports from /opt/gone"),
    ],
)
def test_a_launcher_that_cannot_start_is_named(installed: Tree, old: str, new: str, words: str) -> None:
    program = installed.at("/usr/local/bin/podwire-oci-hook")
    program.write_text(program.read_text().replace(old, new))
    found = installed.examine()
    hooks = [each for each in found.findings if each["check"] == "podman" and words in each["what"]]
    assert [each["verdict"] for each in hooks] == ["fail", "fail"]  # one a stage
    assert all("podwire install podman" in each["remedy"] for each in hooks)


def test_a_launcher_that_breaks_down_is_named(tmp_path: Path) -> None:
    """On the node itself, where programs are run."""
    (plugin,) = launchers.write(tmp_path / "bin", ["podwire-cni"], client="python")
    plugin.write_text(plugin.read_text().replace("shim.cni.main", "shim.cni.nothing"))
    found = examine_with(tmp_path, plugin)
    assert "No module named" in found.one("containerd", "podwire-cni does not start")["what"]


@pytest.mark.skipif(
    launchers.built_client() is None, reason="no compiled podwire-cni: scripts/build-native.sh --require"
)
def test_a_compiled_plugin_is_recognized(tmp_path: Path) -> None:
    """That it starts; that it is not the one of this Podwire; that it is of another machine."""
    (plugin,) = launchers.write(tmp_path / "bin", ["podwire-cni"], client="native")
    whole = [each for each in examine_with(tmp_path, plugin).findings if "which is compiled, starts" in each["what"]]
    assert [each["verdict"] for each in whole] == ["ok"]
    content = plugin.read_bytes()
    plugin.write_bytes(content + b"\0")
    finding = examine_with(tmp_path, plugin).one("containerd", "not the one that this Podwire has")
    assert (finding["verdict"], finding["remedy"]) == ("warn", "podwire install containerd")
    plugin.write_bytes(content[:18] + b"\xf7\x00" + content[20:])  # e_machine: BPF, which no CPU runs
    finding = examine_with(tmp_path, plugin).one("containerd", "does not start: Exec format error")
    assert (finding["verdict"], "scripts/build-native.sh" in finding["remedy"]) == ("fail", True)


def examine_with(directory: Path, plugin: Path) -> Examined:
    """Examine this node as if containerd took its CNI plugins from the directory of this one."""
    (directory / "net.d").mkdir(exist_ok=True)
    (directory / "net.d/10-x.conflist").write_text('{"plugins": [{"type": "podwire-cni"}]}')
    config = f'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{plugin.parent}"\nconf_dir = "{directory}/net.d"\n'
    (directory / "config.toml").write_text(config)
    return examine("--containerd-config", str(directory / "config.toml"))


def test_a_hook_that_is_none_is_named(installed: Tree) -> None:
    installed.put("/usr/share/containers/oci/hooks.d/podwire-poststop.json", "{}")
    found = installed.examine()
    assert "--overwrite" in found.one("podman", "podwire-poststop.json is no hook")["remedy"]


def test_a_damaged_manifest_is_named(installed: Tree) -> None:
    installed.put("/var/lib/podwire/install.json", "{")
    installed.examine().one("installed files", "/var/lib/podwire/install.json is damaged")


def test_what_is_not_compiled_is_named(installed: Tree, tmp_path: Path) -> None:
    found = examine("--root", str(installed.directory), PYTHONPYCACHEPREFIX=str(tmp_path / "cache"))
    slow = [each for each in found.findings if "are not compiled" in each["what"]]
    assert any("shim/cni" in each["what"] and "compileall" in each["remedy"] for each in slow)


def test_a_configuration_that_is_no_toml_is_named(installed: Tree) -> None:
    installed.put("/etc/containerd/config.toml", "version =\n")
    assert "correct" in installed.examine().one("runtimes", "/etc/containerd/config.toml is not TOML")["remedy"]


# How it answers.


def test_people_get_a_table_with_the_remedy_below(tree: Tree, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--root", str(tree.directory), "--socket", str(tmp_path / "x.sock"), "--quiet"),
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail  router"))
    assert lines[at + 1].strip().startswith("→ start it (podwire router run)")
    assert not any(line.startswith("ok ") for line in lines)
    assert lines[-1].startswith("1 broken")


def test_a_check_that_breaks_down_is_a_finding() -> None:
    def broken(_: Site) -> Iterator[Any]:
        raise RuntimeError("no idea")
        yield

    checks = examination.CHECKS
    examination.CHECKS = (broken, checks[0])
    try:
        first, *others = examination.examine(Site(Root()))
    finally:
        examination.CHECKS = checks
    assert (first.check, first.verdict) == ("broken", "fail")
    assert "RuntimeError: no idea" in first.what
    assert others
