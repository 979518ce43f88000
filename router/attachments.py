"""The Pods of this node: desired state, in the journal and the address pools, made actual in namespaces and the engine.

    attach   address → journal "attaching" → TUN in the namespace → engine → journal "attached" → answer
    detach   journal "detaching" → engine → TUN gone → address rests → journal forgets → answer

Each step is undone when a later one fails. What is acknowledged is in the journal; what is in the journal and was not
acknowledged is undone at the next start. Calls about one attachment wait for each other, about different ones do not.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from router.engine.interface import Engine
from router.errors import Kind, Refusal
from router.events import EventKind, EventLog
from router.ipam import Ipam, node_address
from router.journal import Intent, Journal
from router.kernel import netns, tun
from router.model import Attachment, AttachmentKey, Interface, Offloads, Prefix
from router.status import AttachRequest

_log = logging.getLogger(__name__)

_LEAST_MTU_BYTES = 1280


class Attachments:
    """All attachments of this node but its own. Thread-safe."""

    def __init__(
        self, journal: Journal, engine: Engine, events: EventLog, mtu_bytes: int, offloads: Offloads, rest_s: float
    ) -> None:
        self._journal = journal
        self._engine = engine
        self._events = events
        self._mtu_bytes = mtu_bytes
        self._offloads = offloads
        self._rest_s = rest_s
        self._lock = threading.Lock()
        self._ipam = Ipam((), rest_s)
        self._subnets: tuple[Prefix, ...] = ()
        self._present: dict[AttachmentKey, Attachment] = {}
        self._fds: dict[AttachmentKey, int] = {}
        self._lost: set[AttachmentKey] = set()
        self._identities: dict[AttachmentKey, tuple[int, int]] = {}
        """Which namespace a path led to when its TUN was opened: a path may come to lead to another."""
        self._busy: set[AttachmentKey] = set()
        self._idle = threading.Condition(self._lock)

    # Addresses

    def set_subnets(self, subnets: tuple[Prefix, ...]) -> None:
        """Give out addresses of these subnets from now on; what is held outside them stays its holder's."""
        with self._lock:
            if subnets == self._subnets:
                return
            ipam = Ipam(subnets, self._rest_s)
            strays = ipam.restore(self._ipam.held(), self._ipam.resting(time.time()))
            self._ipam, self._subnets = ipam, subnets
        if strays:
            _log.warning("held outside this node's subnets: %s", ", ".join(str(stray.ip) for stray in strays))

    def free(self) -> dict[Prefix, int]:
        """Return how many addresses of each subnet can be given out now."""
        with self._lock:
            return dict(self._ipam.free(time.time()))

    # Attach

    def attach(self, request: AttachRequest) -> Attachment:
        """Give a Pod its interface; the same request again gets the same answer. Raise Refusal."""
        with self._only(request.key):
            present = self._present.get(request.key)
            if present is not None and self._moved(present):
                self.lose(present.key, f"{present.netns_path} is another namespace now")
            if present is not None and request.key not in self._lost:
                return self._same(present, request)
            if present is not None:  # its device vanished: the sandbox wants it back
                self._take_down(request.key, EventKind.DETACHED, "made anew")
            attachment = self._make(request)
            _log.info("attached %s with %s", attachment.key, _text(attachment.addresses))
            self._events.record(EventKind.ATTACHED, _text(attachment.addresses), key=attachment.key)
            return attachment

    @staticmethod
    def _same(present: Attachment, request: AttachRequest) -> Attachment:
        held = {interface.ip for interface in present.addresses}
        if present.netns_path != request.netns_path:
            raise Refusal(
                Kind.EXISTS,
                f"attachment {request.key} is there already, in {present.netns_path}: detach it first, or use another id",
            )
        if request.mtu_bytes not in (0, present.mtu_bytes):
            raise Refusal(
                Kind.EXISTS,
                f"attachment {request.key} is there already with MTU {present.mtu_bytes}, not {request.mtu_bytes}: "
                "detach it first",
            )
        if not held.issuperset(request.addresses):
            wanted = ", ".join(map(str, request.addresses))
            raise Refusal(
                Kind.EXISTS,
                f"attachment {request.key} is there already with {_text(present.addresses)}, not {wanted}: detach it first",
            )
        return present

    def _make(self, request: AttachRequest) -> Attachment:
        if request.mtu_bytes > self._mtu_bytes:
            raise Refusal(
                Kind.INVALID,
                f"mtu_bytes {request.mtu_bytes} is more than the overlay carries: at most {self._mtu_bytes}",
            )
        identity = netns.identity(request.netns_path)
        if identity == netns.identity(netns.OWN):
            raise Refusal(
                Kind.INVALID,
                f"{request.netns_path} is the node's own namespace, and its routes are not a Pod's to take: "
                "Pods on the node's network need no attachment",
            )
        with ExitStack() as undo:
            with self._lock:
                addresses = self._ipam.allocate(request.key, request.addresses, time.time())
            undo.callback(self._return_unused, request.key)
            if 0 < request.mtu_bytes < _LEAST_MTU_BYTES and any(interface.version == 6 for interface in addresses):
                raise Refusal(
                    Kind.INVALID,
                    f"mtu_bytes {request.mtu_bytes} is less than IPv6 needs: {_LEAST_MTU_BYTES} at least (RFC 8200)",
                )
            mtu_bytes = request.mtu_bytes or self._mtu_bytes
            attachment = Attachment(request.key, request.netns_path, addresses, mtu_bytes, request.labels)
            self._journal.begin_attach(attachment)
            undo.callback(self._journal.finish_detach, request.key, 0.0)
            fd = tun.create(request.netns_path, request.key.if_name, self._dress(attachment), self._offloads)
            undo.callback(tun.discard, fd)
            self._engine.attach(attachment, fd)
            undo.callback(self._engine.detach, request.key)
            self._journal.commit_attach(request.key)
            undo.pop_all()
        with self._lock:
            self._present[request.key] = attachment
            self._identities[request.key] = identity
            self._fds[request.key] = fd
        return attachment

    def _return_unused(self, key: AttachmentKey) -> None:
        with self._lock:
            self._ipam.withdraw(key)

    def _dress(self, attachment: Attachment) -> tun.Dress:
        gateways = tuple(node_address(interface.network).ip for interface in attachment.addresses)
        return tun.Dress(attachment.addresses, gateways, (), attachment.mtu_bytes, self._offloads.max_segments)

    # Detach

    def detach(self, key: AttachmentKey) -> bool:
        """Take a Pod's interface away; False when there was none. Raise Refusal."""
        with self._only(key):
            if key not in self._present:
                # A set-up whose undoing failed may have left a row; without one this does nothing.
                self._journal.finish_detach(key, time.time())
                return False
            self._take_down(key, EventKind.DETACHED, "asked for")
            return True

    def sync(self, live: Collection[AttachmentKey]) -> tuple[AttachmentKey, ...]:
        """Release every attachment that is not in the live set; return them. Goes on past a failure, then raises it."""
        released = []
        failure: Refusal | None = None
        for key in [attachment.key for attachment in self.list() if attachment.key not in set(live)]:
            try:
                with self._only(key):
                    if key in self._present:
                        self._take_down(key, EventKind.DETACHED, "not in the live set")
                        released.append(key)
            except Refusal as refusal:
                failure = refusal
        if failure is not None:
            raise failure
        return tuple(released)

    def _take_down(self, key: AttachmentKey, kind: EventKind, why: str) -> None:
        self._journal.begin_detach(key)
        with self._lock:
            attachment = self._present[key]
            fd = self._fds.pop(key, -1)
            self._lost.add(key)  # until all of it is done: should a step fail, a second attach must not find it whole
        if fd >= 0:
            self._engine.detach(key)
            tun.discard(fd)
        now_s = time.time()
        self._journal.finish_detach(key, now_s)
        with self._lock:
            self._ipam.release(key, now_s)
            del self._present[key]
            self._identities.pop(key, None)
            self._lost.discard(key)
        self._journal.forget_resting(now_s - self._rest_s)
        _log.info("detached %s (%s)", key, why)
        self._events.record(kind, f"{_text(attachment.addresses)} rests; {why}", key=key)

    # Restart

    def restore(self, subnets: tuple[Prefix, ...]) -> None:
        """Take up where the last router stopped: re-open what was attached, undo what was not acknowledged."""
        now_s = time.time()
        for recorded in self._journal.load().attachments:
            if recorded.intent is not Intent.ATTACHED:
                attachment = recorded.attachment
                _log.info("undoing %s, which was %s when the last router stopped", attachment.key, recorded.intent)
                tun.remove(attachment.netns_path, attachment.key.if_name)
                # What was being detached had been in use, what was being attached had not.
                self._journal.finish_detach(attachment.key, now_s if recorded.intent is Intent.DETACHING else 0.0)
        self._journal.forget_resting(now_s - self._rest_s)
        state = self._journal.load()
        attachments = [recorded.attachment for recorded in state.attachments]
        with self._lock:
            self._ipam = Ipam(subnets, self._rest_s)
            self._subnets = subnets
            self._ipam.restore({attachment.key: attachment.addresses for attachment in attachments}, state.resting)
        for attachment in attachments:
            self._reopen(attachment)

    def _reopen(self, attachment: Attachment) -> None:
        self._present[attachment.key] = attachment
        try:
            fd = tun.reopen(attachment.netns_path, attachment.key.if_name, self._dress(attachment), self._offloads)
        except Refusal as refusal:
            self.lose(attachment.key, refusal.message)
            return
        self._fds[attachment.key] = fd
        self._identities[attachment.key] = netns.identity(attachment.netns_path)
        self._engine.attach(attachment, fd)

    def _moved(self, present: Attachment) -> bool:
        """Tell whether an attachment's path leads to another namespace than when its TUN was opened."""
        try:
            return self._identities.get(present.key) != netns.identity(present.netns_path)
        except Refusal:
            return False  # gone, not replaced: attaching will say so

    def lose(self, key: AttachmentKey, why: str) -> None:
        """Note that a device is gone; its addresses stay held until it is detached, synced away or attached anew."""
        self._lost.add(key)
        _log.warning("lost %s: %s; its addresses are kept until it is detached", key, why)
        self._events.record(EventKind.ATTACHMENT_LOST, why, key=key)

    # Reading

    def list(self) -> tuple[Attachment, ...]:
        """Return every attachment, in order."""
        with self._lock:
            return tuple(sorted(self._present.values(), key=lambda attachment: attachment.key))

    def lost(self) -> frozenset[AttachmentKey]:
        """Return attachments whose device is gone."""
        return frozenset(self._lost)

    def ring_drops(self) -> dict[AttachmentKey, int]:
        """Return what the kernel dropped at each TUN's full ring."""
        present = [attachment for attachment in self.list() if attachment.key not in self._lost]
        drops = tun.ring_drops([(attachment.netns_path, attachment.key.if_name) for attachment in present])
        return {attachment.key: drops[index] for index, attachment in enumerate(present)}

    def close(self) -> None:
        """Let go of every TUN; they stay, with their addresses, for the next router. The engine was stopped before."""
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    @contextmanager
    def _only(self, key: AttachmentKey) -> Iterator[None]:
        """Be the only one to work on a key."""
        with self._idle:
            self._idle.wait_for(lambda: key not in self._busy)
            self._busy.add(key)
        try:
            yield
        finally:
            with self._idle:
                self._busy.discard(key)
                self._idle.notify_all()


def _text(addresses: tuple[Interface, ...]) -> str:
    return ", ".join(str(interface.ip) for interface in addresses)
