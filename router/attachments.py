"""The Pods of this node: desired state, in the journal and the address pools, made actual in namespaces and the engine.

    attach   address → journal "attaching" → TUN in the namespace → ports → engine → journal "attached" → answer
    detach   journal "detaching" → engine → ports → TUN gone → address rests → journal forgets → answer

Each step is undone when a later one fails. What is acknowledged is in the journal; what is in the journal and was not
acknowledged is undone at the next start. Calls about one attachment wait for each other, about different ones do not.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack

from router.addresses import Addresses
from router.departed import Departed, now_ns
from router.engine.interface import Engine
from router.errors import Kind, Refusal
from router.events import EventKind, EventLog
from router.held import Held, same_namespace, undo_unfinished
from router.ipam import node_address
from router.journal import Intent, Journal, Recorded
from router.kernel import inspect, netns, tun
from router.model import Attachment, AttachmentKey, Interface, Node, Offloads, Prefix
from router.ports import Ports
from router.status import AttachRequest, CheckRequest
from router.takeover.fdstore import FdStore
from router.takeover.inherited import Inherited, name_of
from router.turns import Turns

_log = logging.getLogger(__name__)

_LEAST_MTU_BYTES = 1280


class Attachments:
    """All attachments of this node but its own. Thread-safe."""

    def __init__(
        self,
        journal: Journal,
        engine: Engine,
        events: EventLog,
        ports: Ports,
        mtu_bytes: int,
        offloads: Offloads,
        rest_s: float,
        store: FdStore,
    ) -> None:
        self._journal = journal
        self._engine = engine
        self._events = events
        self._ports = ports
        self._mtu_bytes = mtu_bytes
        self._offloads = offloads
        self._store = store
        self._reopened: list[Held] = []
        """TUNs as an earlier router left them."""
        self._lock = threading.Lock()
        self.addresses = Addresses(rest_s)
        self._held: dict[AttachmentKey, Held] = {}
        self._departed = Departed(journal)
        self._turns = Turns()

    # Addresses

    def set_subnets(self, subnets: tuple[Prefix, ...], others: Collection[Node] = ()) -> None:
        """Give out addresses of these subnets from now on; cut off what holds one that is another node's now.

        What is held outside all of them stays its holder's.
        """
        self.addresses.set_subnets(subnets)
        taken = self.addresses.taken_by(others)
        if not taken:
            return
        with self._lock:
            held = [each for each in self._held.values() if not each.lost]
        for each in held:
            for address in each.attachment.addresses:
                if (node := taken.get(address)) is not None and not each.lost:
                    self._cut_off(each, f"{address.ip} is in a subnet of node {node.name} now: attach it anew")

    def _cut_off(self, held: Held, why: str) -> None:
        """Carry nothing of an attachment any more; it is made anew when it is asked for again."""
        key = held.attachment.key
        with self._lock:
            fd, held.fd, held.lost = held.fd, -1, True
        if fd >= 0:
            self._engine.detach(key)
            self._discard(fd, key)
        _log.warning("cut off %s: %s", key, why)
        self._events.record(EventKind.LEASE_LOST, why, key=key)

    # Attach

    def attach(self, request: AttachRequest) -> Attachment:
        """Give a Pod its interface; the same request again gets the same answer. Raise Refusal."""
        began_ns = min(request.began_ns or now_ns(), now_ns())
        with self._turns.of(request.key):
            with self._lock:
                self._departed.refuse_late(request.key, began_ns)
            held = self._held.get(request.key)
            if held is not None and held.moved:
                self.lose(request.key, f"{held.attachment.netns_path} is another namespace now")
            if held is not None and not held.lost:
                held.check_same(request)
                if began_ns > held.began_ns:
                    self._journal.renew_attach(request.key, began_ns)
                    held.began_ns = began_ns
                return held.attachment
            if held is not None:  # its device vanished: the sandbox wants it back
                self._take_down(request.key, EventKind.DETACHED, "made anew")
            attachment = self._make(request, began_ns)
            _log.info("attached %s with %s", attachment.key, _text(attachment.addresses))
            self._events.record(EventKind.ATTACHED, _text(attachment.addresses), key=attachment.key)
            return attachment

    def _make(self, request: AttachRequest, began_ns: int) -> Attachment:
        if request.mtu_bytes > self._mtu_bytes:
            raise Refusal(
                Kind.INVALID,
                f"mtu_bytes {request.mtu_bytes} is more than the overlay carries: at most {self._mtu_bytes}",
            )
        namespace = netns.identity(request.netns_path)
        if namespace == netns.identity(netns.OWN):
            raise Refusal(
                Kind.INVALID,
                f"{request.netns_path} is the node's own namespace, and its routes are not a Pod's to take: "
                "Pods on the node's network need no attachment",
            )
        key = request.key
        with ExitStack() as undo:
            addresses = self.addresses.allocate(key, request.addresses)
            undo.callback(self.addresses.withdraw, key)
            if 0 < request.mtu_bytes < _LEAST_MTU_BYTES and any(interface.version == 6 for interface in addresses):
                raise Refusal(
                    Kind.INVALID,
                    f"mtu_bytes {request.mtu_bytes} is less than IPv6 needs: {_LEAST_MTU_BYTES} at least (RFC 8200)",
                )
            attachment = Attachment(
                key,
                request.netns_path,
                addresses,
                request.mtu_bytes or self._mtu_bytes,
                request.labels,
                request.owner,
                request.ports,
                request.limits,
            )
            self._journal.begin_attach(attachment, namespace, began_ns)
            undo.callback(self._journal.finish_detach, key, 0.0)
            fd = tun.create(request.netns_path, key.if_name, self._dress(attachment), self._offloads)
            undo.callback(tun.discard, fd)
            self._ports.claim(key, addresses, request.ports)
            undo.callback(self._ports.release, key)
            self._engine.attach(attachment, fd)
            undo.callback(self._engine.detach, key)
            self._journal.commit_attach(key)
            undo.pop_all()
        self._store.keep(name_of(key), fd)
        with self._lock:
            self._held[key] = Held(attachment, began_ns, namespace, fd)
        return attachment

    def _dress(self, attachment: Attachment) -> tun.Dress:
        gateways = tuple(node_address(interface.network).ip for interface in attachment.addresses)
        return tun.Dress(attachment.addresses, gateways, (), attachment.mtu_bytes, self._offloads.max_segments)

    # Detach

    def detach(self, key: AttachmentKey) -> bool:
        """Take a Pod's interface away; False when there was none. Raise Refusal."""
        with self._turns.of(key):
            return self._detach(key, now_ns(), EventKind.DETACHED, "asked for")

    def bury(self, key: AttachmentKey, detached_ns: int) -> None:
        """Do a detachment of an earlier time (CLOCK_BOOTTIME); what was attached since stays. Raise Refusal."""
        with self._turns.of(key):
            held = self._held.get(key)
            if held is None or held.began_ns <= detached_ns:
                self._detach(key, min(detached_ns, now_ns()), EventKind.RELEASED, "detached while no router answered")

    def _detach(self, key: AttachmentKey, detached_ns: int, kind: EventKind, why: str) -> bool:
        was_there = key in self._held
        if was_there:
            self._take_down(key, kind, why, detached_ns)
        else:
            # A set-up whose undoing failed may have left a row; without one this only remembers.
            self._journal.finish_detach(key, time.time(), detached_ns)
        with self._lock:
            self._departed.note(key, detached_ns)
        return was_there

    def sync(self, live: Collection[AttachmentKey], owner: str = "", as_of_ns: int = 0) -> tuple[AttachmentKey, ...]:
        """Release every attachment of an owner (empty: of all) that is not live; return them.

        What was asked for after `as_of_ns` (0: now) stays. Goes on past failures, then raises a Refusal with all of them.
        """
        as_of_ns = as_of_ns or now_ns()
        released = []
        failures: list[str] = []
        for key in self._of(owner).difference(live):
            try:
                with self._turns.of(key):
                    held = self._held.get(key)
                    if held is not None and held.began_ns <= as_of_ns:
                        who = f"{owner} does not know it any more" if owner else "not in the live set"
                        self._take_down(key, EventKind.RELEASED, who)
                        released.append(key)
            except Refusal as refusal:
                failures.append(refusal.message)
        if failures:
            raise Refusal(Kind.UNAVAILABLE, f"{len(failures)} could not be released: {'; '.join(failures)}")
        return tuple(sorted(released))

    def _of(self, owner: str) -> set[AttachmentKey]:
        return {attachment.key for attachment in self.list() if owner in ("", attachment.owner)}

    def _take_down(self, key: AttachmentKey, kind: EventKind, why: str, detached_ns: int = 0) -> None:
        self._journal.begin_detach(key)
        with self._lock:
            held = self._held[key]
            attachment, fd, held.fd = held.attachment, held.fd, -1
            held.lost = True  # until all of it is done: should a step fail, a second attach must not find it whole
        if fd >= 0:
            self._engine.detach(key)
            self._discard(fd, key)
        elif held.namespace is not None and not held.moved:
            tun.remove(attachment.netns_path, key.if_name)
        self._ports.release(key)
        now_s = time.time()
        self._journal.finish_detach(key, now_s, detached_ns)
        self.addresses.release(key, now_s)
        with self._lock:
            del self._held[key]
        self._journal.forget_resting(now_s - self.addresses.rest_s)
        _log.info("detached %s (%s)", key, why)
        self._events.record(kind, f"{_text(attachment.addresses)} rests; {why}", key=key)

    def _discard(self, fd: int, key: AttachmentKey) -> None:
        """Delete the TUN, whoever has it open."""
        self._store.drop(name_of(key))
        tun.discard(fd, shared=self._store.there)

    # Sandboxes that vanish

    def release_vanished(self) -> tuple[AttachmentKey, ...]:
        """Release what is attached in namespaces that are no more: no path leads there, and no process lives there."""
        released = []
        with self._lock:
            present = list(self._held.values())
        gone = [held for held in present if held.gone]
        # Our fd keeps a namespace, and its number, from being given to another; without one the number means nothing.
        ours = {held.namespace for held in gone if held.fd >= 0 and held.namespace}
        inhabited = inspect.inhabited(ours) if ours else set()
        for held in gone:
            key = held.attachment.key
            if held.fd >= 0 and held.namespace in inhabited:
                continue
            with self._turns.of(key):
                if self._held.get(key) is held and held.gone:
                    self._take_down(key, EventKind.RELEASED, f"its namespace {held.attachment.netns_path} is gone")
                    released.append(key)
        return tuple(released)

    # Check

    def check(self, request: CheckRequest) -> Attachment:
        """Return an attachment that is as it was made. Raise Refusal: NOT_FOUND, or STATE with all that is missing."""
        with self._turns.of(request.key):
            held = self._held.get(request.key)
            if held is None:
                raise Refusal(Kind.NOT_FOUND, f"{request.key} is not attached to this node")
            lacks = held.lacks(request)
            if lacks:
                raise Refusal(Kind.STATE, f"{request.key} lacks {', '.join(lacks)}; detach it, and attach it anew")
            return held.attachment

    # Restart

    def restore(self, subnets: tuple[Prefix, ...], inherited: Inherited) -> None:
        """Take up where the last router stopped: carry what was attached, undo what was not acknowledged; then `mend`."""
        now_s = time.time()
        if not inherited.live:
            undo_unfinished(self._journal, now_s)
            self._journal.forget_resting(now_s - self.addresses.rest_s)
        state = self._journal.load()
        with self._lock:
            self._departed.restore()
        self.addresses.restore(subnets, [recorded.attachment for recorded in state.attachments], state.resting)
        for recorded in state.attachments:
            self._reopen(recorded, inherited)

    def _reopen(self, recorded: Recorded, inherited: Inherited) -> None:
        attachment = recorded.attachment
        key, path = attachment.key, attachment.netns_path
        held = self._held[key] = Held(attachment, recorded.since_ns, recorded.namespace)
        try:
            if not same_namespace(recorded):
                raise Refusal(Kind.STATE, f"{path} leads to another namespace now")
            if recorded.intent is not Intent.ATTACHED:  # as its predecessor left it, who may want it back
                raise Refusal(Kind.STATE, f"it could not be taken down wholly while it was {recorded.intent}")
            held.namespace = recorded.namespace or netns.identity(path)
            held.fd = inherited.tun(key, held.namespace)
            if held.fd < 0:
                held.namespace = netns.identity(path)
                held.fd = tun.reopen(path, key.if_name, self._offloads)
        except Refusal as refusal:
            self.lose(key, refusal.message)
            return
        self._engine.attach(attachment, held.fd)
        self._reopened += () if inherited.live else (held,)
        self._store.keep(name_of(key), held.fd)

    def mend(self) -> None:
        """Make good what devices and rules lack that an earlier router left: packets flow by now."""
        self._ports.restore(self.list())
        for held in self._reopened:
            key, path = held.attachment.key, held.attachment.netns_path
            try:
                if held.fd >= 0 and not held.gone:
                    tun.mend(path, key.if_name, self._dress(held.attachment))
            except Refusal as refusal:
                self._engine.detach(key)
                self._store.drop(name_of(key))
                os.close(held.fd)
                held.fd = -1
                self.lose(key, refusal.message)
        self._reopened.clear()

    def fds(self) -> dict[str, int]:
        """Return every open TUN by name (inherited.py); they stay ours."""
        with self._lock:
            return {name_of(held.attachment.key): held.fd for held in self._held.values() if held.fd >= 0}

    def lose(self, key: AttachmentKey, why: str) -> None:
        """Note that a device is gone; its addresses stay held until it is detached, synced away or attached anew."""
        held = self._held.get(key)
        if held is not None:
            held.lost = True
        _log.warning("lost %s: %s; its addresses are kept until it is detached", key, why)
        self._events.record(EventKind.ATTACHMENT_LOST, why, key=key)

    # Reading

    def list(self) -> tuple[Attachment, ...]:
        """Return every attachment, in order."""
        with self._lock:
            found = [held.attachment for held in self._held.values()]
        return tuple(sorted(found, key=lambda attachment: attachment.key))

    def lost(self) -> frozenset[AttachmentKey]:
        """Return attachments whose device is gone."""
        with self._lock:
            return frozenset(key for key, held in self._held.items() if held.lost)

    def ring_drops(self) -> dict[AttachmentKey, int]:
        """Return what the kernel dropped at each TUN's full ring."""
        lost = self.lost()
        present = [attachment for attachment in self.list() if attachment.key not in lost]
        drops = tun.ring_drops([(attachment.netns_path, attachment.key.if_name) for attachment in present])
        return {attachment.key: drops[index] for index, attachment in enumerate(present)}

    def close(self) -> None:
        """Let go of every TUN; they stay, with their addresses, for the next router. The engine was stopped before."""
        with self._lock:
            for held in self._held.values():
                if held.fd >= 0:
                    os.close(held.fd)
                    held.fd = -1


def _text(addresses: tuple[Interface, ...]) -> str:
    return ", ".join(str(interface.ip) for interface in addresses)
