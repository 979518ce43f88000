"""`podwire-cni`: one verb from the environment, a configuration on standard input, an answer on standard output."""

from __future__ import annotations

import os
import sys

from shim.cni import verbs
from shim.cni.config import NEWEST, VERSIONS, Config
from shim.cni.environment import Environment
from shim.cni.errors import BUG, ENVIRONMENT, CniError

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

_USAGE = """\
podwire-cni: the CNI plugin of Podwire. A container runtime runs it; `podwire install` sets one up to do so.

It reads a network configuration (JSON) on standard input, and in the environment
  CNI_COMMAND      ADD, DEL, CHECK, STATUS, GC or VERSION
  CNI_CONTAINERID  CNI_IFNAME  CNI_NETNS  CNI_ARGS  as the CNI specification has them
Configuration: {"cniVersion": "1.0.0", "name": "podwire", "type": "podwire-cni",
  "socket": "/run/podwire/router.sock", "mtu": 0, "wait_s": 5,
  "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "dns": true}}
It answers JSON on standard output. Exit status: 0 done, 1 with an error object {"code", "msg"}.
"""


def main() -> int:
    """Do one verb; return the exit status."""
    if len(sys.argv) > 1 or "CNI_COMMAND" not in os.environ:
        sys.stderr.write(_USAGE)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 1
    version = NEWEST
    try:
        environment = Environment(os.environ)
        config = Config(sys.stdin.buffer.read())
        if config.version in VERSIONS:
            version = config.version
        answer = _do(environment, config)
    except CniError as error:
        return _fail(version, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the runtime gets an answer
        return _fail(version, CniError(BUG, f"a bug of podwire-cni: {type(error).__name__}: {error}"))
    if answer is not None:
        _write(answer)
    return 0


def _do(environment: Environment, config: Config) -> dict[str, Any] | None:
    command = environment.command
    if command == "VERSION":
        return verbs.version(config)
    config.check_version(command)
    if command == "ADD":
        return verbs.add(environment, config)
    if command == "DEL":
        verbs.delete(environment, config)
    elif command == "CHECK":
        verbs.check(environment, config)
    elif command == "GC":
        verbs.collect(config)
    elif command == "STATUS":
        note = verbs.status(config)
        if note:
            sys.stderr.write(f"podwire-cni: {note}\n")
    else:
        raise CniError(ENVIRONMENT, f"CNI_COMMAND {command!r}: use ADD, DEL, CHECK, STATUS, GC or VERSION")
    return None


def _fail(version: str, error: CniError) -> int:
    answer = {"cniVersion": version, "code": error.code, "msg": error.message}
    if error.details:
        answer["details"] = error.details
    _write(answer)
    return 1


def _write(answer: dict[str, Any]) -> None:
    import json

    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
