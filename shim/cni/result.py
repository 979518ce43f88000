"""What ADD answers (CNI specification, "Success"), in the version the runtime speaks."""

from __future__ import annotations

from shim.cni.config import VERSIONS
from shim.cni.errors import CONFIG, CniError

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def result(
    version: str, attachment: dict[str, Any], mac: str, dns: dict[str, list[str]], previous: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the result of an attachment, what the plugins before found passed on."""
    found: dict[str, Any] = dict(previous or {})
    found["cniVersion"] = version
    interfaces = list(found.get("interfaces") or [])
    mine: dict[str, Any] = {
        "name": attachment["key"]["if_name"],
        "mac": mac,
        "sandbox": attachment["netns_path"],
    }
    if VERSIONS.index(version) >= VERSIONS.index("1.1.0"):
        mine["mtu"] = attachment["mtu_bytes"]
    ips, routes = list(found.get("ips") or []), list(found.get("routes") or [])
    for text in attachment["addresses"]:
        address, _, length = text.partition("/")
        family = 6 if ":" in address else 4
        # As it stands on the interface: a TUN has no link for others of the subnet to be on.
        entry: dict[str, Any] = {
            "address": f"{address}/{128 if family == 6 else 32}",
            "gateway": gateway(address, int(length)),
            "interface": len(interfaces),
        }
        if version.startswith("0."):
            entry["version"] = str(family)
        ips.append(entry)
        route = {"dst": _DEFAULT[family], "gw": entry["gateway"]}
        if route["dst"] not in [each.get("dst") for each in routes]:  # the sandbox's first way out stays
            routes.append(route)
    found |= {"interfaces": [*interfaces, mine], "ips": ips, "routes": routes}
    merged = {**(found.get("dns") or {}), **dns}
    found["dns"] = merged
    return found


def gateway(address: str, length: int) -> str:
    """Return the node's address in the subnet of an address: the first that a host may have (router/ipam.py)."""
    import _socket

    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    packed = _socket.inet_pton(family, address)
    bits = len(packed) * 8
    network = int.from_bytes(packed, "big") >> (bits - length) << (bits - length)
    first = network if length == bits - 1 else network + 1
    return _socket.inet_ntop(family, first.to_bytes(bits // 8, "big"))


def synthetic_mac(container_id: str, if_name: str) -> str:
    """Return a locally administered unicast address that stays the same for an attachment: a TUN has none of its own.

    podman 4.3 fails on an interface without one.
    """
    # FNV-1a, 64 bits: hashlib costs 5 ms to import, and there is nothing to protect.
    found = 0xCBF29CE484222325
    for byte in f"{container_id}/{if_name}".encode():
        found = (found ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return ":".join(f"{byte:02x}" for byte in (0x02, *found.to_bytes(8, "big")[:5]))


def checked_mac(text: str) -> str:
    """Return a hardware address asked for. CniError when it is none a unicast interface can have."""
    parts = text.split(":")
    digits = "0123456789abcdefABCDEF"
    if len(parts) != 6 or not all(len(part) == 2 and part[0] in digits and part[1] in digits for part in parts):
        raise CniError(CONFIG, f"mac {text!r}: write six bytes, as 02:00:0a:01:02:03")
    if int(parts[0], 16) & 1:
        raise CniError(CONFIG, f"mac {text!r} is for many receivers: use one with an even first byte")
    return text.lower()


def own_part(found: dict[str, Any] | None, if_name: str, sandbox: str) -> tuple[list[str], list[str]]:
    """Return addresses and route destinations that a result says of one interface.

    Routes of a result belong to no interface: those through a gateway of ours, or through none, are taken for ours.
    """
    if not found:
        return [], []
    interfaces = found.get("interfaces") or []
    own = [
        index
        for index, each in enumerate(interfaces)
        if each.get("name") == if_name and each.get("sandbox") in (sandbox, None)
    ]
    if not own and interfaces:
        raise CniError(CONFIG, f"prevResult knows no interface {if_name} in {sandbox}: it is not what ADD answered")
    ips = [each for each in found.get("ips") or [] if each.get("interface") in own]
    gateways = [each.get("gateway") for each in ips]
    routes = [each["dst"] for each in found.get("routes") or [] if each.get("gw") in gateways and each.get("dst")]
    return [each["address"] for each in ips if each.get("address")], routes
