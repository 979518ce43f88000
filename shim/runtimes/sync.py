"""One round: what is attached, what runtimes know of it, and Sync for each owner of something that is gone.

The attachments are listed before the runtimes are asked, and a runtime registers a sandbox only after its network is
there: what is younger than the grace stays, whatever a runtime says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shim.answers import Attachment, AttachmentKey
from shim.client import Client
from shim.containerd import netns
from shim.runtimes.source import Source, SourceError


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to."""

    released: tuple[AttachmentKey, ...] = ()
    namespaces: tuple[str, ...] = ()
    """Leaked namespaces that were removed."""
    failures: tuple[str, ...] = ()
    """Runtimes that could not be asked, in a line each: nothing of theirs was released."""


def sync(client: Client, sources: Sequence[Source], grace_s: float, *, dry_run: bool = False) -> Round:
    """Release what runtimes do not know any more; ClientError when the router does not answer or refuses."""
    as_of_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(grace_s * 1e9)
    attached = client.attachments()
    gone: list[tuple[Source, Attachment]] = []
    failures: list[str] = []
    for source in sources:
        claimed = [each for each in attached if source.claims(each)]
        if claimed:
            try:
                gone += [(source, each) for each in source.unknown(claimed)]
            except SourceError as error:
                failures.append(str(error))
    if dry_run:
        return Round(tuple(each.key for _, each in gone), (), tuple(failures))
    keys = {each.key for _, each in gone}
    released: set[AttachmentKey] = set()
    for owner in sorted({each.owner for _, each in gone}):
        live = [each.key for each in attached if each.owner == owner and each.key not in keys]
        released |= set(client.sync(live, owner=owner, as_of_ns=as_of_ns))
    left = [
        each.netns_path
        for source, each in gone
        if each.key in released and source.is_leaked(Path(each.netns_path)) and not _inhabited(each.netns_path)
    ]
    for path in left:
        netns.remove(path)
    return Round(tuple(sorted(released, key=str)), tuple(left), tuple(failures))


def _inhabited(netns_path: str) -> bool:
    """Tell whether a process lives in a namespace; one that is gone has none to be removed."""
    try:
        wanted = Path(netns_path).stat()
    except OSError:
        return True
    for entry in Path("/proc").glob("[1-9]*"):
        try:
            found = (entry / "ns/net").stat()
        except OSError:  # it ended meanwhile
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False
