"""Settings of a router: flags over environment (PODWIRE_*) over file (TOML) over defaults, all checked here.

Every setting has one name: `mtu_bytes`, or `tls.cert` for one in a table. The command line says --mtu-bytes and
--tls-cert, the environment PODWIRE_MTU_BYTES and PODWIRE_TLS_CERT, the file `mtu_bytes = 1400` and `[tls] cert = "…"`.
A relative path counts from the working directory, in a file from the file's own directory.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum, unique
from ipaddress import ip_address, ip_network
from pathlib import Path

from router.errors import Kind, Refusal
from router.model import GENEVE_PORT, Address, Endpoint, Offloads, Prefix
from router.subnets.check import check_name, check_networks

ENVIRONMENT = "PODWIRE_"
ENVIRONMENT_ELSEWHERE = frozenset({"PODWIRE_CONFIG"})
"""Variables of ours that are no settings."""


@unique
class Switch(StrEnum):
    """Whether to use something of the kernel's."""

    AUTO = "auto"
    """If the self-test finds that it works."""
    ON = "on"
    """It must work: not to start is better than to go without."""
    OFF = "off"


@dataclass(frozen=True, slots=True)
class OffloadSwitches:
    """One switch for each feature of `model.Offloads`."""

    tun_checksum: Switch = Switch.AUTO
    tun_tso: Switch = Switch.AUTO
    tun_uso: Switch = Switch.AUTO
    udp_segment: Switch = Switch.AUTO
    udp_gro: Switch = Switch.AUTO
    max_segments: int = 0
    """1 to 128; 0: what the kernel can."""


@dataclass(frozen=True, slots=True)
class Tls:
    """A TCP listener for the control API; clients show a certificate of the same authority."""

    listen: Endpoint
    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """All that `podwire router run` can be told."""

    node: str
    networks: tuple[Prefix, ...]
    """The cluster range."""
    underlay: Endpoint
    """Where this router receives from other nodes."""
    subnets_file: Path | None = None
    """Where the subnet table comes from; None: only over gRPC."""
    socket_path: Path = Path("/run/podwire/router.sock")
    state_dir: Path = Path("/var/lib/podwire")
    engine: str = "auto"
    engine_threads: int = 0
    """1 or 2; 0: what the number of processors suggests."""
    spin_us: int = 0
    """How long the native engine looks for more before it sleeps."""
    spin_percent: int = 50
    """Most of a core that looking may take."""
    vni: int = 1
    mtu_bytes: int = 0
    """Overlay MTU; 0: derived from the underlay interface."""
    egress: bool = True
    """Whether Pods may reach what lies outside the cluster, through the node."""
    masquerade: bool = True
    """Whether they do so with the node's address."""
    address_rest_s: float = 60.0
    """How long a released address rests before another Pod may get it."""
    offloads: OffloadSwitches = field(default_factory=OffloadSwitches)
    tls: Tls | None = None
    reconcile: tuple[str, ...] = ()
    """Runtimes asked from time to time which Pods there are: "containerd:SOCKET" or "podman"."""
    reconcile_every_s: float = 30.0
    reconcile_grace_s: float = 60.0
    """How long a Pod may be attached before its runtime has to know it."""
    log_level: str = "info"
    log_format: str = "text"


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None) -> Settings:
    """Gather settings from flags (setting to value; None is not given), environment and file; refuse what is wrong."""
    here = Path.cwd()
    chosen: dict[str, tuple[object, str, Path]] = {}
    if config_file is not None:
        base = config_file.absolute().parent
        chosen |= {name: (value, f"{config_file}: {name}", base) for name, value in _from_file(config_file)}
    chosen |= {name: (value, f"{ENVIRONMENT}{_shout(name)}", here) for name, value in _from_environment(environ)}
    for name, value in flags.items():
        if name not in _PARSERS:
            raise Refusal(Kind.INVALID, f"flags: no setting {name!r}{_nearest(name, _PARSERS)}")
        if value is not None and value != ():
            chosen[name] = (value, flag(name), here)
    read: dict[str, object] = {}
    for name, (value, where, base) in chosen.items():
        try:
            found = _PARSERS[name](value)
            read[name] = base / found if isinstance(found, Path) else found
        except ValueError as error:
            raise Refusal(Kind.INVALID, f"{where}: {error}") from None
    return _settled(read)


def flag(name: str) -> str:
    """Return the command line's word for a setting."""
    named = {"tls.listen": "listen", "tls.ca": "tls-client-ca"}.get(name) or name.removeprefix("offloads.")
    return "--" + named.replace("_", "-").replace(".", "-")


def parse_address(text: str) -> Address:
    """Read an IPv4 or IPv6 address. Raises ValueError with words for people."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IPv4 or IPv6 address (names are not looked up)") from None
    if address.version == 6 and (address.scope_id or address.ipv4_mapped):
        raise ValueError(f"{text!r} has a zone or is an IPv4 address in IPv6's clothes: write the plain address")
    return address


def parse_prefix(text: str) -> Prefix:
    """Read `ADDR/LENGTH`, a network's address. Raises ValueError with words for people, host bits corrected."""
    head, slash, length = text.partition("/")
    # ip_network also takes a netmask and a lone address; one spelling is enough, and those are easily mistakes.
    plain = length.isascii() and length.isdecimal() and "%" not in head
    if plain:
        with suppress(ValueError):
            return ip_network(text)
    address = parse_address(head)
    if not slash:
        raise ValueError(f"{text!r} has no prefix length: write {address}/LENGTH")
    if not plain or int(length) > address.max_prefixlen:
        raise ValueError(f"{text!r}: the prefix length must be a number from 0 to {address.max_prefixlen}")
    raise ValueError(f"{text!r} has bits set behind the prefix: did you mean {ip_network(text, strict=False)}?")


def parse_endpoint(text: str, default_port: int = GENEVE_PORT) -> Endpoint:
    """Read `ADDR[:PORT]`, `[V6]:PORT` or a bare IPv6 address. Raises ValueError with words for people."""
    if match := re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text):
        host, port = match.groups()
        if ":" not in host:
            raise ValueError(f"{text!r}: brackets are for IPv6 addresses")
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    address = parse_address(host)
    if address.is_unspecified or address.is_multicast or int(address) == 0xFFFFFFFF:
        raise ValueError(f"{text!r} is not the address of one machine")
    if port is None:
        return Endpoint(address, default_port)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r}: the port must be a number from 1 to 65535")
    return Endpoint(address, int(port))


def _settled(read: dict[str, object]) -> Settings:
    """Put tables together and check what settings say of each other."""
    for name in ("node", "network", "underlay"):
        if name not in read:
            raise Refusal(
                Kind.INVALID,
                f"{name} is not set: give {flag(name)}, {ENVIRONMENT}{_shout(name)}, or {name} in the --config file",
            )
    tables: dict[str, dict[str, object]] = {"tls": {}, "offloads": {}}
    plain: dict[str, object] = {}
    for name, value in read.items():
        table, dot, key = name.partition(".")
        if dot and table in tables:
            tables[table][key] = value
        else:
            plain[_FIELDS.get(name, name)] = value
    plain["offloads"] = OffloadSwitches(**tables["offloads"])  # type: ignore[arg-type]
    if tables["tls"]:
        if missing := [f"tls.{entry.name}" for entry in fields(Tls) if entry.name not in tables["tls"]]:
            raise Refusal(
                Kind.INVALID,
                f"a TCP listener needs mutual TLS, and {', '.join(missing)} is not set ({', '.join(map(flag, missing))})",
            )
        plain["tls"] = Tls(**tables["tls"])  # type: ignore[arg-type]
    settings = Settings(**plain)  # type: ignore[arg-type]
    check_networks(settings.networks, settings.underlay)
    if 0 < settings.mtu_bytes < 1280 and (wide := [n for n in settings.networks if n.version == 6]):
        raise Refusal(
            Kind.INVALID, f"mtu_bytes {settings.mtu_bytes} is below the 1280 that IPv6 needs (RFC 8200), for {wide[0]}"
        )
    if settings.offloads.tun_checksum is Switch.OFF and Switch.ON in (
        settings.offloads.tun_tso,
        settings.offloads.tun_uso,
    ):
        raise Refusal(Kind.INVALID, "offloads.tun_tso and tun_uso cannot be on while offloads.tun_checksum is off")
    return settings


def _from_file(path: Path) -> Iterator[tuple[str, object]]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Refusal(Kind.INVALID, f"cannot read config file {path}: {error.strerror}") from None
    except ValueError as error:  # tomllib.TOMLDecodeError says line and column; UnicodeDecodeError is one too
        raise Refusal(Kind.INVALID, f"config file {path} is not TOML: {error}") from None
    for name, value in document.items():
        if isinstance(value, dict) and name in _TABLES:
            for key, inner in value.items():
                if f"{name}.{key}" not in _PARSERS:
                    near = _nearest(key, (known.removeprefix(f"{name}.") for known in _PARSERS))
                    raise Refusal(Kind.INVALID, f"{path}: no setting {key!r} in [{name}]{near}")
                yield f"{name}.{key}", inner
        elif name in _TABLES:
            raise Refusal(Kind.INVALID, f"{path}: {name} is a table: write [{name}] and its settings below")
        elif name not in _PARSERS:
            raise Refusal(Kind.INVALID, f"{path}: no setting {name!r}{_nearest(name, (*_PARSERS, *_TABLES))}")
        else:
            yield name, value


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    names = {ENVIRONMENT + _shout(name): name for name in _PARSERS}
    for variable, value in environ.items():
        if variable in names:
            yield names[variable], value
        # Kubernetes sets PODWIRE_PORT and the like for a Service named podwire: only what looks misspelt is refused.
        elif (
            variable.startswith(ENVIRONMENT)
            and variable not in ENVIRONMENT_ELSEWHERE
            and (near := _nearest(variable, names, cutoff=0.85))
        ):
            raise Refusal(Kind.INVALID, f"environment: no setting {variable}{near}")


def _shout(name: str) -> str:
    return name.upper().replace(".", "_")


def _nearest(name: str, known: Mapping[str, object] | Iterator[str] | tuple[str, ...], cutoff: float = 0.5) -> str:
    match = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"; did you mean {match[0]}?" if match else ""


# Parsers take what TOML, the environment (str) or a flag holds; ValueError says what is wrong with it.


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} must be text")
    return value


def _name(value: object) -> str:
    try:
        check_name(_text(value))
    except Refusal as refusal:
        raise ValueError(refusal.message) from None
    return str(value)


def _path(value: object) -> Path:
    return Path(value if isinstance(value, Path) else _text(value))


def _prefixes(value: object) -> tuple[Prefix, ...]:
    entries = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f"{value!r} must be a list of prefixes, such as 10.32.0.0/12")
    return tuple(parse_prefix(_text(entry)) for entry in entries)


def _runtimes(value: object) -> tuple[str, ...]:
    entries = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f"{value!r} must be a list of runtimes, such as containerd:/run/containerd/containerd.sock")
    for entry in entries:
        kind, _, path = _text(entry).partition(":")
        if entry != "podman" and (kind != "containerd" or not path.startswith("/")):
            raise ValueError(f"{entry!r} must be containerd:/PATH/OF/ITS/SOCKET, or podman")
    return tuple(entries)


def _endpoint(value: object) -> Endpoint:
    return parse_endpoint(_text(value))


def _listen(value: object) -> Endpoint:
    text = _text(value)
    endpoint = parse_endpoint(text, default_port=0)
    if not endpoint.port:
        raise ValueError(f"{text!r} needs a port")
    return endpoint


def _flag(value: object) -> bool:
    word = str(value).lower()
    if word not in _WORDS:
        raise ValueError(f"{value!r} must be true or false")
    return _WORDS[word]


def _switch(value: object) -> Switch:
    word = str(value).lower()
    if word == Switch.AUTO:
        return Switch.AUTO
    if word not in _WORDS:
        raise ValueError(f"{value!r} must be auto, on or off")
    return Switch.ON if _WORDS[word] else Switch.OFF


def _number(low: int, high: int, *special: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", text):
            number = -1
        else:
            number = int(text)
        if number not in special and not low <= number <= high:
            also = "".join(f"{entry} or " for entry in special)
            raise ValueError(f"{value!r} must be {also}a whole number from {low} to {high}")
        return number

    return parse


def _seconds(value: object) -> float:
    try:
        seconds = -1.0 if isinstance(value, bool) else float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise ValueError(f"{value!r} must be a number of seconds from 0 to 86400")
    return seconds


def _choice(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} must be one of {', '.join(words)}")
        return str(value)

    return parse


_WORDS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}

_PARSERS: dict[str, Callable[[object], object]] = {
    "node": _name,
    "network": _prefixes,
    "underlay": _endpoint,
    "subnets": _path,
    "socket": _path,
    "state_dir": _path,
    "engine": _text,
    "engine_threads": _number(1, 2, 0),
    "spin_us": _number(0, 10_000),
    "spin_percent": _number(1, 100),
    "vni": _number(0, 0xFFFFFF),
    "mtu_bytes": _number(576, 65535 - 68, 0),
    "egress": _flag,
    "masquerade": _flag,
    "address_rest_s": _seconds,
    "reconcile": _runtimes,
    "reconcile_every_s": _seconds,
    "reconcile_grace_s": _seconds,
    **{f"offloads.{entry.name}": _switch for entry in fields(Offloads) if entry.name != "max_segments"},
    "offloads.max_segments": _number(1, 128, 0),
    "tls.listen": _listen,
    "tls.cert": _path,
    "tls.key": _path,
    "tls.ca": _path,
    "log.level": _choice("debug", "info", "warning", "error"),
    "log.format": _choice("text", "json"),
}
_FIELDS = {
    "network": "networks",
    "subnets": "subnets_file",
    "socket": "socket_path",
    "log.level": "log_level",
    "log.format": "log_format",
}
"""Settings that the code has another word for: there is room for a unit or a plural."""
_TABLES = {name.partition(".")[0]: None for name in _PARSERS if "." in name}
