"""Which port of the node leads to which Pod; no two Pods share one."""

from __future__ import annotations

import threading
from collections.abc import Iterable
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
        self._table_is_there = False

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
            if self._table_is_there:
                portmap.add(wanted)
            else:
                portmap.replace(wanted, self._networks, self._egress)
                portmap.forget_flows(wanted)
                self._table_is_there = True
            self._forwards[key] = wanted

    def release(self, key: AttachmentKey) -> None:
        """Let a Pod's ports lead nowhere; without any it is no error. Raise Refusal(STATE)."""
        with self._lock:
            present = self._forwards.get(key)
            if present is None:
                return
            if len(self._forwards) == 1:
                portmap.remove_all()
                self._table_is_there = False
                portmap.forget_flows(present)
            else:
                portmap.remove(present)
            del self._forwards[key]

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
            self._table_is_there = bool(self._forwards)
            if self._table_is_there:
                every = [forward for forwards in self._forwards.values() for forward in forwards]
                portmap.replace(every, self._networks, self._egress)
            else:
                portmap.remove_all()


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
