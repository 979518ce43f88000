"""One round: what is attached, what runtimes know of it, and Sync for each owner of something that is gone.

The attachments are listed before the runtimes are asked, and a runtime registers a sandbox only after its network is
there: what is younger than the grace stays, whatever a runtime says. So does what a process lives in: another runtime, or
the same with another storage, may have put it there. Where several runtimes may have made it, one that knows it is enough.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shim.answers import Attachment, AttachmentKey
from shim.client import Client
from shim.containerd import netns
from shim.runtimes import abandoned
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
    gone, failures = _judge(attached, sources)
    released = {each.key for each in gone}
    if not dry_run:
        released = set()
        for owner in sorted({each.owner for each in gone}):
            live = [each.key for each in attached if each.owner == owner and each not in gone]
            released |= set(client.sync(live, owner=owner, as_of_ns=as_of_ns))
    left = [
        each.netns_path
        for each in gone
        if each.key in released
        and Path(each.netns_path).exists()
        and any(source.is_leaked(Path(each.netns_path)) for source in sources if source.claims(each))
        and not abandoned.is_inhabited(Path(each.netns_path))
    ]
    used = {Path(each.netns_path).name for each in attached}
    try:
        left += abandoned.find(sources, used, grace_s)
    except SourceError as error:
        if str(error) not in failures:
            failures.append(str(error))
    for path in () if dry_run else left:
        try:
            with suppress(FileNotFoundError):  # somebody else was faster
                netns.remove(path)
        except OSError as error:
            failures.append(f"cannot remove the namespace {path}: {error.strerror}")
    return Round(tuple(sorted(released, key=str)), tuple(left), tuple(failures))


def _judge(attached: Sequence[Attachment], sources: Sequence[Source]) -> tuple[list[Attachment], list[str]]:
    """Return what is gone by the word of every runtime that may have made it, and why some could not be asked."""
    is_gone: dict[AttachmentKey, bool] = {}
    failures = []
    for source in sources:
        claimed = [each for each in attached if source.claims(each)]
        unknown: set[AttachmentKey] = set()
        try:
            unknown = {each.key for each in source.unknown(claimed)} if claimed else unknown
        except SourceError as error:
            failures.append(str(error))  # and it may know all of them
        for each in claimed:
            is_gone[each.key] = is_gone.get(each.key, True) and each.key in unknown
    gone = [each for each in attached if is_gone.get(each.key)]
    return [each for each in gone if not abandoned.is_inhabited(Path(each.netns_path))], failures
