"""Plain `ctr run` without CNI: the shim gives a container its network, and takes it away however the container ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim import launchers
from shim.containerd.arguments import Arguments
from shim.containerd.netns import path_of
from shim.lab import Lab, netns
from shim.lean.bundle import Bundle
from shim.lean.portspec import parse
from tests.accounts import assert_balanced, eventually
from tests.conformance.containerd_rig import IMAGE, Containerd, containerd
from tests.crowd import namespaces as bare
from tests.crowd import path
from tests.test_ports import ask

pytestmark = pytest.mark.netns

SLEEP = ("/bin/sleep", "1000000")


@pytest.fixture(scope="module")
def cluster(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(nodes=2, pods=1, outside=True, router_args=("--address-rest-s", "0"))


@pytest.fixture(scope="module")
def both(cluster: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Containerd, Containerd]]:
    with (
        containerd(cluster.nodes[0], tmp_path_factory.mktemp("ctr") / "a") as first,
        containerd(cluster.nodes[1], tmp_path_factory.mktemp("ctr") / "b") as second,
    ):
        yield first, second


@pytest.fixture
def one(cluster: Lab, both: tuple[Containerd, Containerd]) -> Iterator[Containerd]:
    """The first node's; whatever a test ran there, nothing of it is left."""
    node = both[0].node
    if node.pid is None:
        node.start()
    before = attached(both[0])
    yield both[0]
    for name in both[0].ctr("container", "ls", "-q").stdout.split():
        both[0].remove(name)
    assert attached(both[0]) == before
    assert left_of(both[0]) == set()
    assert_balanced(cluster)


def attached(of: Containerd) -> dict[str, tuple[str, str]]:
    """Return the addresses by sandbox id."""
    with of.node.client() as client:
        found = {}
        for each in client.attachments():
            v4, v6 = (text.partition("/")[0] for text in each.addresses)
            found[each.key.sandbox_id] = (v4, v6)
        return found


NAMES = tuple("web db bad doomed host late other third b-c".split())
"""Of containers here. Other tests on this machine have namespaces of theirs beside ours."""


def left_of(containerd: Containerd, namespace: str = "default") -> set[str]:
    """Return the containers whose namespaces are there, made by the shim for one containerd."""
    return {name for name in NAMES if os.path.exists(path_of(containerd.address, namespace, name))}  # noqa: PTH110


def test_a_container_gets_its_address_and_reaches_others(
    cluster: Lab, one: Containerd, both: tuple[Containerd, Containerd]
) -> None:
    two = both[1]
    done = one.run("web", SLEEP)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert two.run("db", SLEEP).returncode == 0
    try:
        with one.node.client() as client:
            held = next(each for each in client.attachments() if each.key.sandbox_id == "default:web")
        assert (held.owner, held.labels) == ("containerd:default", {"name": "web"})
        web, db = attached(one)["default:web"], attached(two)["default:db"]
        shown = one.exec("web", "/bin/ip", "addr", "show", "dev", "eth0").stdout
        assert f"{web[0]}/32" in shown
        assert f"{web[1]}/128" in shown
        for source, name, targets in ((one, "web", db), (two, "db", web)):
            for target in targets:
                said = source.exec(name, "/bin/ping", "-c1", "-W3", target)
                assert said.returncode == 0, said
        assert cluster.pods[1].run(["ping", "-c1", "-W3", web[0]]).returncode == 0
    finally:
        two.remove("db")
    assert one.exec("web", "/bin/ping", "-c1", "127.0.0.1").returncode == 0


def test_annotations_ask_for_addresses_and_ports(cluster: Lab, one: Containerd) -> None:
    asked = (
        "--annotation", "io.podwire.ips=10.42.1.88", "--annotation", "io.podwire.ports=8088:80/tcp",
        "--annotation", "io.podwire.mtu=1400",
    )  # fmt: skip
    serve = ("/bin/sh", "-c", "mkdir /tmp/w; echo hello >/tmp/w/index.html; httpd -f -p 80 -h /tmp/w")
    done = one.run("web", serve, *asked)
    assert done.returncode == 0, done.stderr
    assert attached(one)["default:web"][0] == "10.42.1.88"
    outside = Path(cluster.outside_path)

    def answers() -> bool:
        return not ask(outside, one.node.endpoint, 8088).startswith("[Errno")

    eventually(answers, what="the port")
    refused = one.run("other", SLEEP, "--annotation", "io.podwire.ports=8088:80")
    assert refused.returncode != 0
    assert "default:web" in refused.stderr
    refused = one.run("third", SLEEP, "--annotation", "io.podwire.ports=eighty")
    assert "HOSTPORT:PORT" in refused.stderr


def test_the_nodes_own_network_is_left_alone(one: Containerd) -> None:
    before = attached(one)
    assert one.run("host", SLEEP, "--net-host").returncode == 0
    assert attached(one) == before
    one.remove("host")


def test_a_killed_shim_releases_its_container(one: Containerd) -> None:
    before = attached(one)
    assert one.run("web", SLEEP).returncode == 0
    assert "default:web" in attached(one)
    (pid,) = one.shims()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: attached(one) == before, what="the release")
    eventually(lambda: left_of(one) == set(), what="the namespace's end")


def test_a_container_that_cannot_start_leaves_nothing(one: Containerd) -> None:
    before = attached(one)
    done = one.run("bad", ("/bin/not-there",))
    assert done.returncode != 0
    one.ctr("container", "rm", "bad")
    eventually(lambda: attached(one) == before, what="the release")
    assert left_of(one) == set()


def test_a_stock_shim_that_fails_is_undone(one: Containerd, tmp_path: Path) -> None:
    """Containerd does not call delete after a start that failed."""
    (shim,) = launchers.write(tmp_path, ["containerd-shim-podwire-v2"])
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}}
    (bundle / "config.json").write_text(json.dumps(spec))
    environ = os.environ | {"PODWIRE_SOCKET": str(one.node.socket), "PODWIRE_SHIM_LOG": str(tmp_path / "log")}
    words = ["-namespace", "default", "-id", "doomed", "-address", one.address, "start"]
    before = attached(one)
    for stock, status in (("/bin/false", 1), ("/nowhere/shim", 127)):
        done = subprocess.run(
            [shim, *words], cwd=bundle, env=environ | {"PODWIRE_STOCK_SHIM": stock}, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done
        assert attached(one) == before
        assert left_of(one) == set()
        assert Bundle(str(bundle)).namespace == {"type": "network"}


def test_a_router_that_is_down(one: Containerd) -> None:
    """What starts fails in words; what ends is released by the next router."""
    assert one.run("web", SLEEP).returncode == 0
    one.node.kill9()
    one.remove("web")
    assert left_of(one) == set()
    failed = one.run("late", SLEEP)
    assert "cannot reach the router" in failed.stderr
    one.ctr("container", "rm", "late")
    one.node.start()
    assert "default:web" not in attached(one)
    assert list((one.node.socket.parent / "tombstones").iterdir()) == []


def test_what_is_somebody_elses_survives_a_refusal(cluster: Lab, one: Containerd) -> None:
    """A start that is refused undoes what it did, and not what was there."""
    with bare(cluster.plan.pod_netns("else"), 1) as (name,), one.node.client() as client:
        client.attach("default:web", "eth0", path(name))
        before = attached(one)
        refused = one.run("web", SLEEP)
        assert "is there already" in refused.stderr
        assert attached(one) == before
        assert left_of(one) == set()
        one.ctr("container", "rm", "web")
        client.detach("default:web", "eth0")


def test_names_that_read_alike_are_kept_apart(one: Containerd, both: tuple[Containerd, Containerd]) -> None:
    """What ends is its own namespace, not that of a/b-c when a-b/c ends, nor that of another containerd's."""
    assert one.run("b-c", SLEEP).returncode == 0
    assert one.ctr("-n", "default-b", "image", "import", "--snapshotter", "native", str(one.image)).returncode == 0
    other = ("run", "--rm", "--runtime", "io.containerd.podwire.v2", "--snapshotter", "native", IMAGE, "c")
    done = one.ctr("-n", "default-b", *other, "/bin/ip", "addr")
    assert (done.returncode, "eth0" in done.stdout) == (0, True), done
    # runc keeps its containers by namespace and id alone: the second containerd's fails, and takes nothing with it.
    assert "already exists" in both[1].run("b-c", SLEEP).stderr
    both[1].ctr("container", "rm", "b-c")
    assert left_of(one) == {"b-c"}
    assert attached(one)["default:b-c"]
    eventually(lambda: "default:b-c" not in attached(both[1]), what="the release of what failed")


def test_a_namespace_of_somebody_else_is_adopted(cluster: Lab, one: Containerd) -> None:
    name = cluster.plan.pod_netns("adopt")
    netns.create(name)
    try:
        path = str(netns.path_of(name))
        assert one.run("web", SLEEP, "--with-ns", f"network:{path}").returncode == 0
        with one.node.client() as client:
            held = next(each for each in client.attachments() if each.key.sandbox_id == "default:web")
        assert held.netns_path == path
        one.remove("web")
        assert netns.path_of(name).exists(), "its maker's to remove"
        assert "default:web" not in attached(one)
    finally:
        netns.delete(name)


def test_the_stock_shim_is_found_beside_containerd(tmp_path: Path) -> None:
    """As containerd itself finds shims, when its PATH does not lead there."""
    (shim,) = launchers.write(tmp_path / "ours", ["containerd-shim-podwire-v2"])
    stock = tmp_path / "containerd-shim-runc-v2"
    stock.write_text("#!/bin/sh\necho $0 $*\n")
    stock.chmod(0o755)
    words = ["-publish-binary", str(tmp_path / "containerd"), "-info"]
    environ = {"PATH": str(tmp_path / "ours"), "PODWIRE_SHIM_LOG": str(tmp_path / "log")}
    done = subprocess.run([shim, *words], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{stock} {' '.join(words)}\n"
    stock.unlink()
    done = subprocess.run([shim, *words], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "comes with containerd" in done.stderr) == (127, True)


def test_what_containerd_asks_besides_goes_to_the_stock_shim(tmp_path: Path) -> None:
    (shim,) = launchers.write(tmp_path, ["containerd-shim-podwire-v2"])
    ours = subprocess.run([shim, "-v"], capture_output=True, text=True, timeout=60, check=True)
    stock = subprocess.run(["containerd-shim-runc-v2", "-v"], capture_output=True, text=True, timeout=60, check=True)
    assert ours.stdout.splitlines()[1:] == stock.stdout.splitlines()[1:]
    assert ours.stdout


# Words


def test_command_lines_in_the_style_of_go() -> None:
    words = ["-namespace", "k8s.io", "--id=a", "-debug", "-bundle", "/x y", "delete", "-id", "other"]
    found = Arguments(words)
    assert (found.namespace, found.container_id, found.verb) == ("k8s.io", "a", "delete")
    assert found.flags["bundle"] == "/x y"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:80", (8080, 80, "tcp", "")),
        ("53:5353/udp", (53, 5353, "udp", "")),
        ("192.0.2.1:1:2/sctp", (1, 2, "sctp", "192.0.2.1")),
        ("[2001:db8::1]:1:2", (1, 2, "tcp", "2001:db8::1")),
    ],
)
def test_port_mappings_in_words(text: str, wanted: tuple[int, int, str, str]) -> None:
    assert tuple(parse(text).values()) == wanted


@pytest.mark.parametrize("text", ["", "80", "a:80", "80:b", ":80", "80:", "-1:80"])
def test_what_is_no_port_mapping(text: str) -> None:
    with pytest.raises(ValueError, match="HOSTPORT:PORT"):
        parse(text)
