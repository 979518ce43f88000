"""Asking a Pod's web server who it sees: the address that a client's packets arrive with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from shim.lab import netns

Address = IPv4Address | IPv6Address
Run = Callable[[Sequence[str]], tuple[int, str]]

PORT = 8080
START_TIMEOUT_S = 10.0


def ask(run: Run, server: Address | str, port: int = PORT) -> Address:
    """Return the address the server sees; `run` runs a command where the client is."""
    host = f"[{server}]" if ":" in str(server) else str(server)
    status, said = run(
        ["busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", f"http://{host}:{port}/cgi-bin/who"]
    )
    assert status == 0, f"{host}:{port} did not answer: {said}"
    # Its socket is one for both versions, and shows IPv4 addresses in IPv6's clothes.
    return ip_address(said.strip().strip("[]").removeprefix("::ffff:"))


def wait_listening(run: Run, port: int = PORT) -> None:
    """Wait until the server listens; `run` runs a command where the server is."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while f":{port} " not in run(["busybox", "netstat", "-ltn"])[1]:
        assert time.monotonic() < deadline_s, f"the web server does not listen after {START_TIMEOUT_S:.0f} s"
        time.sleep(0.02)


def inside(path: Path) -> Run:
    """Return what runs commands in a namespace."""

    def run(command: Sequence[str]) -> tuple[int, str]:
        done = netns.run(path, command, timeout=30)
        return done.returncode, done.stdout + done.stderr

    return run
