"""What runtimes do not know any more is released, and nothing else: real containerd, real podman, lists of anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.client import Client
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, eventually
from tests.containerd_rig import Containerd, containerd
from tests.crowd import namespaces, path
from tests.test_containerd_shim import SLEEP

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(nodes=1, pods=0, router_args=("--address-rest-s", "0"))


@pytest.fixture(scope="module")
def runtime(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with containerd(lab.nodes[0], tmp_path_factory.mktemp("ctr") / "a") as made:
        yield made


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with lab.nodes[0].client() as made:
        yield made
        made.sync([])
    assert_balanced(lab)


def podwire_sync(node: LabNode, *words: str, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router", "sync", "--socket", str(node.socket), *words]
    return netns.run(node.netns_path, command, cwd=ROOT, input=given, env=os.environ | environ, timeout=60)


def attached(client: Client) -> set[str]:
    return {each.key.sandbox_id for each in client.attachments()}


def test_containerd_judges_its_own(lab: Lab, runtime: Containerd, client: Client) -> None:
    node = lab.nodes[0]
    assert runtime.run("web", SLEEP).returncode == 0
    orphan = "cni-11111111-2222-3333-4444-555555555555"
    netns.create(orphan)
    with namespaces(lab.plan.pod_netns("sync"), 2) as (mine, podmans):
        client.attach("f00d", "eth0", path(orphan), owner="cni:podwire")
        client.attach("default:gone", "net1", path(mine), owner="containerd:default")
        client.attach("by-hand", "eth0", path(mine))
        client.attach("oci-one", "eth0", path(podmans), owner="oci")
        asked = ("--containerd", runtime.address)
        # The young are spared: their runtime may not have got to writing them down.
        assert podwire_sync(node, *asked).stdout == "all that is attached is there\n"
        said = podwire_sync(node, *asked, "--grace", "0", "--dry-run").stdout.splitlines()
        assert sorted(said) == ["default:gone/net1: would be released", "f00d/eth0: would be released"]
        assert {"f00d", "default:gone"} <= attached(client)
        done = podwire_sync(node, *asked, "--grace", "0", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {
            "released": ["default:gone/net1", "f00d/eth0"],
            "namespaces": [path(orphan)],
            "failures": [],
        }
        assert attached(client) == {"default:web", "by-hand", "oci-one"}
        assert not netns.path_of(orphan).exists()
        (why,) = [each for each in client.watch_events(0, follow=False) if each.key and each.key.sandbox_id == "f00d"][
            1:
        ]
        assert (why.kind, "cni:podwire does not know it" in why.message) == ("released", True)
    runtime.remove("web")


def test_a_leaked_namespace_somebody_lives_in_stays(lab: Lab, runtime: Containerd, client: Client) -> None:
    orphan = "cni-22222222-2222-3333-4444-555555555555"
    netns.create(orphan)
    living = netns.popen(netns.path_of(orphan), ["sleep", "60"])
    try:
        client.attach("f00d", "eth0", path(orphan), owner="cni:podwire")
        done = podwire_sync(lab.nodes[0], "--containerd", runtime.address, "--grace", "0", "--json")
        assert json.loads(done.stdout)["released"] == ["f00d/eth0"]
        assert netns.path_of(orphan).exists()
    finally:
        living.kill()
        living.wait()
        netns.delete(orphan)


@pytest.mark.parametrize("socket", ["none.sock", "router"])
def test_a_runtime_that_cannot_be_asked_releases_nothing(lab: Lab, client: Client, tmp_path: Path, socket: str) -> None:
    node = lab.nodes[0]
    with namespaces(lab.plan.pod_netns("sync"), 1) as (name,):
        client.attach("default:web", "eth0", path(name), owner="containerd:default")
        address = str(node.socket) if socket == "router" else str(tmp_path / socket)
        done = podwire_sync(node, "--containerd", address, "--grace", "0")
        assert done.returncode == 1
        assert "cannot ask containerd" in done.stderr
        assert attached(client) == {"default:web"}


def test_podman_judges_its_own(lab: Lab, client: Client, tmp_path: Path) -> None:
    """Its command is asked; here one that knows a single container."""
    (tmp_path / "podman").write_text('#!/bin/sh\n[ "$1" = ps ] && echo known || exit 1\n')
    (tmp_path / "podman").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with namespaces(lab.plan.pod_netns("sync"), 1) as (name,):
        client.attach("known", "eth0", path(name), owner="oci")
        client.attach("gone", "eth1", path(name), owner="oci")
        client.attach("default:web", "eth2", path(name), owner="containerd:default")
        done = podwire_sync(lab.nodes[0], "--podman", "--grace", "0", **environ)
        assert (done.returncode, done.stdout) == (0, "gone/eth1: released\n")
        assert attached(client) == {"known", "default:web"}
        (tmp_path / "podman").write_text("#!/bin/sh\necho broken >&2; exit 125\n")
        done = podwire_sync(lab.nodes[0], "--podman", "--grace", "0", **environ)
        assert (done.returncode, "broken" in done.stderr) == (1, True)
        assert attached(client) == {"known", "default:web"}


def test_real_podman_is_asked(lab: Lab, client: Client) -> None:
    with namespaces(lab.plan.pod_netns("sync"), 1) as (name,):
        client.attach("no-such-container", "eth0", path(name), owner="oci")
        done = podwire_sync(lab.nodes[0], "--podman", "--grace", "0")
        assert (done.returncode, done.stdout) == (0, "no-such-container/eth0: released\n"), done.stderr


def test_a_list_of_anybody(lab: Lab, client: Client, tmp_path: Path) -> None:
    node = lab.nodes[0]
    with namespaces(lab.plan.pod_netns("sync"), 1) as (name,):
        for sandbox_id, if_name, owner in (("a", "eth0", "mine"), ("b", "eth1", "mine"), ("c", "eth2", "theirs")):
            client.attach(sandbox_id, if_name, path(name), owner=owner)
        listed = json.dumps([{"containerID": "a", "ifname": "eth0"}])
        words = ("--live", "-", "--owner", "mine", "--grace", "0")
        assert podwire_sync(node, *words, given=listed).stdout == "b/eth1: released\n"
        for nonsense in ("", "{}", '["a"]', '[{"containerID": "a"}]'):
            done = podwire_sync(node, *words, given=nonsense)
            assert done.returncode == 1
            assert "nothing is released" in done.stderr
        assert attached(client) == {"a", "c"}
    for wrong in ((), ("--podman", "--live", "-"), ("--podman", "--owner", "x"), ("--live", "-", "--dry-run")):
        assert podwire_sync(node, *wrong).returncode == 2


def test_a_router_reconciles_by_itself(make_lab: Callable[..., Lab], tmp_path: Path, runtime: Containerd) -> None:
    asked = ("--reconcile", f"containerd:{runtime.address}", "--reconcile-every-s", "1", "--reconcile-grace-s", "0")
    lab = make_lab(nodes=1, pods=1, router_args=asked)
    node = lab.nodes[0]
    with node.client() as client, namespaces(lab.plan.pod_netns("self"), 1) as (name,):
        client.attach("default:never", "eth0", path(name), owner="containerd:default")
        eventually(lambda: "default:never" not in attached(client), what="the release")
        assert lab.pods[0].sandbox_id in attached(client)
    began_s = time.monotonic()
    node.stop()
    assert time.monotonic() - began_s < 5
    node.start()
