"""Let Pods out of the cluster through the node: forwarding switched on, sources masqueraded by nftables.

Only towards destinations outside the cluster range: between Pods and nodes no address is ever translated. One nftables
table of our own, replaced whole in one transaction, so that a rule somebody deleted is back after a restart.
"""

from __future__ import annotations

from pathlib import Path

from router.kernel import nft
from router.model import NODE_KEY, Prefix

_TABLE = "inet podwire"
_FAMILY_WORD = {4: "ip", 6: "ip6"}
_FORWARDING = {4: Path("/proc/sys/net/ipv4/ip_forward"), 6: Path("/proc/sys/net/ipv6/conf/all/forwarding")}


def enable(subnets: tuple[Prefix, ...], networks: tuple[Prefix, ...]) -> None:
    """Masquerade what leaves the cluster from these subnets. Raise Refusal(STATE) when nftables is missing or refuses."""
    nft.run(ruleset(subnets, networks), "run with --no-masquerade")


def forward(subnets: tuple[Prefix, ...]) -> tuple[str, ...]:
    """Switch the node's forwarding on for the families of the subnets; return notes on what was changed."""
    notes = []
    for version in sorted({subnet.version for subnet in subnets}):
        switch = _FORWARDING[version]
        try:
            if switch.read_text().strip() == "0":
                switch.write_text("1\n")
                notes.append(f"IPv{version} forwarding was off on this node; switched on ({switch})")
        except OSError as error:
            notes.append(f"IPv{version} forwarding cannot be switched on ({switch}: {error.strerror}): no egress")
    return tuple(notes)


def disable() -> None:
    """Remove our nftables table; no error when it, or nftables, is not there."""
    nft.remove(_TABLE)


def ruleset(subnets: tuple[Prefix, ...], networks: tuple[Prefix, ...]) -> str:
    """Return the nftables script: our table replaced whole."""
    rules = []
    for version, word in _FAMILY_WORD.items():
        inside = [str(prefix) for prefix in networks if prefix.version == version]
        own = [str(prefix) for prefix in subnets if prefix.version == version]
        if own and inside:
            rules.append(
                f"        {word} saddr {{ {', '.join(own)} }} {word} daddr != {{ {', '.join(inside)} }} "
                f'oifname != "{NODE_KEY.if_name}" masquerade'
            )
    return "\n".join(
        [
            f"table {_TABLE}",
            f"delete table {_TABLE}",
            f"table {_TABLE} {{",
            "    chain postrouting {",
            "        type nat hook postrouting priority srcnat; policy accept;",
            *rules,
            "    }",
            "}",
            "",
        ]
    )
