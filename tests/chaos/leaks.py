"""What is left on the machine: of Pods that are gone, in a router that is idle, and of the whole lab once it is down."""

from __future__ import annotations

import os
import re
import sqlite3
import statistics
import subprocess
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from shim.lab import ledger, netns
from shim.lab.node import LabNode
from tests.chaos.log import Log
from tests.chaos.oracle import Size, tracebacks
from tests.chaos.rig import Rig

IDLE_FOR_S = 20.0
"""What a router gets to let go of what is not needed any more."""
WARM_S = 20.0
"""A router's first seconds, in which it grows."""
MOST_GROWTH_BYTES = 24 << 20
"""Of a router after them: a heap that is full of holes is larger than a new one, but no more than that."""
MOST_SLOPE_BYTES_PER_MIN = 2 << 20
LONG_S = 240.0
"""Only of a process that lived so long a slope is asked."""
_OWN = re.compile(r"^(podwire|pw|br0|store|n\d+$)")


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def base_fds(rig: Rig) -> dict[str, int]:
    """Return what each router has open besides its Pods' TUNs; nobody is connected to it."""
    time.sleep(0.5)
    return {node.name: fds(node.pid) - len(rig.keys(node.name)) for node in rig.lab.nodes if node.pid}


def check_fds(rig: Rig, log: Log, base: dict[str, int]) -> str:
    """Wait until every router has as many open as at the beginning; nobody is connected to it."""
    most, deadline_s = max(base.values()), time.monotonic() + IDLE_FOR_S
    while True:
        now = {node.name: fds(node.pid) - len(rig.keys(node.name)) for node in rig.lab.nodes if node.pid}
        over = {name: count for name, count in now.items() if count > most}
        if not over or time.monotonic() > deadline_s:
            break
        time.sleep(0.5)
    for name, count in over.items():
        node = rig.lab.node(name)
        log.complain("no leaked fd", f"{name} has {count} open besides its Pods', not {most} at most: {_open_in(node)}")
    return f"{min(now.values())}–{max(now.values())} besides Pods', {most} at most at the start"


def _open_in(node: LabNode) -> str:
    kinds: dict[str, int] = {}
    for entry in Path(f"/proc/{node.pid}/fd").iterdir():
        with suppress(OSError):
            kind = re.sub(r"\d+", "N", str(entry.readlink()))
            kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count}×{kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))


def check_memory(sizes: dict[tuple[str, int], list[Size]], log: Log) -> str:
    """Hold what each router's process grew by after it was warm to a bound."""
    most_growth, most_slope = 0.0, 0.0
    for (name, pid), found in sizes.items():
        warm = [size for size in found if size.at_s > found[0].at_s + WARM_S]
        if len(warm) < 20:
            continue
        growth = statistics.median(size.resident_bytes for size in warm[-5:]) - statistics.median(
            size.resident_bytes for size in warm[:5]
        )
        most_growth = max(most_growth, growth)
        if growth > MOST_GROWTH_BYTES:
            log.complain(
                "memory is bounded", f"{name} (process {pid}) grew by {growth / 1e6:.1f} MB in {_lived_s(warm):.0f} s"
            )
        half = warm[len(warm) // 2 :]
        if _lived_s(warm) > LONG_S:
            slope = (
                60
                * statistics.linear_regression(
                    [size.at_s for size in half], [size.resident_bytes for size in half]
                ).slope
            )
            most_slope = max(most_slope, slope)
            if slope > MOST_SLOPE_BYTES_PER_MIN:
                log.complain("memory is bounded", f"{name} (process {pid}) grows by {slope / 1e6:.1f} MB a minute")
    resident = max((size.resident_bytes for found in sizes.values() for size in found), default=0)
    return f"{resident / 1e6:.0f} MB at most; grew by {most_growth / 1e6:.1f} MB, {most_slope / 1e6:.2f} MB a minute"


def _lived_s(sizes: list[Size]) -> float:
    return sizes[-1].at_s - sizes[0].at_s


def check_nodes(rig: Rig, log: Log, rules: dict[str, str]) -> str:
    """Hold journal, devices, addresses and rules of each node to the Pods that live there."""
    for node in rig.lab.nodes:
        whos = [who for _, who in rig.places.values() if who.node == node.name]
        addresses = {str(address) for who in whos for address in (who.v4, who.v6)}
        with closing(sqlite3.connect(f"file:{node.state_dir}/router.db?mode=ro", uri=True)) as journal:
            attached = set(journal.execute("SELECT sandbox_id, intent FROM attachment"))
            leased = {row[0] for row in journal.execute("SELECT address FROM lease WHERE released_at_s IS NULL")}
        wanted = {(sandbox_id, "attached") for sandbox_id in rig.keys(node.name)}
        if attached != wanted:
            log.complain(
                "no leaked address",
                f"{node.name}'s journal has {sorted(attached ^ wanted)} that it should not, or lacks it",
            )
        if leased != addresses:
            log.complain(
                "no leaked address",
                f"{node.name}'s journal leases {sorted(leased - addresses)} to nobody, and not {sorted(addresses - leased)}",
            )
        devices = _devices(node.netns_path)
        if devices.keys() != {"lo", "eth0", "podwire0"}:
            log.complain("no leaked device", f"{node.name} has {sorted(devices)}")
        elif (own := set(map(str, node.addresses))) != devices["podwire0"]:
            log.complain(
                "no leaked address", f"podwire0 of {node.name} has {sorted(devices['podwire0'])}, not {sorted(own)}"
            )
        now = _rules(node)
        if node.name in rules and now.count("\n") != rules[node.name].count("\n"):
            log.complain("no leaked rule", f"{node.name} had the rules {rules[node.name]} and has {now}")
        for text in tracebacks(node):
            log.complain("no traceback", text)
    for pod, who in rig.places.values():
        devices = _devices(pod.netns_path)
        if devices.keys() != {"lo", "eth0"} or devices["eth0"] != {str(who.v4), str(who.v6)}:
            log.complain("no leaked device", f"{who.uid} ({who.v4}, {who.v6}) has {devices}")
    return f"{len(rig.lab.nodes)} nodes, {len(rig.places)} Pods"


def rules(rig: Rig) -> dict[str, str]:
    """Return what nftables has on each node."""
    return {node.name: _rules(node) for node in rig.lab.nodes}


def _rules(node: LabNode) -> str:
    return str(node.run(["nft", "-s", "list", "ruleset"]).stdout)


def _devices(path: Path) -> dict[str, set[str]]:
    """Return the devices of a namespace, and the addresses of each but those of the link."""
    said = netns.run(path, ["ip", "-o", "address"]).stdout
    links = netns.run(path, ["ip", "-o", "link"]).stdout
    found: dict[str, set[str]] = {line.split(": ")[1].partition("@")[0]: set() for line in links.splitlines()}
    for line in said.splitlines():
        words = line.split()
        if words[1] in found and not words[3].startswith(("fe80:", "127.", "::1/")):
            found[words[1]].add(words[3].partition("/")[0])
    return found


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is outside of labs that a lab may have left."""

    devices: frozenset[str]
    tables: frozenset[str]

    @classmethod
    def look(cls) -> Machine:
        links = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
        tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
        names = {line.split(": ")[1].partition("@")[0] for line in links.splitlines()}
        return cls(
            frozenset(filter(_OWN.match, names)), frozenset(line for line in tables.splitlines() if "podwire" in line)
        )


def check_machine(rig: Rig, log: Log, before: Machine, namespaces: set[tuple[int, int]]) -> str:
    """Hold the machine to what it was before the lab, which is down."""
    name = rig.lab.name
    if (ledger.directory() / name).exists():
        log.complain("nothing is left", f"the ledger of lab {name} is still there")
    if left := [path.name for path in netns.DIRECTORY.glob(f"pwlab-{name}-*")]:
        log.complain("nothing is left", f"namespaces {left}")
    inside = []
    for entry in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):
            found = (entry / "ns/net").stat()
            if (found.st_dev, found.st_ino) in namespaces:
                inside.append(f"{entry.name} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    if inside:
        log.complain("nothing is left", f"processes {inside}")
    now = Machine.look()
    devices, tables = now.devices - before.devices, now.tables - before.tables
    if devices or tables:
        log.complain("nothing is left", f"devices {sorted(devices)}, tables of nftables {sorted(tables)}")
    whole = not (left or inside or devices or tables)
    return "no namespace, process, device or rule" if whole else "see below"


def namespaces(rig: Rig) -> set[tuple[int, int]]:
    """Return what the namespaces of a lab are, by device and inode."""
    found = set()
    for path in netns.DIRECTORY.glob(f"pwlab-{rig.lab.name}-*"):
        with suppress(OSError):
            made = path.stat()
            found.add((made.st_dev, made.st_ino))
    return found
