"""What cannot work is said in one line that names the remedy; nothing half made is left behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from shim.client import Client
from shim.lab import Lab, netns, plan
from tests.accounts import eventually
from tests.conftest import unique_name

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[1]
_NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
_WITHOUT_TUN = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
_TABLE = """
[[node]]
name = "n1"
endpoint = "192.0.2.1"
subnets = ["10.42.1.0/24", "fd42:0:0:1::/64"]
"""


class Host:
    """A namespace of one machine to start routers on, and a directory for what they keep."""

    def __init__(self, name: str, directory: Path) -> None:
        self.netns = name
        self.path = netns.path_of(name)
        self.directory = directory
        self.table = directory / "subnets.toml"
        self.state_dir = directory / "state"
        self.socket = directory / "run" / "router.sock"
        self.table.write_text(_TABLE)

    def command(self, **changed: str | Sequence[str] | None) -> list[str]:
        """Return the command of a router that would start, with some flags changed or (None) left out."""
        flags: dict[str, str | Sequence[str] | None] = {
            "node": "n1", "network": ["10.42.0.0/16", "fd42::/48"], "underlay": "192.0.2.1", "subnets": str(self.table),
            "socket": str(self.socket), "state-dir": str(self.state_dir),
        }  # fmt: skip
        command = [sys.executable, "-m", "router", "router", "run"]
        for name, value in (flags | {name.replace("_", "-"): value for name, value in changed.items()}).items():
            for each in [value] if isinstance(value, str) else value or ():
                command += [f"--{name}", each]
        return command

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return netns.run(self.path, command, cwd=ROOT, timeout=30)

    def traces(self) -> dict[str, object]:
        """Everything a router could leave: files, interfaces, rules, processes."""
        links = json.loads(self.run(["ip", "-j", "link"]).stdout)
        return {
            "files": sorted(
                (str(path), path.stat().st_size if path.is_file() else 0) for path in self.directory.rglob("*")
            ),
            "interfaces": sorted(link["ifname"] for link in links),
            "rules": self.run(["nft", "list", "ruleset"]).stdout,
            "processes": netns.pids_inside([self.netns]),
        }

    def refusal(self, command: Sequence[str]) -> str:
        """Run what must be refused; return its one line."""
        before = self.traces()
        done = self.run(command)
        assert done.returncode in (1, 2), done
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("podwire: ")
        assert self.traces() == before
        return lines[0]


@pytest.fixture
def host() -> Iterator[Host]:
    name = f"pwlab-{unique_name()}-host"
    directory = Path(tempfile.mkdtemp(prefix="pw"))
    netns.create(name, plan.NODE_SYSCTLS)
    try:
        lines = [
            "link add eth0 type bridge",
            "addr add 192.0.2.1/24 dev eth0",
            "addr add 2001:db8::1/64 dev eth0 nodad",
        ]
        netns.ip_batch(netns.path_of(name), [*lines, "link set eth0 up"])
        yield Host(name, directory)
    finally:
        netns.delete(name)
        shutil.rmtree(directory)


def test_the_router_of_these_tests_would_start(host: Host) -> None:
    """Or everything below would be refused for another reason."""
    router = netns.popen(host.path, host.command(), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(host.socket), what="the router")
        with Client(str(host.socket)) as client:
            assert client.status().node == "n1"
        assert "podwire0" in str(host.traces()["interfaces"])
    finally:
        router.terminate()
        assert router.wait(10) == 0
    assert not host.socket.exists()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# Flags and files

_BAD_FLAGS: list[tuple[dict[str, str | list[str] | None], list[str]]] = [
    ({"node": None}, ["node is not set", "--node"]),
    ({"network": None}, ["network"]),
    ({"underlay": None}, ["underlay"]),
    ({"node": "-n1"}, ["--node", "'-n1'"]),
    ({"network": "10.42.0.0"}, ["--network", "prefix length", "10.42.0.0/LENGTH"]),
    ({"network": "10.42.0.1/16"}, ["--network", "did you mean 10.42.0.0/16"]),
    ({"network": ["10.42.0.0/16", "10.42.128.0/17"]}, ["10.42.0.0/16", "10.42.128.0/17", "overlap"]),
    ({"underlay": "n1.example"}, ["--underlay", "n1.example"]),
    ({"underlay": "192.0.2.1:99999"}, ["--underlay", "port"]),
    ({"underlay": "192.0.2.77"}, ["192.0.2.77", "--underlay"]),
    ({"engine": "warp"}, ["engine", "warp", "python"]),
    ({"vni": "-1"}, ["--vni", "-1"]),
    ({"mtu_bytes": "1453"}, ["--mtu-bytes 1453", "1452"]),
    ({"mtu_bytes": "1000"}, ["1280"]),
    ({"subnets": "/nowhere/subnets.toml"}, ["/nowhere/subnets.toml", "No such file"]),
    ({"config": "/nowhere/podwire.toml"}, ["/nowhere/podwire.toml"]),
    ({"address_rest_s": "soon"}, ["--address-rest-s", "soon"]),
    ({"no_such_flag": "1"}, ["--no-such-flag"]),
    ({"socket": "/run/" + "x" * 110}, ["--socket", "107"]),
    ({"socket": "/etc/hostname/router.sock"}, ["--socket", "/etc/hostname/router.sock", "Not a directory"]),
]


@pytest.mark.parametrize(("changed", "said"), _BAD_FLAGS, ids=[",".join(f"{k}={v}"[:30] for k, v in row[0].items()) for row in _BAD_FLAGS])  # fmt: skip
def test_bad_flags(host: Host, changed: dict[str, str | list[str] | None], said: list[str]) -> None:
    line = host.refusal(host.command(**changed))
    for word in said:
        assert word in line


_BAD_TABLES = [
    ("[[node]\n", ["TOML", "line 1"]),
    ("", ["no [[node]] entry"]),
    (_TABLE.replace("subnets", "subnet"), ["subnet", "did you mean subnets"]),
    (_TABLE.replace("10.42.1.0/24", "10.43.1.0/24"), ["10.43.1.0/24", "n1", "10.42.0.0/16"]),
    (_TABLE.replace("192.0.2.1", "192.0.2.9"), ["192.0.2.9:6081", "192.0.2.1:6081", "n1"]),
    (_TABLE + _TABLE.replace("192.0.2.1", "192.0.2.9"), ["n1", "twice", "192.0.2.1", "192.0.2.9"]),
    (_TABLE + _TABLE.replace('"n1"', '"n2"').replace("192.0.2.1", "192.0.2.9"), ["10.42.1.0/24", "n1", "n2"]),
    (_TABLE + _TABLE.replace('"n1"', '"n2"'), ["n1", "n2", "192.0.2.1:6081"]),
]


@pytest.mark.parametrize(("table", "said"), _BAD_TABLES, ids=range(len(_BAD_TABLES)))
def test_a_bad_table(host: Host, table: str, said: list[str]) -> None:
    host.table.write_text(table)
    line = host.refusal(host.command())
    for word in said:
        assert word in line


# The machine


def test_a_cluster_range_over_the_underlay(host: Host) -> None:
    line = host.refusal(host.command(network="192.0.2.0/25"))
    assert "192.0.2.0/25" in line
    assert "192.0.2.1" in line
    netns.ip_batch(host.path, ["link add eth1 type bridge", "addr add 10.42.99.1/24 dev eth1", "link set eth1 up"])
    line = host.refusal(host.command())
    for word in ("10.42.0.0/16", "10.42.99.0/24", "eth1", "--network"):
        assert word in line


def test_an_occupied_underlay_port(host: Host) -> None:
    with netns.open_socket(host.path, socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("192.0.2.1", 6081))
        line = host.refusal(host.command())
    assert "192.0.2.1:6081 is in use" in line
    assert "another router" in line


def test_no_tun_device(host: Host) -> None:
    line = host.refusal([*_WITHOUT_TUN, *host.command()])
    assert "/dev/net/tun" in line
    assert "modprobe tun" in line


def test_no_root(host: Host) -> None:
    line = host.refusal([*_NOBODY, *host.command()])
    assert "run it as root" in line
    assert "CAP_NET_ADMIN" in line


def test_no_nft(host: Host, tmp_path: Path) -> None:
    """Masquerading is asked for and cannot be had."""
    for tool in ("ip", "python3"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    line = host.refusal(["env", f"PATH={tmp_path}", *host.command()])
    assert "install nftables" in line
    assert "--no-masquerade" in line


def test_a_small_underlay(host: Host) -> None:
    netns.ip_batch(host.path, ["link set eth0 mtu 1300"])
    line = host.refusal(host.command())
    assert "1252" in line
    assert "raise the underlay interface's MTU to 1328" in line


@pytest.fixture
def running(host: Host) -> Iterator[Host]:
    router = netns.popen(host.path, host.command(), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(host.socket), what="the router")
        yield host
    finally:
        router.terminate()
        assert router.wait(10) == 0


def test_a_second_router_on_the_same_state(running: Host) -> None:
    other = str(running.directory / "other.sock")
    line = running.refusal(running.command(underlay="192.0.2.1:6082", socket=other))
    assert str(running.state_dir) in line
    with Client(str(running.socket)) as client:
        assert client.status().node == "n1"


def test_a_control_socket_that_only_shows_at_the_end_to_be_impossible(host: Host) -> None:
    """By then everything else is made, and has to go again."""
    before = host.traces()
    done = host.run(host.command(socket="/proc/podwire/router.sock"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("podwire: --socket /proc/podwire/router.sock: cannot listen there")
    assert host.traces() == before


def test_a_socket_where_another_router_listens(running: Host) -> None:
    line = running.refusal(running.command(underlay="192.0.2.1:6082", state_dir=str(running.directory / "other")))
    assert str(running.socket) in line
    assert "a router is running there already" in line


def test_what_an_earlier_router_left_outlives_a_refused_start(host: Host) -> None:
    router = netns.popen(host.path, host.command(), cwd=ROOT, stderr=subprocess.DEVNULL)
    eventually(lambda: listens(host.socket), what="the router")
    router.terminate()
    assert router.wait(10) == 0
    with netns.open_socket(host.path, socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("192.0.2.1", 6081))
        assert "in use" in host.refusal(host.command())
    assert "nft" in host.refusal(["env", "PATH=/nowhere", *host.command()])
    assert "podwire0" in str(host.traces()["interfaces"])
    assert "masquerade" in str(host.traces()["rules"])


def test_the_state_of_another_node(host: Host) -> None:
    router = netns.popen(host.path, host.command(), cwd=ROOT, stderr=subprocess.DEVNULL)
    eventually(lambda: listens(host.socket), what="the router")
    router.terminate()
    assert router.wait(10) == 0
    host.table.write_text(_TABLE.replace('"n1"', '"n2"'))
    line = host.refusal(host.command(node="n2"))
    for word in (str(host.state_dir), "'n1'", "'n2'", "--state-dir"):
        assert word in line


def test_a_state_directory_that_is_none(host: Host) -> None:
    host.state_dir.write_text("a file")
    assert str(host.state_dir) in host.refusal(host.command())


def test_a_journal_that_is_none(host: Host) -> None:
    host.state_dir.mkdir()
    (host.state_dir / "router.db").write_bytes(b"not SQLite at all" * 100)
    assert str(host.state_dir / "router.db") in host.refusal(host.command())


# Clients


def podwire(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


def test_an_unreachable_socket(host: Host) -> None:
    path = host.directory / "none.sock"
    done = podwire("status", "--socket", str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    for word in (str(path), "No such file", "podwire router run"):
        assert word in done.stderr
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    done = podwire("status", "--socket", str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert "refused" in done.stderr


def test_attaching_what_is_no_namespace(running: Host, make_lab: Callable[..., Lab]) -> None:
    before = running.traces()
    for path, said in [
        ("/run/netns/no-such-namespace", "does it exist"),
        ("/proc/self/ns/uts", "not a network namespace"),
        (str(running.table), "not a network namespace"),
    ]:
        done = podwire("attach", "--id", "web", "--netns", path, "--ifname", "eth0", "--socket", str(running.socket))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert path in done.stderr
        assert said in done.stderr
    done = podwire("pods", "--json", "--socket", str(running.socket))
    assert json.loads(done.stdout) == {"attachments": []}
    after = running.traces()
    assert (after["interfaces"], after["rules"]) == (before["interfaces"], before["rules"])
    assert running.socket.stat().st_mode & 0o777 == 0o600
