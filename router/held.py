"""An attachment that is there, and what this process has of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from router.errors import Kind, Refusal
from router.journal import Intent, Journal, Recorded
from router.kernel import inspect, netns, tun
from router.model import NO_LIMITS, Attachment
from router.status import AttachRequest, CheckRequest

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Held:
    """An attachment, its open TUN, and the namespace it was made in."""

    attachment: Attachment
    began_ns: int
    """When the last who asked for it began (CLOCK_BOOTTIME)."""
    namespace: netns.Identity | None = None
    """Which namespace its path led to when it was attached: a path may come to lead to another."""
    fd: int = -1
    """Its TUN; -1 when it is not open."""
    lost: bool = False
    """Its device is gone, or is being taken down."""

    @property
    def moved(self) -> bool:
        """Whether the path leads to another namespace than when the TUN was made; nowhere is no other."""
        try:
            return self.namespace != netns.identity(self.attachment.netns_path)
        except Refusal:
            return False

    @property
    def gone(self) -> bool:
        """Whether the path leads nowhere, or to another namespace than when the TUN was made."""
        try:
            found = netns.identity(self.attachment.netns_path)
        except Refusal:
            return True
        return self.namespace is not None and found != self.namespace

    def lacks(self, request: CheckRequest) -> list[str]:
        """Return in words what it has not that somebody believes it has."""
        attachment = self.attachment
        own = tuple(interface.ip for interface in attachment.addresses)
        found = [f"reservation of {address}" for address in request.addresses if address not in own]
        if self.gone:
            found.append(f"namespace {attachment.netns_path}")
        else:
            if request.netns_path and netns.identity(request.netns_path) != self.namespace:
                found.append(f"it in {request.netns_path}: it is in {attachment.netns_path}")
            found += inspect.missing(attachment.netns_path, request.key.if_name, own, request.routes)
        if self.lost and not found:
            found.append("its connection to the router")
        return found

    def check_same(self, request: AttachRequest) -> None:
        """Raise Refusal(EXISTS) when this is not what a request asks for; what it leaves open, any answer fits."""
        present = self.attachment
        own = {interface.ip for interface in present.addresses}
        differs = ""
        if present.netns_path != request.netns_path:
            differs = f", in {present.netns_path}"
        elif request.mtu_bytes not in (0, present.mtu_bytes):
            differs = f" with MTU {present.mtu_bytes}, not {request.mtu_bytes}"
        elif not own.issuperset(request.addresses):
            differs = f" with {', '.join(map(str, sorted(own, key=str)))}, not {', '.join(map(str, request.addresses))}"
        elif request.ports and set(request.ports) != set(present.ports):
            differs = (
                f" with ports {', '.join(map(str, present.ports)) or 'none'}, not {', '.join(map(str, request.ports))}"
            )
        elif request.limits not in (NO_LIMITS, present.limits):
            differs = " with other limits"
        if differs:
            raise Refusal(
                Kind.EXISTS, f"attachment {request.key} is there already{differs}: detach it first, or use another id"
            )


def same_namespace(recorded: Recorded) -> bool:
    """Tell whether a path still leads where it did, as far as the journal knows; nowhere is the same too."""
    try:
        return recorded.namespace in (None, netns.identity(recorded.attachment.netns_path))
    except Refusal:
        return True


def undo_unfinished(journal: Journal, now_s: float) -> None:
    """Undo every attachment whose set-up or end was under way when the last router stopped; nobody was told of it."""
    for recorded in journal.load().attachments:
        if recorded.intent is not Intent.ATTACHED:
            attachment = recorded.attachment
            _log.info("undoing %s, which was %s when the last router stopped", attachment.key, recorded.intent)
            if same_namespace(recorded):
                tun.remove(attachment.netns_path, attachment.key.if_name)
            # What was being detached had been in use, what was being attached had not.
            journal.finish_detach(attachment.key, now_s if recorded.intent is Intent.DETACHING else 0.0)
