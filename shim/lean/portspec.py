"""Port mappings as people write them: [ADDRESS:]PORT:PORT[/PROTOCOL], as "8080:80", "192.0.2.1:53:53/udp", "[::1]:80:80"."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any


def parse(text: str) -> dict[str, Any]:
    """Return the fields of a PortMapping. ValueError with words for people; the router checks the rest."""
    ports, _, protocol = text.partition("/")
    host, colon, container_port = ports.rpartition(":")
    address, _, host_port = host.rpartition(":")
    if not colon or not (host_port.isdecimal() and container_port.isdecimal()):
        raise ValueError(f"{text!r} is no port mapping: write [ADDRESS:]HOSTPORT:PORT[/PROTOCOL], as 8080:80/tcp")
    return {
        "host_port": int(host_port),
        "container_port": int(container_port),
        "protocol": protocol or "tcp",
        "host_address": address.removeprefix("[").removesuffix("]"),
    }
