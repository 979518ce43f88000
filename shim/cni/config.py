"""The network configuration a runtime hands over on standard input (CNI specification, section 1 and "Execution"), checked."""

from __future__ import annotations

from shim.cni.errors import CONFIG, DECODE, FIELD, VERSION, CniError
from shim.lean.document import read
from shim.lean.router import DEFAULT_SOCKET, WAIT_S

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any, TypeVar

    _T = TypeVar("_T")

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
_SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
_VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The specification's key, and the one libcni once wrote."""
_MOST_BYTES = 16 << 20
_UNSERVED = ("ipRanges", "aliases")
"""Capabilities of CNI's conventions that this plugin does not have: to be told so is better than an address out of range."""


class Config:
    """A network configuration. Each property is checked when it is asked for: a DEL must not fail by what only ADD uses."""

    def __init__(self, content: bytes) -> None:
        """Read what came on standard input. CniError(DECODE) when it is no JSON object."""
        if len(content) > _MOST_BYTES:
            raise CniError(DECODE, f"the network configuration has more than {_MOST_BYTES} bytes")
        try:
            found = read(content)
        except (ValueError, RecursionError) as error:
            raise CniError(DECODE, f"the network configuration on standard input is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise CniError(DECODE, "the network configuration on standard input is no JSON object")
        self._found: dict[str, Any] = found

    @property
    def version(self) -> str:
        """The version of the specification it speaks; 0.1.0 where it says none, which is not spoken here."""
        return _kind(self._found.get("cniVersion", "0.1.0"), str, "cniVersion")

    def check_version(self, command: str) -> None:
        """Raise CniError(VERSION) when a verb cannot be done in this version."""
        if self.version not in VERSIONS:
            spoken = f"podwire-cni speaks {', '.join(VERSIONS)}"
            raise CniError(VERSION, f"incompatible CNI version: the configuration says {self.version!r}; {spoken}")
        least = _SINCE.get(command)
        if least is not None and VERSIONS.index(self.version) < VERSIONS.index(least):
            raise CniError(VERSION, f"{command} came with CNI {least}; the configuration says {self.version!r}")

    @property
    def name(self) -> str:
        """Name of the network."""
        found = _kind(self._found.get("name", ""), str, "name")
        if not found or not found.isprintable() or any(c.isspace() for c in found) or len(found) > 60:
            raise CniError(CONFIG, f"name {found!r}: give the network a name of 1 to 60 characters without whitespace")
        return found

    @property
    def owner(self) -> str:
        """Whose the network's attachments are, in the router's books."""
        return f"cni:{self.name}"

    @property
    def socket_path(self) -> str:
        """Where the router listens."""
        found = _kind(self._found.get("socket", DEFAULT_SOCKET), str, "socket")
        if not found.startswith("/") or not found.isprintable():  # a NUL would end it somewhere else
            raise CniError(CONFIG, f"socket {found!r}: give the absolute path of the router's socket")
        return found

    @property
    def wait_s(self) -> float:
        """How long ADD waits for a router that restarts."""
        found = self._found.get("wait_s", WAIT_S)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 600:
            raise CniError(CONFIG, f"wait_s {found!r}: give seconds, 0 to 600")
        return float(found)

    @property
    def mtu_bytes(self) -> int:
        """MTU of the interface; 0 for the overlay's."""
        return _number(self._found.get("mtu", 0), "mtu", 65535)

    def check_own(self) -> None:
        """Raise CniError(CONFIG) for what this plugin is asked in vain."""
        if self._found.get("ipam"):
            raise CniError(CONFIG, "ipam: the router hands the addresses out; take the section away")
        for name in _UNSERVED:
            asked = self._runtime(name)
            if asked:
                why = "podwire-cni does not have this capability; take it out of the configuration's capabilities"
                raise CniError(FIELD, f"runtimeConfig.{name} {asked!r}: {why}")

    @property
    def addresses(self) -> list[str]:
        """Addresses asked for by the capability `ips` or by args.cni.ips, without a prefix length."""
        asked = self._runtime("ips") or self._arg("ips") or []
        if not isinstance(asked, list) or not all(isinstance(each, str) for each in asked):
            raise CniError(CONFIG, f"ips {asked!r}: give a list of addresses")
        return [each.partition("/")[0] for each in asked]

    @property
    def mac(self) -> str:
        """The hardware address asked for; empty for none."""
        return _kind(self._runtime("mac") or self._arg("mac") or "", str, "mac")

    @property
    def labels(self) -> dict[str, str]:
        """Labels of args.cni.labels."""
        asked = self._arg("labels") or []
        if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
            raise CniError(CONFIG, f'labels {asked!r}: give a list of {{"key": …, "value": …}}')
        return {_kind(each.get("key"), str, "labels"): _kind(each.get("value", ""), str, "labels") for each in asked}

    @property
    def ports(self) -> list[dict[str, Any]]:
        """Port mappings of the capability, as the router takes them."""
        asked = self._runtime("portMappings") or []
        if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
            raise CniError(CONFIG, f"portMappings {asked!r}: give a list of objects")
        found = []
        for each in asked:
            host = _kind(each.get("hostip") or "", str, "hostIP")
            mapping = {
                "host_port": _number(each.get("hostport", 0), "hostPort", 65535),
                "container_port": _number(each.get("containerport", 0), "containerPort", 65535),
                "protocol": _kind(each.get("protocol") or "tcp", str, "protocol").lower(),
                "host_address": "" if host in ("0.0.0.0", "::") else host,  # any address, in Kubernetes' words
            }
            # A port without a host port is only a note on the Pod: Kubernetes' runtimes hand it over all the same.
            if mapping["host_port"]:
                found.append(mapping)
        return found

    @property
    def limits(self) -> dict[str, int] | None:
        """Limits of the capability `bandwidth`, in bits, as the router takes them; None for none."""
        asked = self._runtime("bandwidth")
        if not asked:
            return None
        if not isinstance(asked, dict):
            raise CniError(CONFIG, f"bandwidth {asked!r}: give an object")
        most = (1 << 63) - 1
        return {
            field: _number(asked.get(name.lower()) or 0, f"bandwidth.{name}", most)
            for name, field in (
                ("ingressRate", "ingress_bits_per_s"),
                ("ingressBurst", "ingress_burst_bits"),
                ("egressRate", "egress_bits_per_s"),
                ("egressBurst", "egress_burst_bits"),
            )
        }

    @property
    def dns(self) -> dict[str, list[str]]:
        """The resolver settings of the capability `dns`, in a result's words."""
        asked = self._runtime("dns") or self._found.get("dns") or {}
        if not isinstance(asked, dict):
            raise CniError(CONFIG, f"dns {asked!r}: give an object")
        found = {}
        for theirs, ours in (
            ("servers", "nameservers"),
            ("nameservers", "nameservers"),
            ("searches", "search"),
            ("search", "search"),
            ("options", "options"),
        ):
            values = asked.get(theirs)
            if values:
                if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
                    raise CniError(CONFIG, f"dns.{theirs} {values!r}: give a list of texts")
                found[ours] = values
        return found

    @property
    def previous(self) -> dict[str, Any] | None:
        """The result of the plugin before, or of ADD; None where there was none."""
        found = self._found.get("prevResult")
        if found is not None and not isinstance(found, dict):
            raise CniError(CONFIG, "prevResult is no object")
        for name in ("interfaces", "ips", "routes"):
            listed = (found or {}).get(name) or []
            if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
                raise CniError(CONFIG, f"prevResult.{name} {listed!r}: it must be a list of objects")
        _object((found or {}).get("dns"), "prevResult.dns")
        return found

    @property
    def valid_attachments(self) -> list[dict[str, str]]:
        """What GC is to leave alone, as keys of the router. CniError when it is not said: then everything would go."""
        for name in _VALID_ATTACHMENTS:
            found = self._found.get(name)
            if found is None:
                continue
            if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                raise CniError(CONFIG, f'{name}: give a list of {{"containerID": …, "ifname": …}}')
            return [
                {
                    "sandbox_id": _kind(each.get("containerID"), str, f"{name}: containerID"),
                    "if_name": _kind(each.get("ifname"), str, f"{name}: ifname"),
                }
                for each in found
            ]
        raise CniError(CONFIG, f"GC without {' or '.join(_VALID_ATTACHMENTS)} would release everything: give the list")

    def _runtime(self, capability: str) -> Any:
        return _folded(_object(self._found.get("runtimeConfig"), "runtimeConfig").get(capability))

    def _arg(self, name: str) -> Any:
        return _object(_object(self._found.get("args"), "args").get("cni"), "args.cni").get(name)


def _folded(found: Any) -> Any:
    """Return a capability's value with its keys in lower case: containerd says HostPort, as Go's decoder takes any case."""
    if isinstance(found, dict):
        return {str(key).lower(): value for key, value in found.items()}
    return [_folded(each) for each in found] if isinstance(found, list) else found


def _object(found: Any, name: str) -> dict[str, Any]:
    return {} if found is None else _kind(found, dict, name)


def _kind(found: Any, kind: type[_T], name: str) -> _T:
    if not isinstance(found, kind):
        word = "a text" if kind is str else "an object"
        raise CniError(CONFIG, f"{name} {found!r}: give {word}")
    return found


def _number(found: Any, name: str, most: int) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
        raise CniError(CONFIG, f"{name} {found!r}: give a whole number from 0 to {most}")
    return found
