"""What a router gives up at its start: in every thread, for good, and nothing that it needs."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from router.kernel import capabilities, seccomp
from router.kernel.confine import FOR_LOW_PORTS, FOR_PODMAN, NEEDED
from router.wire import bpf
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.accounts import mended
from tests.crowd import namespaces, path

ROOT = Path(__file__).parent.parent
MACHINES = ("x86_64", "aarch64")
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
ALLOW, EPERM, EAFNOSUPPORT, ENOSYS = 0x7FFF0000, 0x50001, 0x50061, 0x50026
NEWUSER, NEWNET, NEWNS = 0x10000000, 0x40000000, 0x20000
NOBODY = 65534


# The filter, run by our own interpreter of classic BPF: for both architectures, whatever this machine is


def verdict(program: seccomp.Program, arch: int, number: int, *arguments: int) -> int:
    """Return what a filter says of a call. Its loads are of the machine's own byte order, those of packets big-endian."""
    words = [number, arch, 0, 0]
    for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]:
        words += [argument & 0xFFFFFFFF, argument >> 32]
    return bpf.run(program, struct.pack(">16I", *words))


@pytest.fixture(params=MACHINES)
def call(request: pytest.FixtureRequest) -> Callable[..., int]:
    machine = request.param
    column = MACHINES.index(machine)
    program, for_runtimes = seccomp.program(machine), seccomp.program(machine, mounts=True)
    numbers = {name: both[column] for name, both in {**seccomp.CALLS, **seccomp._LOOKED_INTO}.items()}

    def run(name: str, *arguments: int, mounts: bool = False) -> int:
        return verdict(for_runtimes if mounts else program, ARCHES[machine], numbers[name], *arguments)

    return run


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("mounts", [False, True])
def test_the_kernel_would_take_the_filter(machine: str, mounts: bool) -> None:
    assert bpf.check(seccomp.program(machine, mounts=mounts)) == ""


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_have_the_numbers_of_the_kernels_headers(machine: str) -> None:
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"there is no {header} here (package linux-libc-dev)")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    ours = {name: both[MACHINES.index(machine)] for name, both in {**seccomp.CALLS, **seccomp._LOOKED_INTO}.items()}
    newer = {"open_tree_attr"}  # than the headers of many machines
    assert {name: int(known[name]) if name in known else None for name in ours if name not in newer} == {
        name: number for name, number in ours.items() if name not in newer
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_named_is_refused_and_no_other(machine: str) -> None:
    column = MACHINES.index(machine)
    refused = {both[column] for both in seccomp.CALLS.values()} - {None}
    program = seccomp.program(machine)
    looked_into = {both[column] for both in seccomp._LOOKED_INTO.values()}
    for number in set(range(600)) - looked_into:
        assert verdict(program, ARCHES[machine], number) == (EPERM if number in refused else ALLOW), number


def test_calls_of_another_architecture_are_refused() -> None:
    assert verdict(seccomp.program("x86_64"), I386, 1) == EPERM
    assert verdict(seccomp.program("x86_64"), ARCHES["x86_64"], 0x40000000 | 1) == EPERM, "x32"
    assert verdict(seccomp.program("aarch64"), ARCHES["x86_64"], 1) == EPERM


def test_namespaces_but_networks_are_out_of_reach(call: Callable[..., int]) -> None:
    thread = 0x3D0F00  # as glibc makes one
    assert call("clone", thread) == ALLOW
    assert call("clone", 17) == ALLOW, "fork"
    for flag in (NEWUSER, NEWNET, NEWNS, 0x20000000, 0x08000000, 0x04000000, 0x02000000):
        assert call("clone", thread | flag) == EPERM
    assert call("clone3", 0) == ENOSYS, "glibc then uses clone, whose flags can be seen"
    assert call("unshare", NEWNET) == ALLOW
    assert call("unshare", NEWUSER | NEWNET) == EPERM
    assert call("unshare", 0x80) == EPERM, "a time namespace"
    assert call("unshare", NEWNS) == EPERM
    assert call("setns", 3, NEWNET) == ALLOW
    assert call("setns", 3, 0) == EPERM, "whatever the fd is"
    assert call("setns", 3, NEWUSER) == EPERM


def test_runtimes_need_mounts_and_nothing_else(call: Callable[..., int]) -> None:
    assert (call("mount"), call("umount2")) == (EPERM, EPERM)
    assert (call("mount", mounts=True), call("umount2", mounts=True)) == (ALLOW, ALLOW)
    assert call("unshare", NEWNS, mounts=True) == ALLOW
    assert call("unshare", NEWNS | NEWUSER, mounts=True) == EPERM
    assert call("fsmount", mounts=True) == EPERM


def test_sockets_are_of_the_families_a_router_speaks(call: Callable[..., int]) -> None:
    allowed = {family for family in range(64) if call("socket", family, 2) == ALLOW}
    assert allowed == {1, 2, 10, 16}, "AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    assert call("socket", 17, 3) == EAFNOSUPPORT


def test_nobodys_terminal_is_typed_on(call: Callable[..., int]) -> None:
    assert call("ioctl", 0, 0x5412) == EPERM
    assert call("ioctl", 5, 0x400454CA) == ALLOW, "TUNSETIFF"


# The kernel does as it was told: in a process of its own, which nothing gives its rights back


def in_child(script: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_CALL_EACH = """
import ctypes, json, platform
from router.kernel import seccomp
column = ("x86_64", "aarch64").index(platform.machine())
{before}
libc, found = ctypes.CDLL(None, use_errno=True), {{}}
for name, both in seccomp.CALLS.items():
    if both[column] is not None and name not in ("vhangup", "sysfs"):  # vhangup takes no argument that could be wrong
        bad = ctypes.c_long(-1)
        found[name] = libc.syscall(both[column], bad, bad, bad, bad, bad, bad) < 0 and ctypes.get_errno()
print(json.dumps(found))
"""


def test_forbidden_calls_fail_in_the_kernel() -> None:
    """Without capabilities given up, so that it is the filter that refuses; and as root gets other errors without it."""
    filtered = in_child(_CALL_EACH.format(before="seccomp.put_in_force(mounts=False)"))
    assert len(filtered) > 40
    assert set(filtered.values()) == {1}, filtered
    free = in_child(_CALL_EACH.format(before=""))
    assert sum(code == 1 for code in free.values()) < len(free) / 3, (
        "these calls fail by themselves: they prove nothing"
    )


_HELD = """
import json, threading
from router.kernel import capabilities, confine
from router.values import Switch
{before}
failures = confine.confine(Switch.AUTO{how})
held = []
thread = threading.Thread(target=lambda: held.extend(capabilities.held_by_threads()))
thread.start(); thread.join()
print(json.dumps({{"failures": failures, "held": held, "said": confine.in_force()}}))
"""


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("", {*NEEDED}),
        (", low_ports=True", {*NEEDED, *FOR_LOW_PORTS}),
        (", runtimes=['podman']", {*NEEDED, *FOR_PODMAN}),
        (", runtimes=['containerd:/x']", {*NEEDED}),
    ],
)
def test_every_set_is_cut(how: str, wanted: set[str]) -> None:
    found = in_child(_HELD.format(before="", how=how))
    assert found["failures"] == []
    assert len(found["held"]) == 2
    bits = capabilities.bits(wanted)
    for held in found["held"]:
        assert capabilities.Held(*held) == capabilities.Held(bits, bits, 0, bits, 0, True, True)
    names = ", ".join(capabilities.names(bits))
    assert found["said"] == f"capabilities {names}; system calls filtered; no new privileges"


def test_a_thread_that_was_there_before_is_told_of() -> None:
    """Capabilities are a thread's own: what is said of the process is what its weakest thread holds."""
    before = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    found = in_child(_HELD.format(before=before, how=""))
    assert found["said"].startswith("capabilities not cut; system calls filtered")


_RUN = """
import json, subprocess, sys
from router.kernel import confine
from router.values import Switch
assert confine.confine(Switch.ON) == ()
words = ["sh", "-c", "grep -E '^(Cap(Prm|Bnd)|Seccomp|NoNewPrivs):' /proc/self/status"]
print(json.dumps(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
"""


def test_what_is_run_gets_nothing_back() -> None:
    """Root gets every capability of its bounding set when it runs a program: so that one is cut too."""
    found = dict(line.split(":\t") for line in in_child(_RUN).splitlines())
    bits = f"{capabilities.bits(NEEDED):016x}"
    assert found == {"CapPrm": bits, "CapBnd": bits, "NoNewPrivs": "1", "Seccomp": "2"}


_WITHOUT_SETPCAP = """
import ctypes, json
from router.errors import Refusal
from router.kernel import capabilities, confine
from router.values import Switch
import struct
libc = ctypes.CDLL(None, use_errno=True)
header, now = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
assert libc.capget(header, now) == 0
sets = list(struct.unpack("=6I", now.raw))
sets[0] &= ~(1 << 8); sets[1] &= ~(1 << 8)
assert libc.capset(header, struct.pack("=6I", *sets)) == 0
try:
    failures = confine.confine(Switch.{switch})
    print(json.dumps([failures, confine.in_force(), list(capabilities.held_by_threads())]))
except Refusal as refusal:
    print(json.dumps(refusal.message))
"""


def test_what_cannot_be_given_up_is_said() -> None:
    failures, said, (held,) = in_child(_WITHOUT_SETPCAP.format(switch="AUTO"))
    assert (
        "capabilities are not all given up: cannot take chown from the bounding set (Operation not permitted)"
        in failures[0]
    )
    assert said == "capabilities not cut; system calls filtered; no new privileges"
    bits = capabilities.bits(NEEDED)
    assert (held[0], held[1]) == (bits, bits), "what it could give up it did"


def test_or_refused() -> None:
    refused = in_child(_WITHOUT_SETPCAP.format(switch="ON"))
    assert refused.startswith("the router cannot be confined here: capabilities are not all given up")
    assert "--confine auto" in refused


def test_an_architecture_without_a_table_is_said() -> None:
    script = f"import platform; platform.machine = lambda: 'riscv64'\n{_HELD.format(before='', how='')}"
    found = in_child(script)
    assert found["failures"] == ["system calls are not filtered: there is no table of them for riscv64"]
    assert found["said"].endswith("system calls not filtered; no new privileges")


def test_off_says_so() -> None:
    script = "import json; from router.kernel import confine; from router.values import Switch\n"
    script += "print(json.dumps([confine.confine(Switch.OFF), confine.in_force()]))"
    (failure,), said = in_child(script)
    assert "switched off" in failure
    assert said == "capabilities not cut; system calls not filtered; new privileges possible"


# The real daemon


@pytest.fixture
def node(shared_lab: Lab) -> Iterator[LabNode]:
    with mended(shared_lab) as lab:
        yield lab.nodes[0]


@pytest.mark.netns
def test_every_thread_of_a_router_is_confined(node: LabNode) -> None:
    tasks = [(task / "status").read_text() for task in Path(f"/proc/{node.pid}/task").iterdir()]
    assert len(tasks) > 3
    bits = f"{capabilities.bits(NEEDED):016x}"
    nothing = f"{0:016x}"
    for status in tasks:
        found = dict(line.split(":\t") for line in status.splitlines())
        sets = [found[f"Cap{which}"] for which in ("Eff", "Prm", "Bnd", "Inh", "Amb")]
        assert sets == [bits, bits, bits, nothing, nothing], found["Name"]
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2"), found["Name"]
    with node.client() as client:
        assert client.status().confinement == (
            "capabilities dac_read_search, net_admin, net_raw, sys_ptrace, sys_admin; system calls filtered; "
            "no new privileges"
        )


@contextmanager
def anothers_namespace() -> Iterator[int]:
    """Run a process of another user, in a user and a network namespace of its own, as a rootless container is."""
    script = (
        "import ctypes, os, sys, time\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"assert ctypes.CDLL(None).unshare({NEWUSER | NEWNET}) == 0\n"
        "print(flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.netns
def test_a_confined_router_attaches_what_is_another_users(node: LabNode, tmp_path: Path) -> None:
    """By its process, and by a path through a directory that is the user's alone."""
    private = tmp_path / "user"
    private.mkdir()
    with anothers_namespace() as pid, node.client() as client:
        (private / "netns").symlink_to(f"/proc/{pid}/ns/net")
        os.chown(private, NOBODY, NOBODY)
        private.chmod(0o700)
        for name, way in (("process", f"/proc/{pid}/ns/net"), ("path", str(private / "netns"))):
            made = client.attach("rootless", f"eth-{name[:4]}", way)
            assert len(made.addresses) == 2
            try:
                shown = Path(f"/proc/{pid}/net/dev").read_text()
                assert made.key.if_name in shown
                assert client.check("rootless", made.key.if_name).addresses == made.addresses
            finally:
                assert client.detach("rootless", made.key.if_name)
            assert made.key.if_name not in Path(f"/proc/{pid}/net/dev").read_text()


@pytest.mark.netns
def test_a_router_may_be_left_unconfined(node: LabNode) -> None:
    before = node.router_args
    try:
        node.router_args = (*before, "--confine", "off")
        node.restart()
        with node.client() as client:
            assert client.status().confinement.startswith("capabilities not cut; system calls not filtered")
    finally:
        node.router_args = before
        node.restart()


_REMOVE = """
import json, sys
from pathlib import Path
from router.kernel import confine
from router.values import Switch
from shim.containerd import netns
from shim.runtimes import abandoned
assert confine.confine(Switch.ON, runtimes={runtimes}) == ()
found = []
for path in {paths}:
    found.append(abandoned._is_empty(Path(path)))
    try:
        netns.remove(path)
    except OSError as error:
        found.append(error.strerror)
print(json.dumps(found))
"""


@pytest.mark.netns
def test_a_router_that_asks_runtimes_looks_into_what_they_left_and_removes_it() -> None:
    """`ip -netns` makes a mount of its own, and removing a namespace's name unmounts it."""
    with namespaces(f"pwconf-{os.getpid()}-", 2) as (empty, used):
        for words in (["tuntap", "add", "d0", "mode", "tun"], ["link", "set", "d0", "up"]):
            assert netns.run(netns.path_of(used), ["ip", *words]).returncode == 0
        paths = [path(empty), path(used)]
        refused = in_child(_REMOVE.format(runtimes=[], paths=paths[:1]))
        assert refused[1:] == ["Device or resource busy"], "it can be removed anyway: this proves nothing"
        assert in_child(_REMOVE.format(runtimes=["containerd:/x"], paths=paths)) == [True, False]
        assert not any(Path(each).exists() for each in paths)


# What is said of it


def test_the_threat_model_names_files_that_are_there() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / "docs" / path).exists()] == []


def test_the_threat_model_names_every_capability_that_stays() -> None:
    text = (ROOT / "docs/security.md").read_text()
    for name in {*NEEDED, *FOR_LOW_PORTS, *FOR_PODMAN}:
        assert f"`CAP_{name.upper()}`" in text
