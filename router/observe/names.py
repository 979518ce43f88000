"""What people call a Pod or a node, and which attachment or peer they mean by it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address

from router.engine.interface import Source
from router.errors import Kind, Refusal
from router.model import NODE_KEY, Address, Attachment, AttachmentKey, Endpoint, Node

NODE = "node"
"""Means the node itself."""


@dataclass(frozen=True, slots=True)
class Party:
    """An attachment or a peer, and what people call it."""

    source: Source
    name: str


class Names:
    """Finds parties by name, as they are at the moment of the question. Thread-safe."""

    def __init__(
        self,
        node: str,
        attachments: Callable[[], Collection[Attachment]],
        nodes: Callable[[], Collection[Node]],
        own: Callable[[], Collection[Address]] = tuple,
        refused: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`nodes` returns the other nodes of the table, `own` the overlay addresses of this one.

        `refused` says why a Pod of that name was not attached lately; empty: it was not refused.
        """
        self._node = node
        self._attachments = attachments
        self._nodes = nodes
        self._own = own
        self._refused = refused

    @property
    def own_name(self) -> str:
        """Name of this node."""
        return self._node

    @property
    def own(self) -> Collection[Address]:
        """Addresses of this node in the overlay."""
        return self._own()

    def attachment(self, subject: str) -> AttachmentKey | None:
        """Return the attachment on this node that a subject means: a Pod's name, namespace/name, sandbox id, key or address.

        Refusal when it may mean several.
        """
        if subject in (NODE, self._node, *map(str, self._own())):
            return NODE_KEY
        found = [each.key for each in self._attachments() if subject in words(each)]
        if len(found) > 1:
            several = ", ".join(str(key) for key in sorted(found)[:8])
            raise Refusal(Kind.INVALID, f"{subject!r} may mean {several}: name one of them as SANDBOX_ID/INTERFACE")
        return found[0] if found else None

    def peer(self, subject: str) -> Node | None:
        """Return the other node that a subject means: its name, its endpoint, or the address of that."""
        for node in self._nodes():
            if subject in (node.name, str(node.endpoint), str(node.endpoint.address)):
                return node
        return None

    def source(self, subject: str) -> Source:
        """Return the attachment or peer that a subject means. Refusal when there is none."""
        key = self.attachment(subject)
        if key is not None:
            return key
        node = self.peer(subject)
        if node is not None:
            return node.endpoint
        if why := self._refused(subject):
            raise Refusal(Kind.NOT_FOUND, f"{subject} is not attached to node {self._node}: {why}")
        raise Refusal(
            Kind.NOT_FOUND,
            f"no Pod or node {subject!r} is known on node {self._node}: `podwire pods` lists its Pods, `podwire peers` the nodes",
        )

    def name(self, source: Source) -> str:
        """Return what people call an attachment or peer; of one that is not known any more, its key or endpoint."""
        return self.naming()(source)

    def held(self, key: AttachmentKey) -> Attachment | None:
        """Return the attachment of that key; None when it is not there, or is the node itself."""
        return next((each for each in self._attachments() if each.key == key), None)

    def pod(self, key: AttachmentKey) -> str:
        """As `name`, of an attachment: it does not look at the nodes, of which there may be thousands."""
        if key == NODE_KEY:
            return self._node
        held = self.held(key)
        return str(key) if held is None else pod_name(held)

    def naming(self) -> Callable[[Source], str]:
        """Return `name` for many questions at one time: it looks at everything once."""
        pods = {each.key: pod_name(each) for each in self._attachments()}
        nodes = {each.endpoint: each.name for each in self._nodes()}

        def name(source: Source) -> str:
            if isinstance(source, Endpoint):
                return nodes.get(source) or f"a stranger ({source})"
            return self._node if source == NODE_KEY else pods.get(source) or str(source)

        return name

    def receives(self, source: Source) -> Callable[[Address], bool]:
        """Return what tells whether packets to an address are for that party, as things are now."""
        if isinstance(source, Endpoint):
            subnets = [subnet for node in self._nodes() if node.endpoint == source for subnet in node.subnets]
            return lambda address: any(address in subnet for subnet in subnets)
        held = {interface.ip for each in self._attachments() if each.key == source for interface in each.addresses}
        addresses = held | set(self._own()) if source == NODE_KEY else held
        return lambda address: address in addresses

    def owner(self, address: str) -> Node | None:
        """Return the other node in whose subnets an address lies; None when there is none, or it is no address."""
        try:
            wanted = ip_address(address)
        except ValueError:
            return None
        for node in self._nodes():
            if any(wanted in subnet for subnet in node.subnets if subnet.version == wanted.version):
                return node
        return None


def pod_name(attachment: Attachment) -> str:
    """Return namespace/name of a Pod, its name, or its sandbox id, whichever is known."""
    labels = dict(attachment.labels)
    name, namespace = labels.get("name"), labels.get("namespace")
    if not name:
        return attachment.key.sandbox_id
    return f"{namespace}/{name}" if namespace else name


def words(attachment: Attachment) -> frozenset[str]:
    """Return everything that means an attachment."""
    name = dict(attachment.labels).get("name", "")
    addresses = (str(interface.ip) for interface in attachment.addresses)
    return frozenset((pod_name(attachment), name, attachment.key.sandbox_id, str(attachment.key), *addresses)) - {""}
