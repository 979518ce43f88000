"""From Node objects to rows of the subnet table, and which are left out and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.errors import Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.check import check_name
from router.values import parse_address, parse_endpoint, parse_prefix

ENDPOINT = "podwire.dev/endpoint"
OFFLOAD = "podwire.dev/offload"
_MOST_NAMED = 4

Row = Node | str
"""A row, or in words why there is none."""


def name_of(item: object) -> str:
    """Return a Node object's name. Raise ValueError when it has none."""
    name = _inner(item, "metadata").get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("a Node without a name")
    return name


def version_of(item: object) -> str:
    """Return the resourceVersion of an object, or of a list. Raise ValueError when it has none."""
    version = _inner(item, "metadata").get("resourceVersion")
    if not isinstance(version, str) or not version:
        raise ValueError("an object without a resourceVersion")
    return version


def row_of(item: object, networks: tuple[Prefix, ...], underlay: Endpoint) -> Row:
    """Return the row of a Node object that has a name, as seen by a router with that cluster range and underlay."""
    name = name_of(item)
    try:
        check_name(name)
        annotations = _inner(_inner(item, "metadata"), "annotations")
        subnets = _subnets(_inner(item, "spec"), networks)
        endpoint = _endpoint(_inner(item, "status"), annotations, underlay)
        return Node(name, endpoint, subnets, _offload(annotations))
    except ValueError as error:
        return str(error)
    except Refusal as refusal:
        return refusal.message


def _subnets(spec: Mapping[str, Any], networks: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    texts = spec.get("podCIDRs") or [spec.get("podCIDR") or ""]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("its podCIDRs are no list of texts")
    found = []
    for text in filter(None, texts):
        try:
            subnet = parse_prefix(text)
        except ValueError as error:
            raise ValueError(f"its podCIDR {error}") from None
        ranges = [network for network in networks if network.version == subnet.version]
        if any(subnet.subnet_of(network) for network in ranges):  # type: ignore[arg-type]
            found.append(subnet)
        elif ranges:  # of an IP version that this network does not carry it may have one
            raise ValueError(
                f"its podCIDR {subnet} is outside the cluster's networks ({', '.join(map(str, networks))})"
            )
    if not found:
        versions = " or ".join(f"IPv{version}" for version in sorted({network.version for network in networks}))
        raise ValueError(f"it has no podCIDR of {versions}")
    return tuple(found)


def _endpoint(status: Mapping[str, Any], annotations: Mapping[str, Any], underlay: Endpoint) -> Endpoint:
    version = underlay.address.version
    if (text := annotations.get(ENDPOINT)) is not None:
        try:
            endpoint = parse_endpoint(str(text), underlay.port)
        except ValueError as error:
            raise ValueError(f"its annotation {ENDPOINT}: {error}") from None
        if endpoint.address.version != version:
            raise ValueError(f"its annotation {ENDPOINT} is {endpoint}, but the underlay here is IPv{version}")
        return endpoint
    addresses = status.get("addresses")
    for entry in addresses if isinstance(addresses, list) else ():
        if isinstance(entry, dict) and entry.get("type") == "InternalIP":
            try:
                address = parse_address(str(entry.get("address")))
            except ValueError as error:
                raise ValueError(f"its InternalIP {error}") from None
            if address.version == version:
                return Endpoint(address, underlay.port)
    raise ValueError(f"it has no InternalIP of IPv{version}")


def _offload(annotations: Mapping[str, Any]) -> bool:
    text = annotations.get(OFFLOAD, "true")
    if text not in ("true", "false"):
        raise ValueError(f'its annotation {OFFLOAD} must be "true" or "false", not {text!r}')
    return bool(text == "true")


def _inner(item: object, key: str) -> Mapping[str, Any]:
    inner = item.get(key) if isinstance(item, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


class Roster:
    """The rows there are, in the order they came, and the Nodes left out. Of one thread at a time."""

    def __init__(self, self_name: str) -> None:
        """Begin with nothing; `self_name` is this node's, which people are told of first."""
        self._self_name = self_name
        self._rows: dict[str, Node] = {}
        self._left_out: dict[str, str] = {}

    def replace(self, entries: Mapping[str, Row]) -> None:
        """Take a whole list of Nodes by name. A row that is as it was stays the same object."""
        rows, self._rows, self._left_out = self._rows, {}, {}
        for name, row in entries.items():
            known = rows.get(name)
            self.put(name, known if known is not None and known == row else row)

    def put(self, name: str, row: Row) -> None:
        """Take one Node."""
        if isinstance(row, str):
            self._rows.pop(name, None)
            self._left_out[name] = row
        else:
            self._left_out.pop(name, None)
            if self._rows.get(name) != row:
                self._rows[name] = row

    def remove(self, name: str) -> None:
        """Forget one Node, known or not."""
        self._rows.pop(name, None)
        self._left_out.pop(name, None)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The table."""
        return tuple(self._rows.values())

    def remarks(self) -> str:
        """Say in one line who is left out and why; empty when nobody is."""
        said = []
        if self._self_name not in self._rows and self._self_name not in self._left_out:
            said.append(f"no Node is named {self._self_name}, as this router's --node is")
        if self._left_out:
            names = sorted(self._left_out, key=lambda name: (name != self._self_name, name))
            named = [f"{name}: {self._left_out[name]}" for name in names[:_MOST_NAMED]]
            more = ["…"] if len(names) > _MOST_NAMED else []
            said.append(f"Nodes left out: {len(names)} ({'; '.join(named + more)})")
        return "; ".join(said)
