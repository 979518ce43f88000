"""The CNI plugin compiled, against the one in Python: the same configurations and environments, the same answers.

Both run as executables against real servers of their own. What is fed to them is drawn by a seed, printed when a case
fails; most of it cannot work. What the verbs do on a real node is in tests/conformance/test_cni.py, for both.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cni_sides import Json, Side

SEED = 20_251
CASES = 300
COMMANDS = ("ADD",) * 10 + ("DEL",) * 3 + ("CHECK",) * 4 + ("STATUS", "GC", "GC", "VERSION", "FETCH", "add", "")
STAND_IN = 0x10F800
"""First of the characters that stand for lone surrogates in the compiled one (shim/cni/native/src/text.rs)."""


# What is fed to both.

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 7.5, -0.0, 1e300, 1e-7, 65535, 65536, 2**63, 2**64, 10**40, "", "x", "it's", 'say "x"', "\x07",
    "a b", "é😀\u200b", "\ud800", "x" * 90, [], [1], ["x"], [None], [[]], [{}], {}, {"a": 1}, {"key": "\udfff"}, {"é'": [True, None]},
]  # fmt: skip
VALID: Json = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "podwire-cni",
    "mtu": 1400,
    "wait_s": 0,
    "args": {"cni": {"ips": ["10.1.1.9"], "labels": [{"key": "tier", "value": "front"}], "mac": "02:00:00:00:00:09"}},
    "runtimeConfig": {
        "ips": ["10.1.1.7/24"],
        "mac": "0A:00:00:00:00:07",
        "portMappings": [{"HostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": "192.0.2.1"}],
        "bandwidth": {
            "ingressRate": 8_000_000,
            "ingressBurst": 800_000,
            "egressRate": 9_000_000,
            "egressBurst": 80_000,
        },
        "dns": {"servers": ["10.1.1.53"], "searches": ["local"], "options": ["ndots:5"]},
    },
    "dns": {"nameservers": ["192.0.2.53"], "search": ["elsewhere"]},
    "prevResult": {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/box"}, {"name": "lo"}],
        "ips": [{"address": "10.1.1.7/32", "gateway": "10.1.1.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.1"}, {"dst": "10.9.0.0/16"}],
        "dns": {"domain": "pods"},
        "more": [1, 2.5, {"deep": None}],
    },
    "cni.dev/valid-attachments": [{"containerID": "box", "ifname": "eth0"}],
}
NOWHERE = "nowhere"
"""Stands for the path of a socket at which nobody listens."""
RARE: Json = {"ipam": {"type": "host-local"}, "cni.dev/attachments": [], "socket": NOWHERE}
VERSIONS = ("0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.0.0", "1.1.0", "1.1.0", "2.0.0")
VALUES: dict[str, tuple[bytes, ...]] = {
    "CNI_CONTAINERID": (b"box", b"box", b"box", b"box", b"other.1", b"", b"-x", b"a/b", "ä".encode(), b"x" * 300, b"a\xff"),
    "CNI_NETNS": (b"/run/netns/box", b"/run/netns/box", b"/run/netns/box", b"", b"box", b"/run/\xff", b"/run/\x07"),
    "CNI_IFNAME": (b"eth0", b"eth0", b"eth0", b"eth0", b"net1", b"", b".", b"a b", b"a:b", b"x" * 16, b"\xff\xfe", "ä".encode(), "\u2003".encode()),
    "CNI_ARGS": (
        b"", b"", b"IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;K8S_POD_UID=", b"IP=10.1.1.44/24,,10.1.1.45;MAC=02:00:00:00:00:0a",
        b"MAC=nonsense", b"odd", b" A=b ;; C=d=e ", b"K8S_POD_NAME=\xff", b"\x1c;\xc2\x85;\xe2\x80\x83x", b"K8S_POD_NAME='\"\n",
    ),
}  # fmt: skip


def drawn(rng: random.Random) -> tuple[str, dict[str, bytes], bytes]:
    """Return a verb, an environment and a configuration without its socket, often with something wrong in it."""
    command = rng.choice(COMMANDS)
    environment = {
        name: rng.choice(values) if rng.random() < 0.1 else values[0]
        for name, values in VALUES.items()
        if rng.random() > 0.02
    }
    config = copy.deepcopy(VALID)
    config["cniVersion"] = rng.choice(VERSIONS) if rng.random() < 0.4 else "1.1.0"
    for name in list(config):
        if rng.random() < 0.15:
            del config[name]
    if rng.random() < 0.1:
        name = rng.choice(list(RARE))
        config[name] = RARE[name]
    if rng.random() < 0.04 and "runtimeConfig" in config:
        config["runtimeConfig"]["aliases"] = ["web", copy.deepcopy(rng.choice(NASTY))]
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
        spoil(rng, config)
    content = bytearray(json.dumps(config).encode())
    if rng.random() < 0.05:
        content[rng.randrange(len(content))] = rng.randrange(256)
        del content[rng.randrange(1, 2 * len(content)) :]
    return command, environment, bytes(content)


def at_home(content: bytes, directory: Path) -> bytes:
    """Return a configuration with its socket in a directory: the node's own router is never asked, nor left anything."""
    nowhere = json.dumps(NOWHERE), json.dumps(str(directory / "none/router.sock"))
    content = content.replace(nowhere[0].encode(), nowhere[1].encode())
    return b'{"socket": "%s", ' % str(directory / "router.sock").encode() + content[1:]


def spoil(rng: random.Random, found: Any) -> None:
    """Put something nasty somewhere into a document."""
    places = list(found) if isinstance(found, dict) else list(range(len(found)))
    if not places:
        return
    at = rng.choice(places)
    if isinstance(found[at], dict | list) and found[at] and rng.random() < 0.8:
        spoil(rng, found[at])
    elif isinstance(found, dict) and rng.random() < 0.2:
        found[rng.choice(("hostip", "dst", "ipRanges", "key", "socket", "Servers"))] = copy.deepcopy(rng.choice(NASTY))
    else:
        found[at] = copy.deepcopy(rng.choice(NASTY))


def as_said(side: Side, said: tuple[int, Any, str]) -> tuple[int, Any, str]:
    """Return what one said without what may differ: where its server is, and why something is no JSON."""
    status, answer, stderr = said
    if isinstance(answer, dict) and answer.get("code") == 6:
        answer["msg"] = answer["msg"].partition(" is no JSON: ")[0]
    text = json.dumps(answer).replace(str(side.socket.parent), "HERE")
    answer = json.loads(text)
    return status, _with_surrogates(answer), stderr


def _with_surrogates(found: Any) -> Any:
    if isinstance(found, str):
        return "".join(chr(ord(c) - STAND_IN + 0xD800) if ord(c) >= STAND_IN else c for c in found)
    if isinstance(found, dict):
        return {_with_surrogates(key): _with_surrogates(value) for key, value in found.items()}
    return [_with_surrogates(each) for each in found] if isinstance(found, list) else found


def asked(side: Side) -> tuple[object, ...]:
    """Return what the server of one was asked since the last time, but when."""
    daemon = side.daemon
    found = (
        [replace(each, began_ns=0) for each in daemon.asked],
        daemon.checked[:],
        [owner for owner, _ in daemon.synced],
    )
    for each in (daemon.asked, daemon.checked, daemon.synced):
        each.clear()
    return *found, dict(daemon.held)


@pytest.mark.timeout(300)
def test_both_say_the_same_and_ask_the_same(sides: list[Side]) -> None:
    rng = random.Random(SEED)
    codes: dict[object, int] = {}
    with ThreadPoolExecutor(len(sides)) as pool:
        for number in range(CASES):
            command, environment, config = drawn(rng)

            environ = {name.encode(): value for name, value in environment.items()} | {b"CNI_COMMAND": command.encode()}

            def one(side: Side, environ: dict[bytes, bytes] = environ, config: bytes = config) -> tuple[object, ...]:
                said = side.run(environ, at_home(config, side.socket.parent))
                return *as_said(side, said), asked(side)

            first, second = pool.map(one, sides)
            assert first == second, f"seed {SEED}, case {number}: {command} {environment} {config!r}"
            status, answer, *_ = first
            code = answer["code"] if status and isinstance(answer, dict) else status
            assert code != 199, f"seed {SEED}, case {number}: {answer}"
            codes[code] = codes.get(code, 0) + 1
    # That the cases are worth something: what works, and each way to refuse.
    assert {0, 1, 2, 3, 4, 6, 7, 100} <= codes.keys(), codes
    assert codes[0] > CASES / 10, codes


# Each alone.


@pytest.mark.parametrize(
    "config",
    [
        b" " * (16 << 20) + b"{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"name": "\xff"}',
        b'{"name": "net", "name"',
        b"\xef\xbb\xbf{}",
        b'{"mtu": 1e99999}',
        b'{"$serde_json::private::Number": "x"}',
        b'{"cniVersion": "\\ud800"}',
        b"\0" * 100,
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "VERSION"])
def test_hostile_configurations_get_an_answer(sides: list[Side], command: str, config: bytes) -> None:
    for side in sides:
        status, answer, stderr = side.run({b"CNI_COMMAND": command.encode()}, config)
        assert stderr == ""
        assert status in (0, 1)
        assert status == 0 or (answer["code"] in (1, 6) and answer["msg"])


def test_random_bytes_get_an_answer(native: Side) -> None:
    rng = random.Random(SEED)
    for number in range(200):
        config = rng.randbytes(rng.randrange(200)) if number % 2 else bytes(rng.choices(b'{}[]",:\\u0d8e-1.tn ', k=40))
        environ = {name.encode(): rng.randbytes(9).replace(b"\0", b"") for name in VALUES} | {b"CNI_COMMAND": b"ADD"}
        status, answer, stderr = native.run(environ, config)
        assert (status, answer["code"], stderr) == (1, 6, "") or answer["code"] in (1, 4, 7), (SEED, number, config)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["ADD"], ["--help", "more"]])
def test_by_hand_both_explain_themselves(sides: list[Side], arguments: list[str]) -> None:
    first, second = (
        subprocess.run([side.executable, *arguments], capture_output=True, env={}, timeout=60, check=False)
        for side in sides
    )
    assert (first.returncode, first.stdout, first.stderr) == (second.returncode, second.stdout, second.stderr)
    assert b"CNI_COMMAND" in first.stderr
