"""Take off a node what a router that no longer runs has left on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from router import uplink
from router.errors import Kind, Refusal
from router.journal import Journal
from router.kernel import rights, tun


def clean(state_dir: Path) -> Iterator[str]:
    """Remove interfaces, rules and journal, saying each. Raise Refusal when the router runs, or rights are missing."""
    rights.check()
    path = state_dir / "router.db"
    if not path.exists():
        raise Refusal(Kind.NOT_FOUND, f"no router has kept its state in {state_dir}: give its --state-dir")
    journal = Journal(path)
    try:
        for recorded in journal.load().attachments:
            attachment = recorded.attachment
            tun.remove(attachment.netns_path, attachment.key.if_name)
            yield f"removed {attachment.key} from {attachment.netns_path}"
        uplink.remove()
        yield "removed podwire0 and the rules of nftables"
    finally:
        journal.close()
    for leftover in (path, *state_dir.glob("router.db-*"), state_dir / "lock"):
        leftover.unlink(missing_ok=True)
    yield f"removed the journal {path}"
