"""The lab: a cluster comes up, works, and goes without a trace, whoever is killed at whatever moment."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from shim.client import Client
from shim.lab import Lab, ledger, netns, process
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger
from shim.lab.matrix import Place, measure
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from shim.lab.teardown import take_down
from tests.accounts import eventually

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _labs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of labs of this test's own: short, as a Unix socket's path has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="pw"))
    monkeypatch.setenv("PODWIRE_LABS_DIR", str(path))
    yield
    for name in ledger.names():  # what a failed test left
        take_down(Ledger(name))
    shutil.rmtree(path)


@pytest.fixture
def name() -> str:
    return f"t{os.getpid()}-{secrets.token_hex(3)}"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "router", *arguments]


def podwire(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)


def start_podwire(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )


def leftovers(name: str) -> list[str]:
    """What there still is of a lab: namespaces, files, processes that have a path of it on their command line."""
    found = [str(path) for path in netns.DIRECTORY.glob(f"pwlab-{name}-*")]
    found += [str(path) for path in (Ledger(name).path,) if path.exists()]
    for entry in Path("/proc").glob("[1-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"/{name}/".encode() in line:
            found.append(f"{entry.name}: {line!r}")
    return found


def pings(place: LabPod | LabNode, address: object) -> bool:
    return place.run(["ping", "-n", "-c", "1", "-W", "3", str(address)]).returncode == 0


def test_a_cluster_works_inside_the_block_and_is_gone_after_it(name: str) -> None:
    with Lab(nodes=2, pods=2, name=name, outside=True) as lab:
        places = [Place(pod.name, pod.netns_path, pod.addresses) for pod in lab.pods]
        places += [Place(node.name, node.netns_path, node.addresses, node=True) for node in lab.nodes]
        assert [str(probe) for probe in measure(places).bad] == []

        first, far = lab.pods[0], lab.pods[-1]
        node = lab.nodes[0]
        assert first.name == "n1p1"
        assert lab.find("n1p1") is first
        assert lab.find("n2") is lab.nodes[1]
        with pytest.raises(LabError, match="n2p9"):
            lab.find("n2p9")
        with node.client() as client:
            status = client.status()
            assert status.node_addresses == tuple(map(str, node.addresses))
            assert status.attachments == 2
            assert status.mtu_bytes == 1500 - 48
        assert pings(first, "198.51.100.1")
        assert pings(first, "2001:db8::1")

        killed = node.pid
        node.kill9()
        assert node.pid is None
        node.start()
        assert node.pid not in (None, killed)
        assert pings(first, far.addresses[0])
        node.restart()
        assert pings(far, first.addresses[1])

        added = lab.add_pod(node, ip=["10.42.1.77"])
        assert (added.name, str(added.addresses[0])) == ("n1p3", "10.42.1.77")
        assert pings(far, added.addresses[1])
        with pytest.raises(LabError, match=r"10\.42\.1\.77"):
            lab.add_pod(node, ip=["10.42.1.77"])
        assert len(list(netns.DIRECTORY.glob(f"pwlab-{name}-n1p*"))) == 3
        lab.remove_pod(added)
        assert not netns.path_of(added.netns).exists()
        with node.client() as client:
            assert len(client.attachments()) == 2
    assert leftovers(name) == []


def test_a_subnet_table_reaches_the_routers_it_is_for(name: str) -> None:
    with Lab(nodes=2, pods=0, name=name) as lab:
        first, second = lab.nodes
        rows = {node.name: (node.endpoint, [str(subnet) for subnet in node.plan.subnets]) for node in lab.nodes}
        lab.write_subnets(rows | {"far": ("192.168.64.99", ["10.42.99.0/24"])}, nodes=[first])

        def peers(node: LabNode) -> int:
            with node.client() as client:
                return client.status().peers

        eventually(lambda: peers(first) == 2)
        assert peers(second) == 1


@pytest.mark.parametrize(("family", "mtu_bytes", "overhead_bytes"), [(6, 1400, 68), (4, 9000, 48)])
def test_the_underlay_is_as_asked_for(name: str, family: int, mtu_bytes: int, overhead_bytes: int) -> None:
    with Lab(nodes=2, pods=1, name=name, underlay_mtu=mtu_bytes, underlay_family=family) as lab:
        with lab.nodes[0].client() as client:
            status = client.status()
        assert ip_address(status.endpoint.address).version == family
        assert status.mtu_bytes == mtu_bytes - overhead_bytes
        biggest = str(status.mtu_bytes - 28)
        done = lab.pods[0].run(["ping", "-c1", "-W3", "-M", "do", "-s", biggest, str(lab.pods[1].addresses[0])])
        assert done.returncode == 0, done.stdout


def test_sixteen_nodes(name: str) -> None:
    with Lab(nodes=16, pods=1, name=name) as lab:
        assert len({node.pid for node in lab.nodes}) == 16
        for family in (0, 1):
            assert pings(lab.pods[0], lab.pods[15].addresses[family])
            assert pings(lab.nodes[7], lab.pods[3].addresses[family])
    assert leftovers(name) == []


def test_nodes_join_and_leave_a_running_lab(name: str) -> None:
    """With one table for all, which is written anew; by this program, and by another."""
    with Lab(nodes=2, pods=1, name=name) as lab:
        added = lab.add_node()
        assert (added.name, added.endpoint) == ("n3", "192.168.64.3")
        pod = lab.add_pod(added)
        eventually(lambda: pings(lab.pods[0], pod.addresses[1]))
        assert podwire("lab", "add-node", "--name", name).returncode == 0
        lab.link("n4", "rest", delay_s=0.001)  # takes note of what another program made
        assert [node.name for node in lab.nodes] == ["n1", "n2", "n3", "n4"]
        assert [each.name for each in lab.pods] == ["n1p1", "n2p1", "n3p1", "n4p1"]
        eventually(lambda: pings(lab.find("n4p1"), pod.addresses[0]))

        lab.remove_node(added)
        assert podwire("lab", "remove-node", "--name", name, "n4").returncode == 0
        refused = podwire("lab", "remove-node", "--name", name, "n4")
        assert (refused.returncode, refused.stderr) == (1, f"Error: lab {name} has no node 'n4' (it has: n1, n2)\n")
        again = lab.add_node()
        assert (again.name, [node.name for node in lab.nodes]) == ("n3", ["n1", "n2", "n3"])
        assert [each.name for each in lab.pods] == ["n1p1", "n2p1"]
        assert lab.links().links == ()
        eventually(lambda: pings(lab.add_pod(again), lab.pods[0].addresses[0]))
        netns.create(lab.plan.with_one_more().nodes[-1].netns)
        with pytest.raises(LabError, match="n4 exists already"):
            lab.add_node()
        assert [node.name for node in lab.nodes] == ["n1", "n2", "n3"]
        assert not list(netns.DIRECTORY.glob(f"pwlab-{name}-n4"))
        for node in lab.nodes[1:]:
            lab.remove_node(node)
        with pytest.raises(LabError, match="n1 is the last node"):
            lab.remove_node(lab.nodes[0])
    assert leftovers(name) == []


def test_nodes_lease_their_subnets_in_a_real_etcd(name: str) -> None:
    with Lab(nodes=2, pods=1, name=name, store="etcd", underlay_family=6) as lab:
        first, second = lab.pods
        assert lab.store.url == "http://[fd64::fd]:2379"
        assert first.addresses[0] in lab.nodes[0].subnets[0]
        assert first.addresses[1] in lab.nodes[0].subnets[1]
        assert pings(first, second.addresses[0])
        members = lab.store.run_etcdctl("get", "--prefix", "/podwire/members/", "--keys-only").split()
        assert members == ["/podwire/members/n1", "/podwire/members/n2"]
        with pytest.raises(LabError, match="no table"):
            lab.write_subnets()
        with pytest.raises(LabError, match="etcdctl get --no-such-flag failed"):
            lab.store.run_etcdctl("get", "--no-such-flag")

        killed = lab.store.pid
        lab.store.kill9()
        assert lab.store.pid is None
        assert json.loads(podwire("lab", "status", "--name", name, "--json").stdout)[0]["store"]["pid"] is None
        assert pings(second, first.addresses[1])
        lab.store.start()
        assert lab.store.pid not in (None, killed)
        with pytest.raises(LabError, match="etcd runs already"):
            lab.store.start()
        assert lab.store.run_etcdctl("get", "--prefix", "/podwire/members/", "--keys-only").split() == members

        lab.store.pause()
        assert lab.store.paused
        said = json.loads(podwire("lab", "status", "--name", name, "--json").stdout)[0]
        assert (said["store"]["paused"], said["store"]["pid"]) == (True, lab.store.pid)
        assert podwire("lab", "store", "--name", name, "resume").stdout == f"etcd {lab.store.pid}\n"
        assert not lab.store.paused
        lab.partition("n1", "store")
        lab.heal()

        added = lab.add_node()
        assert not {str(net) for net in added.subnets} & {str(net) for node in lab.nodes[:2] for net in node.subnets}
        assert [
            node["subnets"]
            for node in json.loads(podwire("lab", "status", "--name", name, "--json").stdout)[0]["nodes"]
        ] == [[str(net) for net in node.subnets] for node in lab.nodes]
        eventually(lambda: pings(first, added.addresses[0]))
        owned = lab.nodes[0].subnets
        lab.nodes[0].restart()
        assert lab.nodes[0].subnets == owned
        lab.store.pause()  # and so it is ended
    assert leftovers(name) == []


def test_without_etcd_a_lab_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="on Debian the package etcd-server"):
        Lab(nodes=1, pods=0, name=name, store="etcd").up()
    assert leftovers(name) == []
    with pytest.raises(LabError, match="has no etcd"):
        Lab(nodes=1, pods=0, name=name).store  # noqa: B018 - it is what raises


def test_down_takes_the_relay_and_the_partition_along(name: str) -> None:
    lab = Lab(nodes=2, pods=0, name=name, store="etcd")
    lab.up()
    lab.link("n1", "n2", loss=0.5)
    lab.partition("n1", "store")
    relay = lab.links().relay_pid
    assert relay is not None
    assert podwire("lab", "down", "--name", name).returncode == 0
    assert not process.ProcessId.of(relay)
    assert leftovers(name) == []
    lab.down()


def test_a_router_that_does_not_start_says_why_and_leaves_nothing(name: str) -> None:
    with pytest.raises(LabError, match=r"router of n[12] .*--no-such-flag"):
        Lab(nodes=2, pods=1, name=name, router_args=["--no-such-flag"]).up()
    assert leftovers(name) == []


def test_two_labs_by_hand_at_once(name: str) -> None:
    other = f"{name}b"
    with start_podwire("lab", "up", "--name", other, "--nodes", "1") as second:
        done = podwire("lab", "up", "--name", name, "--nodes", "2", "--pods", "1")
        assert done.returncode == 0, done.stderr
        assert "n2p1" in done.stdout
        assert second.wait(30) == 0
    refused = podwire("lab", "up", "--name", name)
    assert refused.returncode == 1
    assert "already" in refused.stderr
    assert refused.stderr.count("Error") == 1

    found = {lab["name"]: lab for lab in json.loads(podwire("lab", "status", "--json").stdout)}
    assert set(found) == {name, other}
    assert [len(found[each]["pods"]) for each in (name, other)] == [2, 1]
    assert all(node["router_pid"] for lab in found.values() for node in lab["nodes"])
    with Client(found[name]["nodes"][1]["socket"]) as client:
        assert client.status().node == "n2"

    target = found[name]["pods"][1]["addresses"][0]
    assert podwire("lab", "exec", "--name", name, "n1p1", "--", "ping", "-c1", "-W3", target).returncode == 0
    assert podwire("lab", "exec", "--name", other, "n1p1", "--", "ping", "-c1", "-W1", target).returncode == 1
    assert podwire("lab", "exec", "--name", name, "n2", "sh", "-c", "exit 7").returncode == 7
    named = podwire("lab", "exec", "--name", name, "n1p1", "echo", "--name", "x")  # not an option of ours
    assert named.stdout == "--name x\n"
    for arguments, said in [
        (("n1p1", "true"), "several labs"),
        (("--name", name, "n9", "true"), "has no Pod or node 'n9'"),
        (("--name", name, "n1", "no-such-command"), "no command 'no-such-command'"),
        (("--name", "nolab", "n1", "true"), "there is no lab nolab"),
    ]:
        done = podwire("lab", "exec", *arguments)
        assert done.returncode == 1
        assert said in done.stderr

    # A router killed, a stray process inside: gone with the rest. The other lab is not touched.
    os.kill(found[name]["nodes"][0]["router_pid"], signal.SIGKILL)
    stray = start_podwire("lab", "exec", "--name", name, "n1p1", "sleep", "600")
    eventually(lambda: stray.pid in netns.pids_inside([f"pwlab-{name}-n1p1"]))
    assert podwire("lab", "down", "--name", name).returncode == 0
    assert stray.wait(5) == -signal.SIGKILL
    assert stray.stdout is not None
    stray.stdout.close()
    assert leftovers(name) == []
    assert podwire("lab", "exec", "n1p1", "true").returncode == 0
    assert podwire("lab", "down").returncode == 0
    assert leftovers(other) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("lab", "up"),
        ("lab", "down", "--all"),
        ("lab", "exec", "n1", "true"),
        ("lab", "partition", "n1", "n2"),
        ("lab", "links"),
        ("lab", "add-node"),
        ("lab", "store", "kill"),
        ("demo",),
    ],
)
def test_without_root_one_line_says_so(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["unshare", "--user", *command(*arguments)],  # nobody, who can still read the code
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["Error: a lab needs root, for its namespaces: run this with sudo"]


def test_down_all_leaves_the_labs_of_running_programs(name: str) -> None:
    mine = Lab(nodes=1, pods=0, name=name)
    mine.up()
    Ledger(f"{name}-dead").claim()
    done = podwire("lab", "down", "--all")
    assert done.returncode == 0, done.stderr
    assert f"{name} is in use by process {os.getpid()}" in done.stdout
    assert ledger.names() == [name]
    mine.down()
    mine.down()
    assert leftovers(name) == []


@pytest.mark.parametrize("seed", range(8))
def test_down_cleans_up_after_an_up_that_was_killed(name: str, seed: int) -> None:
    """Kill with -9 at a moment between the first thing made and the last."""
    delay_s = random.Random(seed).uniform(0, 1.2)
    store = "etcd" if seed % 4 == 3 else "file"
    with start_podwire("lab", "up", "--name", name, "--nodes", "3", "--pods", "2", "--store", store) as up:
        eventually(Ledger(name).path.exists)
        time.sleep(delay_s)
        up.kill()
    done = podwire("lab", "down", "--name", name)
    assert done.returncode == 0, done.stderr
    assert leftovers(name) == []


def test_down_that_was_killed_is_done_again(name: str) -> None:
    lab = Lab(nodes=2, pods=1, name=name)
    lab.up()
    with start_podwire("lab", "down", "--name", name) as down:
        # Its first act is to end a router.
        eventually(lambda: any(node.pid is None for node in lab.nodes))
        down.kill()
    if Ledger(name).path.exists():
        assert podwire("lab", "down", "--name", name).returncode == 0
    assert leftovers(name) == []
    lab.down()  # nothing left to do


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_up_that_is_told_to_stop_leaves_nothing(name: str, number: signal.Signals, status: int) -> None:
    with start_podwire("lab", "up", "--name", name, "--nodes", "3") as up:
        eventually(lambda: any(Ledger(name).path.glob("n2/router.pid")))
        up.send_signal(number)
        assert up.wait(20) == status
    assert leftovers(name) == []


def test_the_demo_shows_that_all_is_well() -> None:
    done = podwire("demo", "--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "264 of 264 questions" in done.stdout
    assert "✗" not in done.stdout
    assert "spoofed_source" in done.stdout
    assert ledger.names() == []


def test_the_demo_stopped_or_broken_takes_all_down() -> None:
    with start_podwire("demo", "--seconds", "30") as stopped, start_podwire("demo", "--seconds", "1") as broken:
        assert broken.stdout is not None
        assert stopped.stdout is not None
        names: list[str] = []
        for output in (stopped.stdout, broken.stdout):
            for line in output:
                if line.startswith("lab "):
                    names.append(line.split()[1])
                    break
        router = Ledger(names[1]).router_process("n2")
        assert router is not None
        process.end([router], grace_s=0)
        stopped.send_signal(signal.SIGINT)
        stopped.communicate(timeout=30)
        said, _ = broken.communicate(timeout=60)
        assert stopped.returncode == 130
        assert broken.returncode == 1, said
    assert [leftovers(name) for name in names] == [[], []]
