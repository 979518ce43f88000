"""Capabilities of a process (capabilities(7)): given up for good, and read for each thread."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

NAMES: Final = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()
"""By number, linux/capability.h; without "CAP_"."""

_VERSION_3 = 0x20080522
_CAPBSET_READ, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 23, 24, 38, 47, 4  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


class Held(NamedTuple):
    """What one thread may do, as /proc says it."""

    effective: int
    permitted: int
    inheritable: int
    bounding: int
    ambient: int
    no_new_privileges: bool
    filters: bool
    """Whether a filter of system calls is in force."""

    @property
    def any(self) -> int:
        """All that it has or may ever get."""
        return self.effective | self.permitted | self.inheritable | self.bounding | self.ambient


def names(bits: int) -> list[str]:
    """Return the names of a set, in the kernel's order; a number for one that is newer than this list."""
    return [NAMES[at] if at < len(NAMES) else str(at) for at in range(64) if bits >> at & 1]


def bits(wanted: Collection[str]) -> int:
    """Return the set of these names."""
    return sum(1 << NAMES.index(name) for name in wanted)


def held_by_threads() -> Iterator[Held]:
    """Yield what each thread of this process holds now."""
    for task in Path("/proc/self/task").iterdir():
        try:
            text = (task / "status").read_text()
        except OSError:  # it ended meanwhile
            continue
        found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        effective, permitted, inheritable, bounding, ambient = (
            int(found[f"Cap{which}"], 16) for which in ("Eff", "Prm", "Inh", "Bnd", "Amb")
        )
        alone, filtered = found["NoNewPrivs"].strip() == "1", found.get("Seccomp", "0").strip() == "2"
        yield Held(effective, permitted, inheritable, bounding, ambient, alone, filtered)


def keep_only(wanted: int) -> None:
    """Give up all but these, in every set of the calling thread, for good; threads that it makes have no more. Raise OSError.

    The bounding set goes first, as it takes CAP_SETPCAP: without it what is run would get back what was given up. Where it
    cannot be cut the others are all the same.
    """
    uncut: OSError | None = None
    for at in range(64):
        there = _libc.prctl(_CAPBSET_READ, at, 0, 0, 0)
        if there < 0:  # past the kernel's last
            break
        if there and not wanted >> at & 1 and uncut is None:
            try:
                what = f"cannot take {names(1 << at)[0]} from the bounding set"
                _checked(_libc.prctl(_CAPBSET_DROP, at, 0, 0, 0), what)
            except OSError as error:
                uncut = error
    _checked(_libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0), "cannot clear the ambient set")
    header, now = struct.pack("=Ii", _VERSION_3, 0), ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, now), "cannot read capabilities")
    effective_low, permitted_low, _, effective_high, permitted_high, _ = struct.unpack("=6I", now.raw)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    kept = struct.pack(
        "=6I", effective_low & low, permitted_low & low, 0, effective_high & high, permitted_high & high, 0
    )
    _checked(_libc.capset(header, kept), "cannot give up capabilities")
    if uncut is not None:
        raise uncut


def gain_nothing() -> None:
    """Let nothing that is run from now on gain a privilege (PR_SET_NO_NEW_PRIVS). Raise OSError."""
    _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "cannot set no_new_privs")


def _checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what} ({os.strerror(code)})")
