"""What a setting's value may be: each reader turns what a flag, a variable or a file says into what the router uses.

Every one raises ValueError with words for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum, unique
from ipaddress import ip_address, ip_network
from pathlib import Path

from router.errors import Refusal
from router.model import GENEVE_PORT, Address, Endpoint, Prefix
from router.subnets.check import check_name


@unique
class Switch(StrEnum):
    """Whether to use something of the kernel's."""

    AUTO = "auto"
    """If the self-test finds that it works."""
    ON = "on"
    """It must work: not to start is better than to go without."""
    OFF = "off"


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


def read_text(value: object) -> str:
    """Read text."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} must be text")
    return value


def read_name(value: object) -> str:
    """Read a node's name."""
    try:
        check_name(read_text(value))
    except Refusal as refusal:
        raise ValueError(refusal.message) from None
    return str(value)


def read_path(value: object) -> Path:
    """Read a path."""
    return Path(value if isinstance(value, Path) else read_text(value))


def _listed(value: object, what: str) -> tuple[str, ...]:
    """Read texts, in a list or with commas; `what` says of what, with an example."""
    entries = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f"{value!r} must be a list of {what}")
    return tuple(map(read_text, entries))


def read_prefixes(value: object) -> tuple[Prefix, ...]:
    """Read prefixes, in a list or with commas."""
    return tuple(map(parse_prefix, _listed(value, "prefixes, such as 10.32.0.0/12")))


def read_runtimes(value: object) -> tuple[str, ...]:
    """Read runtimes to ask."""
    entries = _listed(value, "runtimes, such as containerd:/run/containerd/containerd.sock")
    for entry in entries:
        kind, _, path = entry.partition(":")
        if entry != "podman" and (kind != "containerd" or not path.startswith("/")):
            raise ValueError(f"{entry!r} must be containerd:/PATH/OF/ITS/SOCKET, or podman")
    return entries


def read_endpoint(value: object) -> Endpoint:
    """Read an address with or without a port."""
    return parse_endpoint(read_text(value))


def read_listen(value: object) -> Endpoint:
    """Read an address and a port to listen at."""
    text = read_text(value)
    endpoint = parse_endpoint(text, default_port=0)
    if not endpoint.port:
        raise ValueError(f"{text!r} needs a port")
    return endpoint


def read_urls(value: object) -> tuple[str, ...]:
    """Read URLs of servers, in a list or with commas: scheme, host and port."""
    entries = _listed(value, "URLs, such as http://192.0.2.10:2379")
    for entry in entries:
        if not re.fullmatch(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}", entry.rstrip("/")):
            raise ValueError(f"{entry!r} must be http://HOST:PORT or https://HOST:PORT")
    return tuple(entry.rstrip("/") for entry in entries)


def read_hosts(value: object) -> tuple[str, ...]:
    """Read names of a host, in a list or with commas."""
    entries = _listed(value, "names of a host, such as podwire.example.org")
    for entry in entries:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?", entry):
            raise ValueError(f"{entry!r} must be a name of a host, without a port")
    return tuple(entry.lower() for entry in entries)


def read_key_prefix(value: object) -> str:
    """Read what keys begin with: a path, without its last slash."""
    text = read_text(value).rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", text):
        raise ValueError(f"{value!r} must be a path of letters, digits, '.', '_' and '-', such as /podwire")
    return text


def read_flag(value: object) -> bool:
    """Read yes or no."""
    word = str(value).lower()
    if word not in _WORDS:
        raise ValueError(f"{value!r} must be true or false")
    return _WORDS[word]


def read_switch(value: object) -> Switch:
    """Read auto, on or off."""
    word = str(value).lower()
    if word == Switch.AUTO:
        return Switch.AUTO
    if word not in _WORDS:
        raise ValueError(f"{value!r} must be auto, on or off")
    return Switch.ON if _WORDS[word] else Switch.OFF


def number_reader(low: int, high: int, *special: int) -> Callable[[object], int]:
    """Return a reader of whole numbers from `low` to `high`, or one of the special ones."""

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


def read_seconds(value: object) -> float:
    """Read seconds, up to a day."""
    try:
        seconds = -1.0 if isinstance(value, bool) else float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise ValueError(f"{value!r} must be a number of seconds from 0 to 86400")
    return seconds


def choice_reader(*words: str) -> Callable[[object], str]:
    """Return a reader of one of the words."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} must be one of {', '.join(words)}")
        return str(value)

    return parse


_WORDS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
