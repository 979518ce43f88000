"""A router takes over from another: nothing is lost, counters go on, and whoever dies on the way, the work is done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from router.engine.interface import EngineCounters
from router.errors import Kind, Refusal
from router.model import AttachmentKey, DropReason, Endpoint, Tally
from router.takeover import counts
from router.takeover.channel import MOST_FDS, PROTOCOL, Channel, Gone, Process
from router.takeover.gate import Gate
from router.takeover.predecessor import Predecessor, door_of
from shim.client import ClientError
from shim.lab import Lab, netns
from shim.lab.errors import LabError
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, counters, eventually
from tests.flows import Flows, Outcome

ROOT = Path(__file__).resolve().parent.parent
_DYING = (sys.executable, str(ROOT / "tests/dying_router.py"))
_FLOWS = 8

# The connection


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


class Recorder:
    """An owner that does nothing, and remembers what it was to do."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {"estate": ({"offloads": {}}, {}, 0), "counters": {}}

        def do(*_: object) -> Any:
            self.did.append(name)
            return answers.get(name)

        return do


def test_a_router_that_is_told_to_end_takes_nothing_back(tmp_path: Path) -> None:
    """Its successor goes on with what it read, and its engine must be the only one."""
    owner = Recorder()
    predecessor = Predecessor(tmp_path / "s", owner, lambda _: None, lambda: None)
    predecessor.claim()
    predecessor.start()
    asking = socket.socket(socket.AF_UNIX)
    asking.connect(str(door_of(tmp_path / "s")))
    successor = Channel(asking)
    try:
        successor.send("hello", protocol=PROTOCOL)
        successor.receive("estate", timeout_s=5)
        for fd in successor.take():
            os.close(fd)
        successor.send("ready")
        successor.receive("stopped", timeout_s=5)
        successor.send("running")
        successor.receive("counters", timeout_s=5)
        predecessor.stop()
        with pytest.raises(Gone):
            successor.receive("kept", timeout_s=5)
        assert owner.did == ["check", "freeze", "estate", "stop_engine", "counters"]
    finally:
        predecessor.stop()
        successor.close()


def test_of_a_process_that_cannot_be_seen_nobody_says_that_it_ended() -> None:
    unseen = Process(0)  # what SO_PEERCRED says of one in another pid namespace
    assert not unseen.ended(0)
    child = subprocess.Popen(["true"])
    child.wait()
    assert Process(child.pid).ended(0)


def test_a_message_and_its_fds_arrive(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    other = Channel(theirs.dup())
    read_fd, write_fd = os.pipe()
    try:
        channel.send("fds", [read_fd] * MOST_FDS, names=["ä"])
        assert other.receive("fds", timeout_s=5) == {"say": "fds", "names": ["ä"]}
        taken = other.take()
        assert len(set(taken)) == MOST_FDS
        os.write(write_fd, b"x")
        assert os.read(taken[-1], 1) == b"x"
        assert not any(os.get_inheritable(fd) for fd in taken)
        for fd in taken:
            os.close(fd)
    finally:
        os.close(read_fd)
        os.close(write_fd)
        other.close()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "it has ended"),
        (b"\0\0\0", "it has ended"),
        (b"\xff\xff\xff\xff\0\0\0\0", "4294967295 bytes"),
        (b"\0\0\0\x02\0\0\xff\xff{}", "65535 fds"),
        (b"\0\0\0\x02\0\0\0\x01{}", "1 fds were sent, and 0 came"),
        (b"\0\0\0\x02\0\0\0\0{}", "None"),
        (b"\0\0\0\x02\0\0\0\0[]", "says"),
        (b"\0\0\0\x03\0\0\0\0\xff\xfe\xfd", "says"),
        (b"\0\0\0\x0d\0\0\0\0" + b'{"say":"leave"}'[:13], "says"),
        (b"\0\0\0\x0f\0\0\0\0" + b'{"say":"leave"}', "not ready"),
        (b"\0\x01\0\0\0\0\0\0" + b"[" * 65536, "says"),
    ],
)
def test_what_is_no_message_ends_the_talk(pair: tuple[Channel, socket.socket], sent: bytes, said: str) -> None:
    channel, theirs = pair
    theirs.sendall(sent)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Gone, match=said.replace("[", r"\[")):
        channel.receive("ready", timeout_s=5)


def test_who_says_nothing_is_not_waited_for(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b"\0\0\0\x0f")
    with pytest.raises(Gone, match="does not answer"):
        channel.receive("ready", timeout_s=0.05)


def test_fds_nobody_takes_are_closed(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    other = Channel(theirs.dup())
    read_fd, write_fd = os.pipe()
    other.send("fds", [write_fd])
    os.close(write_fd)
    channel.receive("fds", timeout_s=5)
    other.close()
    channel.close()
    assert os.read(read_fd, 1) == b"", "the other end is closed everywhere"
    os.close(read_fd)


# The gate


def test_a_gate_lets_those_inside_out_and_nobody_in() -> None:
    gate = Gate()
    left = threading.Event()
    inside = threading.Event()

    def change() -> None:
        with gate.passing():
            inside.set()
            left.wait(5)

    thread = threading.Thread(target=change)
    thread.start()
    assert inside.wait(5)
    with pytest.raises(Refusal, match="1 changes did not end"):
        gate.close(0.05)
    with pytest.raises(Refusal) as refused, gate.passing():
        pytest.fail("it is closed")
    assert refused.value.kind is Kind.UNAVAILABLE
    left.set()
    gate.close(5)
    thread.join()
    gate.open()
    with gate.passing():
        pass


# Counters


def test_counters_arrive_as_they_were_sent() -> None:
    tally = Tally(1, 2, 3, 4, 5, {DropReason.TOO_BIG: 6}, 7, 8, 9, 10)
    sent = EngineCounters(
        {AttachmentKey("sandbox/1", "eth0"): tally, AttachmentKey("b", "eth1"): Tally()},
        {Endpoint(ip_address("192.0.2.1"), 6081): tally, Endpoint(ip_address("2001:db8::1"), 7): Tally(sent_packets=1)},
        tally, tally, 11, 12, 13, (1, 2, 3),
    )  # fmt: skip
    text = json.dumps(counts.encode(sent))
    assert counts.decode(json.loads(text)) == sent
    with pytest.raises(ValueError, match="[Zz]ip|arg"):
        counts.decode(json.loads(text.replace("[1, 2, 3, 4, 5, 7", "[1, 2, 3, 4, 5, 5, 7")))


def test_a_reason_this_version_does_not_know_keeps_the_balance() -> None:
    found = counts.encode(EngineCounters({}, {}, Tally(2, dropped={DropReason.TOO_BIG: 2}), Tally()))
    found["strangers"][-1] = {"too_small": 2}
    assert counts.decode(found).strangers.balance == 0


# Routers. At every step one or the other dies in tests/conformance/test_takeover_load.py.


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=1)
    for node in made.nodes:
        node.program, node.router_args = (sys.executable, "-m", "router"), ()
        if node.pid is None:
            node.start()
    yield made
    for node in made.nodes:
        node.program, node.router_args = (sys.executable, "-m", "router"), ()
    assert_balanced(made)


def flows(lab: Lab, each: int = _FLOWS) -> Flows:
    return Flows(lab.pods[0], lab.pods[1], each)


def nothing_lost(outcome: Outcome) -> None:
    assert outcome.sent > 0
    assert (outcome.lost, outcome.doubled, outcome.disordered) == ((), (), 0)


def received(node: LabNode) -> dict[str, int]:
    found = counters(node)
    return {str(each.key): each.tally.received_packets for each in found.attachments}


def log_of(node: LabNode, since: int) -> str:
    return node.log_path.read_text()[since:]


@pytest.mark.netns
def test_nothing_is_lost_whichever_engine_takes_over_from_which(lab: Lab) -> None:
    node = lab.nodes[0]
    epoch, before = counters(node).epoch, received(node)
    with flows(lab) as running:
        time.sleep(0.5)
        for engine in ("python", "native"):
            node.router_args = ("--engine", engine)
            pid = node.pid
            node.take_over()
            assert node.pid not in (pid, None)
            with node.client() as client:
                assert client.status().engine == engine
        outcome = running.finish()
    nothing_lost(outcome)
    assert counters(node).epoch == epoch, "counters go on"
    after = received(node)
    assert after.keys() == before.keys()
    own = next(name for name in after if "podwire0" not in name)
    assert after[own] - before[own] >= outcome.sent / 4, "what was sent before is counted too"
    with lab.nodes[1].client() as client:
        assert "peer_down" not in {event.kind.lower() for event in client.watch_events(0, follow=False)}


@pytest.mark.netns
@pytest.mark.parametrize("step", ["relieved", "made"])
def test_a_successor_that_dies_changes_nothing(lab: Lab, step: str) -> None:
    dies_as_successor(lab, step)


@pytest.mark.netns
def test_a_successor_that_could_not_listen_is_refused_before_it_has_anything(lab: Lab) -> None:
    node = lab.nodes[0]
    pid, before, since = node.pid, node.router_args, node.log_path.stat().st_size
    node.router_args = (*before, "--web-listen", "192.0.2.77:9081", "--web-remote")
    try:
        with flows(lab) as running:
            with pytest.raises(LabError, match="was not succeeded"):
                node.take_over()
            nothing_lost(running.finish())
    finally:
        node.router_args = before
    assert node.pid == pid
    assert "--web-listen 192.0.2.77:9081: cannot listen there" in node.log_path.read_text()[since:]
    node.take_over()


def dies_as_successor(lab: Lab, step: str) -> None:
    node = lab.nodes[0]
    pid, epoch, since = node.pid, counters(node).epoch, node.log_path.stat().st_size
    with flows(lab) as running:
        node.program = (*_DYING, step)
        with pytest.raises(LabError, match="was not succeeded"):
            node.take_over()
        node.program = (sys.executable, "-m", "router")
        eventually(lambda: step == "knocked" or "this router goes on" in log_of(node, since), what="its taking back")
        assert (node.pid, counters(node).epoch) == (pid, epoch)
        pod = lab.add_pod(node)  # it changes things again
        lab.remove_pod(pod)
        nothing_lost(running.finish())


@pytest.mark.netns
@pytest.mark.parametrize("step", ["stopped"])
def test_a_predecessor_that_dies_is_succeeded_all_the_same(lab: Lab, step: str) -> None:
    dies_as_predecessor(lab, step)


def dies_as_predecessor(lab: Lab, step: str) -> None:
    node = lab.nodes[0]
    node.stop()
    node.program = (*_DYING, step)
    node.start()
    node.program = (sys.executable, "-m", "router")
    with flows(lab) as running:
        node.take_over()
        outcome = running.finish()
    if step not in ("asked", "frozen", "half-way"):  # those that are not handed over are a crash
        nothing_lost(outcome)
    assert not [lost for lost in outcome.lost if lost.startswith("tcp")]
    pod = lab.add_pod(node)
    lab.remove_pod(pod)


@pytest.mark.netns
def test_who_cannot_be_the_successor_is_told_in_one_line(lab: Lab, tmp_path: Path) -> None:
    node = lab.nodes[0]
    pid = node.pid
    command = [*node._command(), "--takeover"]
    wrong = {
        "--node": ("other", "node is n1"),
        "--state-dir": (str(tmp_path), "state directory is"),
        "--engine": ("warp", "engine"),
    }
    for flag, (value, said) in wrong.items():
        done = node.run([*command, flag, value], cwd=ROOT, timeout=30)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert said in done.stderr
    with netns.call(node.netns_path, lambda: socket.socket(socket.AF_UNIX)) as stranger:
        stranger.connect(str(door_of(node.socket)))
        stranger.sendall(b"\0\0\0\x20\0\0\0\0" + json.dumps({"say": "hello", "protocol": 99}).encode().ljust(32))
        assert b"protocol 1, not 99" in stranger.recv(4096)
    assert door_of(node.socket).stat().st_mode & 0o777 == 0o600
    assert node.pid == pid
    node.take_over()


@pytest.mark.netns
def test_without_a_router_it_starts_as_ever_and_says_so(lab: Lab) -> None:
    node = lab.nodes[0]
    node.kill9()
    since = node.log_path.stat().st_size
    node.router_args = ("--takeover",)
    node.start()
    assert "no router runs at" in log_of(node, since)


@pytest.mark.netns
def test_control_is_away_for_a_moment_at_most(lab: Lab) -> None:
    """Changes are refused while the successor makes itself ready, and what was answered holds."""
    node = lab.nodes[0]
    names = [f"{lab.plan.pod_netns('over')}{index}" for index in range(2)]
    codes: set[str] = set()
    stopping = threading.Event()
    done = [0]

    def churn(name: str) -> None:
        while not stopping.is_set():
            for change in ("attach", "detach"):
                try:
                    with node.client() as client:
                        if change == "attach":
                            client.attach(name, "eth0", str(netns.path_of(name)))
                        else:
                            client.detach(name, "eth0")
                        done[0] += 1
                except ClientError as error:
                    codes.add(error.code)
                time.sleep(0.05)  # addresses rest for a minute, and there are 250

    with ExitStack() as stack:
        for name in names:
            netns.create(name, {})
            stack.callback(netns.delete, name)
        threads = [threading.Thread(target=churn, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                before = done[0]
                eventually(lambda before=before: done[0] > before + 4, what="changes")  # type: ignore[misc]
                node.take_over()
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        assert codes <= {"UNAVAILABLE"}
        with node.client() as client:
            for name in names:
                client.detach(name, "eth0")
        assert [name for name in names if "eth0" in netns.run(netns.path_of(name), ["ip", "-o", "link"]).stdout] == []


@pytest.mark.netns
def test_a_successor_leaves_what_it_must_share_in_order(lab: Lab) -> None:
    """The lock names the one that runs, its state is in no other's hands, and no fd of its predecessor is left."""
    node = lab.nodes[0]
    node.take_over()
    fds = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    for _ in range(2):
        node.take_over()
    assert (node.state_dir / "lock").read_text().strip() == str(node.pid)
    assert abs(len(list(Path(f"/proc/{node.pid}/fd").iterdir())) - fds) <= 3
    second = node.run([*node._command(), "--socket", str(node.socket.parent / "other.sock")], cwd=ROOT, timeout=30)
    assert f"in use by another router (pid {node.pid})" in second.stderr
    leftovers = {path.name for path in node.socket.parent.iterdir() if path.name.startswith(".")}
    assert leftovers == set()


def test_help_names_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "router", "router", "run", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--takeover" in done.stdout
