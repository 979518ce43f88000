"""Asking a relay: one request, one answer, over its Unix socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from shim.lab.errors import LabError

_TIMEOUT_S = 10.0


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the relay listening at the path. LabError when there is none, or it says no."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(_TIMEOUT_S)
            asking.connect(str(path))
            asking.sendall(json.dumps(request).encode() + b"\n")
            with asking.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
    except (OSError, ValueError) as error:
        raise LabError(f"the relay at {path} does not answer ({error})") from None
    if answer["error"]:
        raise LabError(answer["error"])
    return answer
