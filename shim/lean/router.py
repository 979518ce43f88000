"""What every runtime front-end asks of the router: attach and wait for it, detach whatever happens."""

from __future__ import annotations

import time

from shim.lean import tombstone
from shim.lean.call import call
from shim.lean.errors import RouterError

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

BEGAN_NS = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
"""When this process began, which is when its request did: an Attach that began before a Detach is refused, however late."""

DEFAULT_SOCKET = "/run/podwire/router.sock"
WAIT_S = 5.0
"""How long a router that restarts is waited for."""
ATTACH_TIMEOUT_S = 20.0
DETACH_TIMEOUT_S = 10.0
_PAUSE_S = 0.05


def attach(
    socket_path: str,
    sandbox_id: str,
    if_name: str,
    netns_path: str,
    *,
    wait_s: float = WAIT_S,
    timeout_s: float = ATTACH_TIMEOUT_S,
    **wanted: Any,
) -> dict[str, Any]:
    """Give a sandbox an interface, waiting `wait_s` for a router that restarts; return the Attachment. RouterError.

    `wanted` are further fields of AttachRequest: addresses, mtu_bytes, labels, owner, ports, limits.
    """
    key = {"sandbox_id": sandbox_id, "if_name": if_name}
    request = {"key": key, "netns_path": netns_path, "began_ns": BEGAN_NS, **wanted}
    until_s = time.monotonic() + wait_s
    while True:
        try:
            answer = call(socket_path, "Attach", request, timeout_s=timeout_s)
            return dict(answer["attachment"] or {})
        except RouterError as error:
            # Idempotent: one whose answer was lost is asked again.
            if error.code != "UNAVAILABLE" or time.monotonic() >= until_s:
                raise
        time.sleep(_PAUSE_S)


def detach(socket_path: str, sandbox_id: str, if_name: str) -> str:
    """Take an interface away; when no router answers, leave a tombstone for the next and return why.

    RouterError when the router refused. OSError when there is neither a router nor a place for a tombstone.
    """
    try:
        key = {"sandbox_id": sandbox_id, "if_name": if_name}
        call(socket_path, "Detach", {"key": key}, timeout_s=DETACH_TIMEOUT_S)
    except RouterError as error:
        if not error.nobody_answered:
            raise
        tombstone.leave(socket_path, sandbox_id, if_name)
        return error.message
    return ""
