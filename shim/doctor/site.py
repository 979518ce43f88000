"""The node that is examined: its files, its kernel's, and what its router answers."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shim.answers import Attachment, Node, Status
from shim.client import Client, ClientError
from shim.install.cni import DEFAULT_SOCKET
from shim.install.containerd import CONFIG
from shim.install.root import Root

_TIMEOUT_S = 5.0
_UCRED = struct.Struct("iII")  # struct ucred, linux/socket.h
_NO_NODE = -1


@dataclass(frozen=True, slots=True)
class Answers:
    """What a router says of itself."""

    status: Status
    attachments: tuple[Attachment, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """One node."""

    root: Root
    socket_path: str = DEFAULT_SOCKET
    pods: int = 110
    """How many it is to carry: a kubelet's own limit, unless somebody knows better."""
    containerd_config: str = CONFIG
    answers: Answers | None = None
    unreachable: str = ""
    """Why there are no answers."""
    router_pid: int = _NO_NODE

    def kernel(self, path: str) -> Path:
        """Return where a file of /proc, /sys or /dev is: the tree's, if it has that directory, else the running kernel's."""
        top = "/" + path.lstrip("/").partition("/")[0]
        return self.root.at(path) if self.root.at(top).is_dir() else Path(path)

    def read(self, path: str) -> str:
        """Return such a file's content without blanks around; empty when it cannot be read."""
        try:
            return self.kernel(path).read_text().strip()
        except (OSError, ValueError):
            return ""

    def number(self, path: str) -> int | None:
        """Return the number in such a file, None when there is none."""
        found = self.read(path)
        return int(found) if found.isdecimal() else None


def ask(socket_path: str) -> tuple[Answers | None, str, int]:
    """Return what the router at a socket answers, or why it does not; and its pid, -1 when nobody listens."""
    try:
        with Client(socket_path, _TIMEOUT_S) as client:
            answers = Answers(client.status(), client.attachments(), client.subnets().nodes)
    except ClientError as error:
        return None, error.message, _listener(socket_path)
    return answers, "", _listener(socket_path)


def _listener(socket_path: str) -> int:
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT_S)
        probe.connect(socket_path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(credentials)[0])
    return _NO_NODE


def own_environment(pid: int) -> str:
    """Return command line and environment of a process, as one text; empty when they cannot be read."""
    parts = []
    for name in ("cmdline", "environ"):
        with suppress(OSError):
            parts.append(os.fsdecode(Path(f"/proc/{pid}/{name}").read_bytes()))
    return "\0".join(parts)
