"""Hand a script to nft, which takes it whole or not at all."""

from __future__ import annotations

import subprocess
from contextlib import suppress

from router.errors import Kind, Refusal

_TIMEOUT_S = 10


def run(script: str, remedy: str) -> None:
    """Put a script into force. Raise Refusal(STATE) when nftables is missing (`remedy` says how to go without) or refuses."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=script, text=True, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise Refusal(Kind.STATE, f"nft is not installed: install nftables, or {remedy}") from None
    except subprocess.TimeoutExpired:
        raise Refusal(
            Kind.STATE, f"nft did not answer within {_TIMEOUT_S} s; is another program holding its lock?"
        ) from None
    if done.returncode:
        raise Refusal(Kind.STATE, f"nftables refused our rules: {done.stderr.strip().splitlines()[0]}")


def delete(table: str, remedy: str) -> None:
    """Delete a table ("inet name"), which need not be there. Raise Refusal(STATE)."""
    run(f"table {table}\ndelete table {table}\n", remedy)


def remove(table: str) -> None:
    """Delete a table ("inet name"); no error when it, or nftables, is not there."""
    with suppress(Refusal):
        delete(table, "")
