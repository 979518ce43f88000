"""The routers between two Pods, as traceroute(8) finds them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from shim.lab.pod import LabPod

_HOP = re.compile(r"^\s*\d+\s+(\S+)", re.MULTILINE)


def trace(source: LabPod, address: IPv4Address | IPv6Address) -> tuple[list[str], str]:
    """Return the hops ("*" where nobody answered) and what traceroute printed."""
    # One probe at a time: a kernel answers only a few unreachable ports a second (icmp_ratelimit).
    command = ["traceroute", f"-{address.version}", "-n", "-q", "1", "-N", "1", "-w", "2", "-m", "8", str(address)]
    done = source.run(command)
    printed = done.stdout.rstrip() or done.stderr.strip()
    return _HOP.findall(printed.partition("\n")[2]), printed
