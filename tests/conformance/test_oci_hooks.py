"""Containers of a runtime without CNI: real podman and runc, with our hook at createRuntime and poststop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shim import launchers
from shim.lab import Lab
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, eventually
from tests.conformance.containerd_rig import IMAGE, unmount_below
from tests.conformance.images import busybox, image_tar
from tests.crowd import namespaces, path

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]

_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
hooks_dir = ["{root}/hooks"]
"""


@dataclass
class Podman:
    """podman with a storage of its own, in the namespace of a node."""

    node: LabNode
    root: Path
    hook: Path
    prefix: str
    """Of names of namespaces."""

    @property
    def places(self) -> tuple[str, ...]:
        return ("--root", f"{self.root}/storage", "--runroot", f"{self.root}/run", "--storage-driver", "vfs")

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environ = os.environ | {
            "CONTAINERS_CONF": str(self.root / "containers.conf"),
            "PODWIRE_SOCKET": str(self.node.socket),
        }
        return self.node.run(
            ["podman", *self.places, "--cgroup-manager", "cgroupfs", *words], env=environ, timeout=100, **options
        )

    def run(self, name: str, *flags: str, command: tuple[str, ...] = ("sleep", "1000000")) -> Any:
        annotation = ("--annotation", "io.podwire.attach=true")
        return self(
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            *annotation,
            *flags,
            IMAGE,
            *command,
        )


@pytest.fixture(scope="module")
def podman(make_lab: Callable[..., Lab]) -> Iterator[Podman]:
    lab = make_lab(nodes=1, pods=1, router_args=("--address-rest-s", "0"))
    root = Path(tempfile.mkdtemp(prefix="podman"))  # podman takes no longer path than 50 characters
    (root / "hooks").mkdir()
    (hook,) = launchers.write(root, ["podwire-oci-hook"])
    for stage in ("createRuntime", "poststop"):
        environ = [f"PODWIRE_SOCKET={lab.nodes[0].socket}", f"PODWIRE_SHIM_LOG={root}/hook.log"]
        content = {
            "version": "1.0.0",
            "hook": {"path": str(hook), "args": [hook.name, stage], "env": environ},
            "when": {"annotations": {"^io\\.podwire\\.attach$": "^true$"}},
            "stages": [stage],
        }
        (root / "hooks" / f"podwire-{stage}.json").write_text(json.dumps(content))
    (root / "containers.conf").write_text(_CONF.format(root=root))
    made = Podman(lab.nodes[0], root, hook, lab.plan.pod_netns("oci"))
    image = root / "image.tar"
    image.write_bytes(image_tar(IMAGE, {"bin/busybox": busybox()}, ("sleep", "ip", "ping", "sh")))
    done = made("load", "-i", str(image))
    assert done.returncode == 0, done.stderr
    yield made
    made("rm", "-af", "-t", "0")
    unmount_below(root)
    shutil.rmtree(root, ignore_errors=True)
    assert_balanced(lab)


@pytest.fixture
def clean(podman: Podman) -> Iterator[None]:
    if podman.node.pid is None:
        podman.node.start()
    before = attached(podman)
    yield
    podman("rm", "-af", "-t", "0")
    eventually(lambda: attached(podman) == before, what="nothing left")


def attached(podman: Podman) -> dict[str, tuple[str, ...]]:
    with podman.node.client() as client:
        found = client.attachments()
    return {each.key.sandbox_id: tuple(text.partition("/")[0] for text in each.addresses) for each in found}


@pytest.mark.usefixtures("clean")
def test_a_container_gets_its_address(podman: Podman) -> None:
    done = podman.run("web", "--annotation", "io.podwire.ips=10.42.1.66")
    assert done.returncode == 0, done.stderr
    container_id = done.stdout.strip()
    addresses = attached(podman)[container_id]
    assert addresses[0] == "10.42.1.66"
    shown = podman("exec", "web", "ip", "addr", "show", "dev", "eth0").stdout
    assert all(address in shown for address in addresses)
    for address in addresses:
        assert podman.node.run(["ping", "-c1", "-W3", address]).returncode == 0
    assert podman("stop", "-t", "0", "web").returncode == 0
    eventually(lambda: container_id not in attached(podman), what="the release")
    assert podman("start", "web").returncode == 0, "the same id again"
    assert container_id in attached(podman)


@pytest.mark.usefixtures("clean")
def test_podman_is_asked_what_it_has(podman: Podman, tmp_path: Path) -> None:
    """A container that was only made, one that ended, and the one that keeps a pod's network count too."""
    made = podman("create", "--name", "made", "--network", "none", IMAGE).stdout.strip()
    ended = podman("run", "-d", "--name", "ended", "--network", "none", IMAGE, "sleep", "0").stdout.strip()
    pod = podman("pod", "create", "--name", "pod", "--network", "none", "--infra-image", IMAGE)
    assert pod.returncode == 0, pod.stderr
    infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", "pod").stdout.strip()
    known = {made, ended, infra}
    assert all(len(container_id) == 64 for container_id in known)
    # The real podman, told of its storage.
    (tmp_path / "podman").write_text(f'#!/bin/sh\nexec {shutil.which("podman")} {" ".join(podman.places)} "$@"\n')
    (tmp_path / "podman").chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "router", "sync", "--socket", str(podman.node.socket), "--podman", "--grace", "0"]
    with namespaces(podman.prefix, 4) as names, podman.node.client() as client:
        for container_id, name in zip((*known, "0" * 64), names, strict=True):
            client.attach(container_id, "eth0", path(name), owner="oci")
        before = set(attached(podman))
        done = podman.node.run(command, env=environ, cwd=ROOT, timeout=60)
        assert (done.returncode, done.stdout) == (0, f"{'0' * 64}/eth0: released\n"), done.stderr
        assert before - set(attached(podman)) == {"0" * 64}
        for container_id in known:
            client.detach(container_id, "eth0")
    podman("pod", "rm", "-f", "-t", "0", "pod")


@pytest.mark.usefixtures("clean")
def test_a_router_restart_keeps_the_container(podman: Podman) -> None:
    container_id = podman.run("web").stdout.strip()
    addresses = attached(podman)[container_id]
    podman.node.kill9()
    podman.node.start()
    assert attached(podman)[container_id] == addresses
    assert podman.node.run(["ping", "-c1", "-W3", addresses[0]]).returncode == 0


@pytest.mark.usefixtures("clean")
def test_a_container_whose_monitor_is_killed_too_is_released(podman: Podman) -> None:
    """Nobody is left to run poststop."""
    container_id = podman.run("web").stdout.strip()
    state = json.loads(podman("inspect", "web").stdout)[0]["State"]
    for pid in (state["ConmonPid"], state["Pid"]):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: container_id not in attached(podman), what="the release")


@pytest.mark.usefixtures("clean")
def test_a_refusal_stops_the_container_and_leaves_nothing(podman: Podman) -> None:
    before = attached(podman)
    for name, ips in (("bad", "10.99.0.1"), ("worse", "nonsense")):
        done = podman.run(name, "--annotation", f"io.podwire.ips={ips}")
        assert done.returncode != 0
        assert ips in done.stderr
    assert attached(podman) == before


@pytest.mark.usefixtures("clean")
def test_a_container_that_joins_another_gets_what_is_there(podman: Podman) -> None:
    first = podman.run("web").stdout.strip()
    before = attached(podman)
    annotation = ("--annotation", "io.podwire.attach=true")
    joined = ("--network", "container:web")
    done = podman("run", "--rm", "--name", "side", *joined, *annotation, IMAGE, "ip", "addr")
    assert done.returncode == 0, done.stderr
    assert before[first][0] in done.stdout
    assert attached(podman) == before


@pytest.mark.usefixtures("clean")
def test_the_router_is_down_when_it_stops(podman: Podman) -> None:
    container_id = podman.run("web").stdout.strip()
    podman.node.kill9()
    assert podman("rm", "-f", "-t", "0", "web").returncode == 0
    podman.node.start()
    assert container_id not in attached(podman)


@pytest.mark.parametrize(
    ("stage", "state", "words"),
    [
        ("createRuntime", b"", "JSON"),
        ("createRuntime", b"[]", "JSON with an id"),
        ("createRuntime", b'{"id": "x"}', "no process yet"),
        ("createRuntime", b'{"id": "x", "pid": 1, "bundle": "/nowhere"}', "config.json"),
        ("poststop", b"{}", "JSON with an id"),
        ("start", b"{}", "createRuntime|poststop"),
    ],
)
def test_what_makes_no_sense_is_said(podman: Podman, stage: str, state: bytes, words: str) -> None:
    environ = {"PODWIRE_SOCKET": str(podman.node.socket), "PODWIRE_SHIM_LOG": str(podman.root / "hook.log")}
    done = subprocess.run([podman.hook, stage], input=state, env=environ, capture_output=True, timeout=60, check=False)
    assert done.returncode == (2 if stage == "start" else 1)
    assert words in done.stderr.decode()
    assert done.stdout == b""
