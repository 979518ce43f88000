"""What the bridge of the underlay does not forward: an nftables table of its own in the bridge family.

Two sets of pairs of ports: `cut`, a partition, and `relayed`, which the relay carries instead. What matches neither costs
one lookup.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from shim.lab import netns
from shim.lab.errors import LabError
from shim.lab.relay.switch import Pair

CUT, RELAYED = "cut", "relayed"
_TABLE = "bridge podwire_lab"
_MAKE = (
    f"add table {_TABLE}",
    *(f"add set {_TABLE} {name} {{ type ifname . ifname; counter; }}" for name in (CUT, RELAYED)),
    f"add chain {_TABLE} links {{ type filter hook forward priority 0; }}",
    *(f"add rule {_TABLE} links iifname . oifname @{name} drop" for name in (CUT, RELAYED)),
)

Sets = Mapping[str, Mapping[Pair, int]]
"""By name of the set: each pair, and the frames dropped of it so far."""


def read(underlay: Path) -> Sets:
    """Return what is dropped now in this namespace."""
    sets: dict[str, dict[Pair, int]] = {CUT: {}, RELAYED: {}}
    for entry in json.loads(_nft(underlay, ["-j", "list", "ruleset", "bridge"]))["nftables"]:
        if "set" in entry and entry["set"]["table"] == _TABLE.split()[1]:
            for element in entry["set"].get("elem", ()):
                source, target = element["elem"]["val"]["concat"]
                sets[entry["set"]["name"]][source, target] = element["elem"]["counter"]["packets"]
    return sets


def add(underlay: Path, pairs: Mapping[str, Collection[Pair]]) -> None:
    """Drop these too, all at the same moment."""
    if lines := _elements("add", pairs):
        tables = _nft(underlay, ["list", "tables", "bridge"])
        made = f"table {_TABLE}" in tables.splitlines()
        _nft(underlay, ["-f", "-"], [*(() if made else _MAKE), *lines])


def delete(underlay: Path, pairs: Mapping[str, Collection[Pair]]) -> None:
    """Forward these again, all at the same moment."""
    if lines := _elements("delete", pairs):
        _nft(underlay, ["-f", "-"], lines)


def _elements(verb: str, pairs: Mapping[str, Collection[Pair]]) -> list[str]:
    lines = []
    for name, changed in pairs.items():
        if changed:
            elements = ", ".join(f'"{source}" . "{target}"' for source, target in sorted(changed))
            lines.append(f"{verb} element {_TABLE} {name} {{ {elements} }}")
    return lines


def _nft(underlay: Path, arguments: Sequence[str], lines: Sequence[str] = ()) -> str:
    done = netns.run(underlay, ["nft", *arguments], input="\n".join(lines) + "\n")
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise LabError(f"nft failed inside {underlay.name} (the kernel needs CONFIG_NF_TABLES_BRIDGE): {said}")
    return str(done.stdout)
