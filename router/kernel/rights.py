"""Whether this process may do what a router does; asked first, so that nothing is half made."""

from __future__ import annotations

import os
from pathlib import Path

from router.errors import Kind, Refusal

_TUN = "/dev/net/tun"
_NEEDED = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}  # linux/capability.h: make TUNs, enter namespaces


def check() -> None:
    """Raise Refusal(STATE) that says what is missing: a capability, or the TUN device."""
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    missing = [name for bit, name in _NEEDED.items() if not effective >> bit & 1]
    if missing:
        raise Refusal(Kind.STATE, f"the router needs {' and '.join(missing)}: run it as root")
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise Refusal(
            Kind.STATE,
            f"cannot open {_TUN} ({error.strerror}): load the module (modprobe tun), or, in a container, pass the device "
            "in (--device /dev/net/tun)",
        ) from None
