"""What a router does first when it starts again: nothing that can wait, and nothing that was found out before."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from router import last_start
from router.config import Etcd, OffloadSwitches, Settings
from router.kernel import selftest
from router.kernel.links import link_down, local_prefixes, mtu_of
from router.last_start import LastStart
from router.model import Endpoint, Offloads
from router.values import Switch
from shim.lab import Lab, netns
from shim.lab.errors import LabError
from tests.accounts import eventually

ROOT = Path(__file__).resolve().parent.parent
_SLOW = {"grpc", "google.protobuf", "pyroute2", "numpy", "asyncio", "kubernetes", "importlib.metadata", "dpkt", "rich"}
_SETTINGS = Settings("n1", (ip_network("10.42.0.0/16"),), Endpoint(ip_address("192.0.2.1"), 6081))
_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Memory:
    """As Journal's."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] | None = None

    def load(self) -> dict[str, Any] | None:
        return self.kept

    def save(self, what: dict[str, Any]) -> None:
        self.kept = what


def remembered(settings: Settings = _SETTINGS) -> Memory:
    memory = Memory()
    LastStart.of(settings, memory, None).remember(memory, Offloads(tun_uso=False), ("tun_uso is off: so it was",))
    return memory


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> list[Offloads]:
    """Count self-tests instead of making them."""
    asked: list[Offloads] = []

    def probe(wanted: Offloads) -> tuple[Offloads, tuple[str, ...]]:
        asked.append(wanted)
        return wanted, ()

    monkeypatch.setattr(selftest, "probe", probe)
    return asked


def lease(left_s: float, boot_id: str = _BOOT) -> dict[str, Any]:
    return {"boot_id": boot_id, "until_s": time.clock_gettime(time.CLOCK_BOOTTIME) + left_s}


def test_nothing_slow_is_imported_before_packets_flow() -> None:
    """Of all that takes a tenth of a second each, the native engine needs nothing."""
    code = "import sys, router.commands, router.daemon; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert _SLOW & set(done.stdout.split()) == set()
    assert "router.observe.observatory" not in done.stdout.split()


def test_offloads_are_tested_once_a_boot(untested: list[Offloads]) -> None:
    found, notes = LastStart.of(_SETTINGS, Memory(), None).offloads(None)
    assert (len(untested), found, notes) == (1, Offloads(), ())
    again = LastStart.of(_SETTINGS, remembered(), None)
    assert again.again
    assert again.offloads(None) == (Offloads(tun_uso=False), ("tun_uso is off: so it was",))
    assert len(untested) == 1


@pytest.mark.parametrize("changed", ["boot", "kernel", "settings", "garbage"])
def test_what_was_found_under_other_circumstances_is_found_anew(
    untested: list[Offloads], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    memory, settings = remembered(), _SETTINGS
    other = tmp_path / "other"
    other.write_text("another\n")
    if changed == "boot":
        monkeypatch.setattr(last_start, "_BOOT_ID", other)
    elif changed == "kernel":
        monkeypatch.setattr(last_start, "_RELEASE", other)
    elif changed == "settings":
        settings = replace(settings, offloads=OffloadSwitches(tun_tso=Switch.OFF))
    else:
        assert memory.kept is not None
        memory.kept["offloads"] = {"warp": True}
    last = LastStart.of(settings, memory, None)
    assert last.offloads(None)[0].tun_uso
    assert len(untested) == 1
    assert last.again == (changed == "garbage")


def test_a_lease_is_counted_on_while_it_is_sure() -> None:
    settings = replace(_SETTINGS, etcd=Etcd(("http://192.0.2.9:2379",)))
    memory = remembered(settings)
    assert LastStart.of(settings, memory, lease(5)).again
    for unsure in (None, lease(-1), lease(5, "another"), {"until_s": "soon"}, {}):
        assert not LastStart.of(settings, memory, unsure).again
    elsewhere = replace(settings, etcd=Etcd(("http://192.0.2.10:2379",)))
    assert not LastStart.of(elsewhere, memory, lease(5)).again, "another store knows nothing of that lease"


@pytest.mark.netns
def test_what_interfaces_say(tmp_path: Path) -> None:
    """The kernel's answers to getifaddrs and ioctl are those that ip(8) gives."""
    name = f"pwlab-links-{tmp_path.name[-8:]}"
    netns.create(name, {})
    try:
        path = netns.path_of(name)
        lines = [
            "link set lo up", "link add br0 mtu 1400 type bridge", "link set br0 up", "link add br1 type bridge",
            "addr add 192.0.2.1/24 dev br0", "addr add 192.0.2.2/25 dev br0 label br0:alias",
            "addr add 2001:db8::1/64 dev br0 nodad", "addr add 10.9.9.1 peer 198.51.100.0/24 dev br1",
            "link add v0 type veth peer name v1", "link set v0 up", "addr add 203.0.113.1/24 dev v0",
        ]  # fmt: skip
        netns.ip_batch(path, lines)
        found = netns.call(path, lambda: local_prefixes(besides="none"))
        assert {(where, str(prefix)) for where, prefix in found if not str(prefix).startswith("fe80")} == {
            ("br0", "192.0.2.0/24"), ("br0", "192.0.2.0/25"), ("br0", "2001:db8::/64"), ("br1", "198.51.100.0/24"),
            ("v0", "203.0.113.0/24"),
        }  # fmt: skip
        assert "br0" not in {where for where, _ in netns.call(path, lambda: local_prefixes(besides="br0"))}
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
            assert netns.call(path, lambda address=address: mtu_of(ip_address(address))) == 1400  # type: ignore[misc]
        assert netns.call(path, lambda: link_down(ip_address("10.9.9.1"))) == "br1 is down"
        assert netns.call(path, lambda: link_down(ip_address("203.0.113.1"))) == "v0 has no carrier"
        assert netns.call(path, lambda: link_down(ip_address("127.0.0.1"))) == ""
    finally:
        netns.delete(name)


@pytest.mark.netns
def test_packets_flow_before_what_is_late_has_come(make_lab: Any) -> None:
    """A router whose gRPC cannot be imported ends, but has carried packets by then."""
    lab: Lab = make_lab(nodes=2, pods=1)
    node, source, target = lab.nodes[0], lab.pods[0], lab.pods[1]
    node.kill9()
    late = "import sys,time; sys.modules['grpc_health']=None; import router.daemon as d; real=d.Daemon._observe; "
    late += "d.Daemon._observe=lambda *a: (time.sleep(1), real(*a))[1]; from router.__main__ import main; main()"
    node.program = (sys.executable, "-c", late)
    try:
        node.start(wait=False)
        eventually(lambda: "1 received" in source.run(["ping", "-n", "-c1", "-W1", str(target.addresses[0])]).stdout)
        assert not node.socket.exists() or node.pid is not None
        with pytest.raises(LabError, match="grpc_health"):
            node.wait_ready()
    finally:
        node.program = (sys.executable, "-m", "router")
        if node.pid is None:
            node.start()
