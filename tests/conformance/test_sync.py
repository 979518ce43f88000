"""What runtimes do not know any more is released, and nothing else: real containerd, real podman, lists of anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from shim.client import Client
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from shim.runtimes.known import open_source
from tests.accounts import assert_balanced, eventually
from tests.conformance.containerd_rig import IMAGE, Containerd, containerd
from tests.conformance.test_containerd_shim import SLEEP
from tests.crowd import namespaces, path

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
SyncAmong = Callable[..., tuple[dict[str, list[str]], set[str]]]


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(nodes=1, pods=0, router_args=("--address-rest-s", "0"))


@pytest.fixture(scope="module")
def runtime(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with containerd(lab.nodes[0], tmp_path_factory.mktemp("ctr") / "a") as made:
        # What containerds of earlier runs have left on this machine would be found here.
        podwire_sync(lab.nodes[0], "--containerd", made.address)
        yield made


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with lab.nodes[0].client() as made:
        yield made
        made.sync([])
    assert_balanced(lab)


_VIEW = """\
set -e
mount -t tmpfs tmpfs /mnt
for name in $VIEW; do
    touch /mnt/$name
    mount --bind /run/netns/$name /mnt/$name
done
mount --move /mnt /run/netns
"$@"
ls /run/netns >$LEFT
"""


def podwire_sync(node: LabNode, *words: str, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it where no namespace has a name, for it looks at all that have one: others on this machine are not its to judge."""
    command = [sys.executable, "-m", "router", "sync", "--socket", str(node.socket), *words]
    view = ["unshare", "--mount", "sh", "-c", _VIEW, "sh", *command]
    settings = os.environ | {"VIEW": "", "LEFT": "/dev/null"} | environ
    return netns.run(node.netns_path, view, cwd=ROOT, input=given, env=settings, timeout=60)


@pytest.fixture
def sync_among(lab: Lab, runtime: Containerd, tmp_path: Path) -> SyncAmong:
    """Run it with containerd where only some names are, and return what it says and the names that are left."""

    def run(names: Iterable[str], *words: str) -> tuple[dict[str, list[str]], set[str]]:
        asked = ("--containerd", runtime.address, "--json", *words)
        left = tmp_path / "left"
        done = podwire_sync(lab.nodes[0], *asked, VIEW=" ".join(names), LEFT=str(left))
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout), set(left.read_text().split())

    return run


@pytest.fixture
def web(runtime: Containerd) -> Iterator[str]:
    """The path of the namespace of a container that runs."""
    assert runtime.run("web", SLEEP).returncode == 0
    with runtime.node.client() as client:
        yield next(each.netns_path for each in client.attachments() if each.key.sandbox_id == "default:web")
    runtime.remove("web")


@pytest.fixture
def make_orphan() -> Iterator[Callable[[], str]]:
    """Make namespaces with names as containerd's CRI gives; they end with the test."""
    made: list[str] = []

    def make() -> str:
        made.append(f"cni-{uuid4()}")
        netns.create(made[-1])
        return made[-1]

    yield make
    for name in made:
        netns.delete(name)


def attached(client: Client) -> set[str]:
    return {each.key.sandbox_id for each in client.attachments()}


def test_containerd_judges_its_own(
    lab: Lab,
    runtime: Containerd,
    client: Client,
    web: str,
    make_orphan: Callable[[], str],
    sync_among: SyncAmong,
) -> None:
    node = lab.nodes[0]
    orphan = make_orphan()
    with namespaces(lab.plan.pod_netns("sync"), 2) as (mine, podmans):
        client.attach("f00d", "eth0", path(orphan), owner="cni:podwire")
        client.attach("default:gone", "net1", path(mine), owner="containerd:default")
        client.attach("by-hand", "eth0", path(mine))
        client.attach("oci-one", "eth0", path(podmans), owner="oci")
        asked = ("--containerd", runtime.address)
        # The young are spared: their runtime may not have got to writing them down.
        assert podwire_sync(node, *asked).stdout == "all that is attached is there\n"
        said = podwire_sync(node, *asked, "--grace", "0", "--dry-run", VIEW=orphan).stdout.splitlines()
        assert sorted(said) == [
            f"{path(orphan)}: would be removed",
            "default:gone/net1: would be released",
            "f00d/eth0: would be released",
        ]
        released = {"released": ["default:gone/net1", "f00d/eth0"], "namespaces": [path(orphan)], "failures": []}
        everything = (released, {orphan, mine, podmans})
        assert sync_among([orphan, mine, podmans], "--grace", "0", "--dry-run") == everything
        assert {"f00d", "default:gone"} <= attached(client)
        assert sync_among([orphan, mine, podmans], "--grace", "0") == (released, {mine, podmans})
        assert attached(client) == {"default:web", "by-hand", "oci-one"}
        (why,) = [each for each in client.watch_events(0, follow=False) if each.key and each.key.sandbox_id == "f00d"][
            1:
        ]
        assert (why.kind, "cni:podwire does not know it" in why.message) == ("released", True)
    assert Path(web).exists()


def test_where_somebody_lives_nothing_is_released(
    client: Client, make_orphan: Callable[[], str], sync_among: SyncAmong
) -> None:
    """Whatever a runtime says: another may have put it there."""
    orphan = make_orphan()
    living = netns.popen(netns.path_of(orphan), ["sleep", "60"])
    try:
        client.attach("f00d", "eth0", path(orphan), owner="cni:podwire")
        found, left = sync_among([orphan], "--grace", "0")
        assert (found, left) == ({"released": [], "namespaces": [], "failures": []}, {orphan})
        assert attached(client) == {"f00d"}
        living.kill()
        living.wait()
        found, left = sync_among([orphan], "--grace", "0")
        assert (found["released"], found["namespaces"], left) == (["f00d/eth0"], [path(orphan)], set())
        assert attached(client) == set()
    finally:
        living.kill()
        living.wait()


def test_a_namespace_that_never_came_to_an_attachment_is_removed(
    web: str, make_orphan: Callable[[], str], sync_among: SyncAmong
) -> None:
    # A containerd killed between making a sandbox's namespace and its ADD has written nothing down, and nor have we.
    forgotten, foreign = make_orphan(), make_orphan()
    # Somebody else's network is in it: not ours to judge.
    netns.ip_batch(netns.path_of(foreign), ["link add eth0 type bridge", "link set eth0 up"])
    every = {forgotten, foreign, Path(web).name}
    nothing = {"released": [], "namespaces": [], "failures": []}
    assert sync_among(every) == (nothing, every)

    def is_removed() -> bool:
        found, left = sync_among(every, "--grace", "0")
        if found == nothing:  # however small the grace, a sandbox may just be under way
            assert left == every
            return False
        assert found == nothing | {"namespaces": [path(forgotten)]}
        assert left == every - {forgotten}
        return True

    eventually(is_removed, 30, "the end of what nobody knows")


def test_what_one_of_two_runtimes_knows_stays(
    lab: Lab, runtime: Containerd, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = lab.nodes[0]
    first = ("--containerd", runtime.address, "--grace", "0")
    with (
        containerd(node, tmp_path_factory.mktemp("ctr") / "b") as other,
        namespaces(lab.plan.pod_netns("two"), 2) as (name, gone),
    ):
        # Without a task: nobody lives there.
        done = other.ctr("container", "create", "--snapshotter", "native", IMAGE, "known", "/bin/true")
        assert done.returncode == 0, done
        client.attach("default:known", "eth0", path(name), owner="containerd:default")
        client.attach("default:gone", "eth0", path(gone), owner="containerd:default")
        done = podwire_sync(node, *first, "--containerd", "/nowhere/containerd.sock")
        assert (done.returncode, done.stdout) == (1, "")
        assert attached(client) == {"default:known", "default:gone"}
        for words in ((*first, "--containerd", other.address), ("--containerd", other.address, *first)):
            assert podwire_sync(node, *words).returncode == 0
            assert attached(client) == {"default:known"}
        assert podwire_sync(node, *first).stdout == "default:known/eth0: released\n"


def test_a_long_list_is_read_whole(lab: Lab, runtime: Containerd, client: Client) -> None:
    """What a few hundred containers come to: more than gRPC takes in a message."""
    names = ("long-1", "long-2", "long-3")
    many = [word for number in range(15) for word in ("--annotation", f"n{number}={'x' * 100_000}")]
    create = ("container", "create", "--snapshotter", "native", *many, IMAGE)
    with namespaces(lab.plan.pod_netns("long"), 1) as (name,):
        try:
            for index, container_id in enumerate(names):
                done = runtime.ctr(*create, container_id, "/bin/true")
                assert done.returncode == 0, done.stderr
                client.attach(f"default:{container_id}", f"eth{index}", path(name), owner="containerd:default")
            client.attach("default:gone", "eth9", path(name), owner="containerd:default")
            done = podwire_sync(lab.nodes[0], "--containerd", runtime.address, "--grace", "0")
            assert (done.stdout, done.stderr) == ("default:gone/eth9: released\n", "")
        finally:
            runtime.ctr("container", "rm", *names)


def test_every_round_is_another_try(lab: Lab, client: Client) -> None:
    node = lab.nodes[0]
    with namespaces(lab.plan.pod_netns("every"), 1) as (name,):
        client.attach("no-such-container", "eth0", path(name), owner="oci")
        node.kill9()
        command = ["router", "sync", "--socket", str(node.socket), "--podman", "--grace", "0", "--every", "0.2"]
        with netns.popen(
            node.netns_path, [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            try:
                assert running.stderr is not None
                assert running.stdout is not None
                assert "cannot reach the router" in running.stderr.readline()
                node.start()
                assert running.stdout.readline() == "no-such-container/eth0: released\n"
            finally:
                running.kill()


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
    for wrong in (
        (), ("--podman", "--live", "-"), ("--podman", "--owner", "x"), ("--live", "-", "--dry-run"),
        ("--live", "-", "--every", "1"), ("--podman", "--grace", "-1"),
    ):  # fmt: skip
        assert podwire_sync(node, *wrong).returncode == 2


def test_a_router_reconciles_by_itself(make_lab: Callable[..., Lab]) -> None:
    # podman leaves no namespaces to be looked for: this router sees those of others on this machine.
    asked = ("--reconcile", "podman", "--reconcile-every-s", "1", "--reconcile-grace-s", "0")
    lab = make_lab(nodes=1, pods=1, router_args=asked)
    node = lab.nodes[0]
    with node.client() as client, namespaces(lab.plan.pod_netns("self"), 1) as (name,):
        client.attach("never", "eth0", path(name), owner="oci")
        eventually(lambda: "never" not in attached(client), what="the release")
        assert lab.pods[0].sandbox_id in attached(client)
    node.stop()
    node.start()


def test_runtimes_in_words() -> None:
    assert [open_source(text).name for text in ("podman", "containerd:/run/c.sock")] == [
        "podman",
        "containerd:/run/c.sock",
    ]
    for text in ("", "docker", "containerd", "containerd:", "containerd:relative.sock", "podman:/run/p.sock"):
        with pytest.raises(ValueError, match="containerd:/PATH"):
            open_source(text)
