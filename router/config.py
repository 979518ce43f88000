"""Settings of a router: flags over environment (PODWIRE_*) over file (TOML) over defaults, all checked here.

Every setting has one name: `mtu_bytes`, or `tls.cert` for one in a table. The command line says --mtu-bytes and
--tls-cert, the environment PODWIRE_MTU_BYTES and PODWIRE_TLS_CERT, the file `mtu_bytes = 1400` and `[tls] cert = "…"`.
A relative path counts from the working directory, in a file from the file's own directory.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from router.errors import Kind, Refusal
from router.model import Endpoint, Offloads, Prefix
from router.subnets.check import check_networks
from router.values import (
    Switch,
    choice_reader,
    number_reader,
    read_endpoint,
    read_flag,
    read_hosts,
    read_key_prefix,
    read_listen,
    read_name,
    read_path,
    read_prefixes,
    read_runtimes,
    read_seconds,
    read_switch,
    read_text,
    read_urls,
)

ENVIRONMENT = "PODWIRE_"
ENVIRONMENT_ELSEWHERE = frozenset({"PODWIRE_CONFIG"})
"""Variables of ours that are no settings."""


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
class Web:
    """A page and metrics over HTTP, for reading only."""

    listen: Endpoint
    remote: bool = False
    """Whether that may be another address than a loopback one."""
    hosts: tuple[str, ...] = ()
    """Names by which people reach it, beside localhost and addresses."""


@dataclass(frozen=True, slots=True)
class Etcd:
    """A cluster of etcd v3 in which nodes lease their subnets."""

    endpoints: tuple[str, ...]
    """URLs, http or https, without a path; the first that answers is used."""
    prefix: str = "/podwire"
    """Before every key: one prefix, one Pod network."""
    ttl_s: float = 30.0
    """How long a lease outlives its router; whole seconds, 3 at least."""
    ipv4_length: int = 24
    """Prefix length of an IPv4 subnet to take; the same on all nodes."""
    ipv6_length: int = 64
    reserve: bool = False
    """Keep the subnets this node's for good, whether its lease lives or not."""
    ca: Path | None = None
    """Authority that signed the servers' certificates; None: the system's."""
    cert: Path | None = None
    """Certificate to show them, with its key."""
    key: Path | None = None
    user: str = ""
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """An API server whose Nodes say the table."""

    config: str
    """Path of a kubeconfig, or "in-cluster"."""
    context: str = ""
    """Context of the kubeconfig; empty: the current one."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that `podwire router run` can be told."""

    node: str
    networks: tuple[Prefix, ...]
    """The cluster range."""
    underlay: Endpoint
    """Where this router receives from other nodes."""
    subnets_file: Path | None = None
    """Where the subnet table comes from: this, `etcd` or `kubernetes`; without any of them only over gRPC."""
    etcd: Etcd | None = None
    kubernetes: Kubernetes | None = None
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
    web: Web | None = None
    confine: Switch = Switch.AUTO
    """Whether to give up the rights that a router does not need."""
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
    named = _FLAGS.get(name) or name.removeprefix("offloads.")
    return "--" + named.replace("_", "-").replace(".", "-")


def _settled(read: dict[str, object]) -> Settings:
    """Put tables together and check what settings say of each other."""
    for name in ("node", "network", "underlay"):
        if name not in read:
            raise Refusal(
                Kind.INVALID,
                f"{name} is not set: give {flag(name)}, {ENVIRONMENT}{_shout(name)}, or {name} in the --config file",
            )
    tables: dict[str, dict[str, object]] = {name: {} for name in ("tls", "web", "offloads", "etcd", "kubernetes")}
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
    if tables["web"]:
        plain["web"] = _web(tables["web"])
    if tables["etcd"]:
        plain["etcd"] = _etcd(tables["etcd"])
    if tables["kubernetes"]:
        if "config" not in tables["kubernetes"]:
            raise Refusal(Kind.INVALID, f"kubernetes.config is not set ({flag('kubernetes.config')})")
        plain["kubernetes"] = Kubernetes(**tables["kubernetes"])  # type: ignore[arg-type]
    given = [name for name, field_name in _SOURCES.items() if plain.get(field_name) is not None]
    if len(given) > 1:
        raise Refusal(
            Kind.INVALID, f"the subnet table comes from one source, not from {' and '.join(map(flag, given))}"
        )
    settings = Settings(**plain)  # type: ignore[arg-type]
    check_networks(settings.networks, settings.underlay)
    if settings.etcd is not None:
        _check_lengths(settings.networks, settings.etcd)
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


def _web(given: dict[str, object]) -> Web:
    if "listen" not in given:
        raise Refusal(Kind.INVALID, f"web.listen is not set ({flag('web.listen')})")
    found = Web(**given)  # type: ignore[arg-type]
    if not (found.listen.address.is_loopback or found.remote):
        raise Refusal(
            Kind.INVALID,
            f"web.listen {found.listen} is no loopback address, and whoever reaches the page may read it: if that is meant, "
            f"set web.remote as well ({flag('web.remote')})",
        )
    return found


def _etcd(given: dict[str, object]) -> Etcd:
    if "endpoints" not in given:
        raise Refusal(Kind.INVALID, f"etcd.endpoints is not set ({flag('etcd.endpoints')})")
    found = Etcd(**given)  # type: ignore[arg-type]
    if (found.cert is None) != (found.key is None):
        raise Refusal(Kind.INVALID, "etcd.cert and etcd.key go together: set both, or neither")
    if bool(found.user) != (found.password_file is not None):
        raise Refusal(Kind.INVALID, "etcd.user and etcd.password_file go together: set both, or neither")
    if any((found.ca, found.cert)) and (plain := [url for url in found.endpoints if not url.startswith("https:")]):
        raise Refusal(Kind.INVALID, f"etcd endpoint {plain[0]} is not https, and certificates are given for it")
    return found


def _check_lengths(networks: tuple[Prefix, ...], etcd: Etcd) -> None:
    """Refuse subnets that do not fit into the cluster range."""
    for network in networks:
        name = f"etcd.ipv{network.version}_length"
        length = etcd.ipv4_length if network.version == 4 else etcd.ipv6_length
        if not network.prefixlen <= length < network.max_prefixlen:
            raise Refusal(
                Kind.INVALID,
                f"{name} {length} cuts no subnets from {network}: use {network.prefixlen + 1} or more "
                f"({flag(name)}), and less than {network.max_prefixlen}",
            )


def _from_file(path: Path) -> Iterator[tuple[str, object]]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Refusal(Kind.INVALID, f"cannot read config file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError says line and column; UnicodeDecodeError is one too
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


_PARSERS: dict[str, Callable[[object], object]] = {
    "node": read_name,
    "network": read_prefixes,
    "underlay": read_endpoint,
    "subnets": read_path,
    "socket": read_path,
    "state_dir": read_path,
    "engine": read_text,
    "engine_threads": number_reader(1, 2, 0),
    "spin_us": number_reader(0, 10_000),
    "spin_percent": number_reader(1, 100),
    "vni": number_reader(0, 0xFFFFFF),
    "mtu_bytes": number_reader(576, 65535 - 68, 0),
    "egress": read_flag,
    "masquerade": read_flag,
    "address_rest_s": read_seconds,
    "confine": read_switch,
    "reconcile": read_runtimes,
    "reconcile_every_s": read_seconds,
    "reconcile_grace_s": read_seconds,
    **{f"offloads.{entry.name}": read_switch for entry in fields(Offloads) if entry.name != "max_segments"},
    "offloads.max_segments": number_reader(1, 128, 0),
    "tls.listen": read_listen,
    "tls.cert": read_path,
    "tls.key": read_path,
    "tls.ca": read_path,
    "web.listen": read_listen,
    "web.remote": read_flag,
    "web.hosts": read_hosts,
    "etcd.endpoints": read_urls,
    "etcd.prefix": read_key_prefix,
    "etcd.ttl_s": number_reader(3, 86400),
    "etcd.ipv4_length": number_reader(1, 31),
    "etcd.ipv6_length": number_reader(1, 127),
    "etcd.reserve": read_flag,
    "etcd.ca": read_path,
    "etcd.cert": read_path,
    "etcd.key": read_path,
    "etcd.user": read_text,
    "etcd.password_file": read_path,
    "kubernetes.config": read_text,
    "kubernetes.context": read_text,
    "log.level": choice_reader("debug", "info", "warning", "error"),
    "log.format": choice_reader("text", "json"),
}
_FIELDS = {
    "network": "networks",
    "subnets": "subnets_file",
    "socket": "socket_path",
    "log.level": "log_level",
    "log.format": "log_format",
}
"""Settings that the code has another word for: there is room for a unit or a plural."""
_FLAGS = {
    "tls.listen": "listen",
    "tls.ca": "tls-client-ca",
    "web.hosts": "web-host",
    "etcd.endpoints": "etcd",
    "kubernetes.config": "kubernetes",
}
"""Settings that the command line has a shorter word for."""
_SOURCES = {"subnets": "subnets_file", "etcd.endpoints": "etcd", "kubernetes.config": "kubernetes"}
"""Settings that name a source of the subnet table, and the field each is in."""
_TABLES = {name.partition(".")[0]: None for name in _PARSERS if "." in name}
