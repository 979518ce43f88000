"""`podwire-oci-hook createRuntime|poststop`: attach a container when its namespaces are made, detach it when it is gone.

The namespace is known by /proc/PID/ns/net of the container's first process. That path needs no mount that somebody would
have to remove; the router remembers which namespace it led to, so a recycled pid leads it nowhere; and when the process
is killed with all who would have run poststop, the path ends with it, and the router releases what was there.
"""

from __future__ import annotations

import os
import sys

from shim.lean import router
from shim.lean.bundle import Bundle
from shim.lean.errors import RouterError
from shim.lean.logbook import note

TYPE_CHECKING = False  # `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

_IF_NAME = "eth0"
_OWNER = "oci"
_USAGE = """\
podwire-oci-hook createRuntime|poststop: an OCI hook. A container runtime runs it, with the container's state (JSON) on
standard input; `podwire install` writes the hook's configuration. Exit status: 0 done, 1 failed, with a line why.
"""


def main() -> int:
    """Do one hook; return the exit status."""
    stages = {"createRuntime": _create, "prestart": _create, "poststop": _stop}
    stage = stages.get(sys.argv[1] if len(sys.argv) == 2 else "")
    if stage is None:
        sys.stderr.write(_USAGE)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    try:
        stage(_state())
    except (RouterError, OSError, ValueError) as error:
        why = " ".join((getattr(error, "message", "") or str(error)).split())
        _log(f"{sys.argv[1]}: {why}")
        sys.stderr.write(f"podwire: {why}\n")
        return 1
    return 0


def _state() -> dict[str, Any]:
    from json import loads

    try:
        found = loads(sys.stdin.buffer.read(1 << 20))
    except ValueError as error:
        raise ValueError(f"no container's state on standard input: it is no JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("id"), str) or not found["id"]:
        raise ValueError("no container's state on standard input: it must be JSON with an id")
    return found


def _create(state: dict[str, Any]) -> None:
    pid, container_id = state.get("pid"), state["id"]
    if not isinstance(pid, int) or pid <= 0:
        raise ValueError(f"container {container_id} has no process yet: run this hook at createRuntime")
    bundle = Bundle(state.get("bundle") or ".")
    namespace = bundle.namespace
    if namespace is None or namespace.get("path"):
        # The node's own network, or one that another container or plugin has: whoever joins gets what is there.
        _log(f"{container_id}: left alone, its network namespace is {(namespace or {}).get('path') or 'the node’s'}")
        return
    path = f"/proc/{pid}/ns/net"
    found = router.attach(
        _socket_path(),
        container_id,
        _IF_NAME,
        path,
        owner=_OWNER,
        labels=_labels(bundle, container_id),
        **bundle.wishes,
    )
    _log(f"{container_id}: attached with {', '.join(found['addresses'])} in {path}")


def _stop(state: dict[str, Any]) -> None:
    why = router.detach(_socket_path(), state["id"], _IF_NAME)
    _log(f"{state['id']}: detached{f', later: {why}' if why else ''}")


def _labels(bundle: Bundle, container_id: str) -> dict[str, str]:
    name = bundle.annotations.get("io.container.manager.name") or container_id[:12]
    return {"name": name}


def _socket_path() -> str:
    return os.environ.get("PODWIRE_SOCKET", router.DEFAULT_SOCKET)


def _log(message: str) -> None:
    note(os.environ.get("PODWIRE_SHIM_LOG", "/var/log/podwire/shim.log"), message)
