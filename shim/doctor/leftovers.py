"""What Pods that are gone have left on the node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from shim.doctor.finding import Finding, ok, warn
from shim.doctor.site import Site
from shim.lab import netns

_NAMESPACES = "/run/netns"
_OURS = "podwire-"
_YOUNG_S = 60
"""So long a Pod may be under way."""
_BURIED_WITHIN_S = 5
_NAMED = 3


def tombstones(site: Site) -> Iterator[Finding]:
    """Look whether detachments wait for the router."""
    directory = f"{os.path.dirname(site.socket_path)}/tombstones"  # noqa: PTH120 - a name of the node's
    now = time.time()
    waiting = []
    for path in site.root.at(directory).glob("*.json"):
        try:
            waiting += [path.name] if now - path.stat().st_mtime > _BURIED_WITHIN_S else []
        except OSError:
            continue  # done meanwhile
    if not waiting:
        yield ok("tombstones", "no detachment waits")
    elif site.answers is None:
        what = f"{len(waiting)} detachments wait in {directory} for the router to start"
        yield warn("tombstones", what, "start the router: it carries them out at once")
    else:
        what = f"{len(waiting)} detachments wait in {directory}, and the router does not carry them out"
        yield warn("tombstones", what, "look into its log for `cannot be detached yet`")


def namespaces(site: Site) -> Iterator[Finding]:
    """Look for namespaces that our shim made and that belong to nothing any more."""
    if site.answers is None:
        return
    known = {os.path.realpath(each.netns_path) for each in site.answers.attachments}
    lost = []
    for path in sorted(site.root.at(_NAMESPACES).glob(f"{_OURS}*")):
        try:
            old = time.time() - path.stat().st_mtime > _YOUNG_S
        except OSError:
            continue
        named = site.root.named(path)
        if old and os.path.realpath(named) not in known and not (site.root.is_node and netns.pids_inside([path.name])):
            lost.append(named)
    if lost:
        what = f"{len(lost)} namespaces of ours belong to no Pod: {', '.join(lost[:_NAMED])}"
        remedy = f"podwire sync --containerd SOCKET; or: ip netns delete {os.path.basename(lost[0])}"  # noqa: PTH119
        yield warn("namespaces", what, remedy)
    else:
        yield ok("namespaces", "each of ours belongs to a Pod")
