"""systemd's store of fds, played by the test: what is in it outlives a kill -9, and packets wait in it."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from router.kernel import tun
from router.model import Offloads
from router.takeover.fdstore import FdStore, inherited
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, counters, eventually
from tests.flows import Flows

_MOST = 64
_TUNGETIFF = 0x800454D2  # linux/if_tun.h
_RUN = (
    "import os,sys; fds=[int(n) for n in sys.argv[1].split(',') if n]; "
    "high=[os.dup2(fd, 100+at) for at,fd in enumerate(fds)]; [os.dup2(fd, 3+at) for at,fd in enumerate(high)]; "
    "[os.close(fd) for fd in high]; os.environ['LISTEN_PID']=str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
)
"""What systemd does between fork and exec: fds from 3 on, and whose they are."""


class Systemd:
    """Keeps what it is sent, and starts the router of a node with it."""

    def __init__(self, node: LabNode, directory: Path) -> None:
        self._node = node
        self.path = directory / "notify"
        self.said: list[str] = []
        self.stored: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                data, rights, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4 * 8))
                if not data:
                    return
                fds = array.array("i", b"".join(raw for _, _, raw in rights))
                lines = dict(line.split("=", 1) for line in data.decode().splitlines())
                name = lines.get("FDNAME", "")
                if lines.get("FDSTORE") == "1":
                    (fd,) = fds
                    if name in self.stored:
                        os.close(fd)  # as systemd does with one that it has
                    else:
                        self.stored[name] = fd
                elif lines.get("FDSTOREREMOVE") == "1":
                    os.close(self.stored.pop(name))
                self.said.append(data.decode())

    def start(self) -> None:
        """Start the node's router with what is stored."""
        given = dict(self.stored)
        self._node.program = (
            sys.executable, "-c", _RUN, ",".join(map(str, given.values())), sys.executable, "-m", "router",
        )  # fmt: skip
        os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"] = str(len(given)), ":".join(given)
        os.environ["NOTIFY_SOCKET"], os.environ["FDSTORE"] = str(self.path), str(_MOST)
        for fd in given.values():
            os.set_inheritable(fd, True)
        popen = netns.popen

        def with_fds(path: Path, command: list[str], **options: object) -> object:
            return popen(path, command, close_fds=False, **options)

        netns.popen = with_fds  # type: ignore[assignment]
        try:
            self._node.start()
        finally:
            netns.popen = popen
            for name in ("LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "FDSTORE"):
                del os.environ[name]
            for fd in given.values():
                with suppress(OSError):  # the router did not want it
                    os.set_inheritable(fd, False)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        for fd in self.stored.values():
            os.close(fd)


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=1)
    yield made
    for node in made.nodes:
        if node.program != (sys.executable, "-m", "router"):
            if node.pid is not None:
                node.stop()
            node.program = (sys.executable, "-m", "router")
        if node.pid is None:
            node.start()
    assert_balanced(made)


@pytest.fixture
def systemd(lab: Lab, tmp_path: Path) -> Iterator[Systemd]:
    lab.nodes[0].stop()
    made = Systemd(lab.nodes[0], tmp_path)
    yield made
    lab.nodes[0].kill9()
    made.close()


@pytest.mark.netns
def test_packets_wait_in_the_store_while_a_killed_router_starts_again(lab: Lab, systemd: Systemd) -> None:
    node = lab.nodes[0]
    systemd.start()
    eventually(lambda: len(systemd.stored) == 3, what="the Pod, podwire0 and the socket in the store")
    assert any(said.startswith("READY=1") for said in systemd.said)
    kept = {name: os.fstat(fd).st_ino for name, fd in systemd.stored.items()}
    with Flows(lab.pods[0], lab.pods[1], 4) as flows:
        time.sleep(0.5)
        for ending in (signal.SIGKILL, signal.SIGTERM):
            assert node.pid is not None
            os.kill(node.pid, ending)
            eventually(lambda: node.pid is None, what="its end")
            systemd.start()
        outcome = flows.finish()
    assert (outcome.lost, outcome.doubled, outcome.disordered) == ((), (), 0)
    assert {name: os.fstat(fd).st_ino for name, fd in systemd.stored.items()} == kept
    assert "STOPPING=1" in systemd.said
    assert "not used" not in node.log_path.read_text()


@pytest.mark.netns
def test_a_pod_that_is_detached_leaves_the_store_and_its_device_is_gone(lab: Lab, systemd: Systemd) -> None:
    node = lab.nodes[0]
    systemd.start()
    pod = lab.add_pod(node)
    eventually(lambda: len(systemd.stored) == 4, what="the new Pod in the store")
    with node.client() as client:
        client.detach(pod.sandbox_id, "eth0")
        assert pod.run(["ip", "link", "show", "eth0"]).returncode != 0, "gone when the answer is there"
    eventually(lambda: len(systemd.stored) == 3, what="its leaving the store")
    lab.remove_pod(pod)


@pytest.mark.netns
def test_fds_of_others_are_not_used(lab: Lab, systemd: Systemd) -> None:
    """A socket that is bound elsewhere, a TUN of another namespace, a file, and a name we never gave."""
    node = lab.nodes[0]
    systemd.start()
    eventually(lambda: len(systemd.stored) == 3, what="the store")
    node.kill9()
    since = node.log_path.stat().st_size
    kept = systemd.stored
    (pod_name,) = (name for name, fd in systemd.stored.items() if name.startswith("tun-") and not _is_node_tun(fd))
    uplink = next(name for name in kept if name.startswith("tun-") and name != pod_name)
    name = lab.plan.pod_netns("foreign")
    netns.create(name, {})
    with ExitStack() as stack:
        stack.callback(netns.delete, name)
        foreign_fd = tun.create(str(netns.path_of(name)), "eth0", tun.Dress((), (), (), 1400), Offloads())
        elsewhere = stack.enter_context(netns.open_socket(node.netns_path, socket.AF_INET, socket.SOCK_DGRAM))
        elsewhere.bind(("127.0.0.1", 0))
        for fd in kept.values():  # or their devices and address would be busy
            os.close(fd)
        wrong = {pod_name: foreign_fd, uplink: os.open("/dev/null", os.O_RDWR), "underlay": os.dup(elsewhere.fileno())}
        systemd.stored = wrong | {"stranger": os.open("/dev/null", os.O_RDWR)}
        systemd.start()
        log = node.log_path.read_text()[since:]
        assert log.count("is not used") == 4, log
        eventually(lambda: set(systemd.stored) == {pod_name, uplink, "underlay"}, what="the right ones in the store")
        assert not {os.fstat(fd).st_ino for fd in systemd.stored.values()} & {os.fstat(elsewhere.fileno()).st_ino}
        assert lab.pods[0].run(["ping", "-n", "-c1", "-W5", str(lab.pods[1].addresses[0])]).returncode == 0
        assert counters(node).epoch


def _is_node_tun(fd: int) -> bool:
    return fcntl.ioctl(fd, _TUNGETIFF, bytes(40)).startswith(b"podwire0")


# Without a router


def test_nothing_is_told_where_no_systemd_is() -> None:
    store = FdStore({})
    assert not store.there
    store.keep("underlay", 0)
    store.drop("underlay")
    store.started()
    store.stopping()


def test_a_systemd_that_does_not_listen_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "FDSTORE": "8"}
    store = FdStore(environ)
    assert store.there
    assert environ == {}, "a child of the router is not systemd's to hear"
    with caplog.at_level(logging.WARNING):
        store.keep("underlay", 0)
    assert "could not be told FDSTORE=1" in caplog.text


def test_an_abstract_socket_is_told_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(f"\0podwire-test-{os.getpid()}")
        FdStore({"NOTIFY_SOCKET": f"@podwire-test-{os.getpid()}"}).started()
        assert notified.recv(100) == f"READY=1\nMAINPID={os.getpid()}".encode()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "underlay"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many", "LISTEN_FDNAMES": "underlay"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""},
    ],
)
def test_fds_that_are_not_ours_are_left_alone(environ: dict[str, str]) -> None:
    assert inherited(environ, FdStore({})).fds == {}
    assert environ == {}, "and no child takes them for its own"
