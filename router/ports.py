"""Which port of the node leads to which Pod; no two Pods share one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from router.errors import Kind, Refusal
from router.kernel import portmap
from router.kernel.portmap import Forward
from router.model import Attachment, AttachmentKey, Interface, PortMapping, Prefix


class Ports:
    """Every port mapping of this node, in force. Thread-safe; without any, nothing of the node is touched."""

    def __init__(self, networks: tuple[Prefix, ...], egress: bool) -> None:
        """`networks` is the cluster range; `egress` whether Pods may answer who is outside of it."""
        self._networks = networks
        self._egress = egress
        self._lock = threading.Lock()
        self._forwards: dict[AttachmentKey, tuple[Forward, ...]] = {}

    def claim(self, key: AttachmentKey, addresses: tuple[Interface, ...], mappings: tuple[PortMapping, ...]) -> None:
        """Let ports lead to a Pod. Raise Refusal, and nothing has changed: EXISTS when one is another's, INVALID, STATE."""
        if not mappings:
            return
        wanted = tuple(forward for mapping in mappings for forward in _forwards(key, addresses, mapping))
        with self._lock:
            for other, present in self._forwards.items():
                for forward in present:
                    for mapping in mappings:
                        if other != key and forward.mapping.overlaps(mapping):
                            raise Refusal(
                                Kind.EXISTS,
                                f"port {mapping} of this node, wanted for {key}, leads to {other} ({forward.mapping}): "
                                "ask for another port, or detach that Pod",
                            )
            before, self._forwards = self._forwards, {**self._forwards, key: wanted}
            try:
                self._enforce((lambda: portmap.add(wanted)) if before and key not in before else None)
                portmap.forget_flows(wanted)
            except Refusal:
                self._forwards = before
                # What is in force must be what is known here. When this is refused too, the first refusal says why.
                with suppress(Refusal):
                    self._enforce()
                raise

    def release(self, key: AttachmentKey) -> None:
        """Let a Pod's ports lead nowhere; without any it is no error. Raise Refusal(STATE)."""
        with self._lock:
            if (present := self._forwards.get(key)) is None:
                return
            before, self._forwards = self._forwards, {k: v for k, v in self._forwards.items() if k != key}
            try:
                self._enforce((lambda: portmap.remove(present)) if self._forwards else None)
                portmap.forget_flows(present)
            except Refusal:
                self._forwards = before  # to be released again; until then no other Pod gets these ports
                raise

    def restore(self, attachments: Iterable[Attachment]) -> None:
        """Put what an earlier router acknowledged in force, and nothing else. Raise Refusal(STATE)."""
        with self._lock:
            self._forwards = {
                each.key: tuple(
                    forward for mapping in each.ports for forward in _forwards(each.key, each.addresses, mapping)
                )
                for each in attachments
                if each.ports
            }
            if self._forwards:
                self._enforce()
            else:
                portmap.remove_all()

    def _enforce(self, change: Callable[[], None] | None = None) -> None:
        """Put what is known here in force: by a change to what is there, or whole. Raise Refusal(STATE)."""
        if change is not None:
            # A change of a few elements takes the same time however many there are. It is refused when somebody has
            # flushed the node's rules (a firewall's reload does it); then all of ours are due again.
            with suppress(Refusal):
                change()
                return
        if self._forwards:
            every = [forward for forwards in self._forwards.values() for forward in forwards]
            portmap.replace(every, self._networks, self._egress)
        else:
            portmap.delete_table()


def _forwards(key: AttachmentKey, addresses: tuple[Interface, ...], mapping: PortMapping) -> list[Forward]:
    """Return where a mapping leads: to the Pod's first address of each IP version it is reached by."""
    first: dict[int, IPv4Address | IPv6Address] = {}
    for interface in addresses:
        first.setdefault(interface.version, interface.ip)
    if mapping.host_address is None:
        return [Forward(mapping, address) for address in first.values()]
    if (pod := first.get(mapping.host_address.version)) is None:
        raise Refusal(
            Kind.INVALID,
            f"port {mapping}: {key} has no IPv{mapping.host_address.version} address for it to lead to",
        )
    return [Forward(mapping, pod)]
