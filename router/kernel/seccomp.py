"""A filter of system calls that no router needs, as classic BPF (seccomp(2)), for all threads at once.

It refuses by name and lets the rest be: what a router needs grows with its libraries, and one that is killed by a call of a
newer glibc carries nothing. Calls that carry packets are allowed by their number alone, so that the kernel keeps them in
a bitmap and does not run the filter for them (Linux 5.11, kernel/seccomp.c: seccomp_cache_prepare).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

Program = list[tuple[int, int, int, int]]
"""(code, jt, jf, k) each, as struct sock_filter."""

CALLS: Final = {  # name: (x86-64, arm64); None: that architecture has none
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
"""Refused whole: linux/arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""
OF_MOUNTS: Final = frozenset(("mount", "umount2"))
"""Not refused where runtimes are asked: what they left behind is unmounted, and `ip -netns` mounts a /sys of its own."""
_LOOKED_INTO: Final = {  # allowed for some arguments only
    "clone": (56, 220),
    "clone3": (435, 435),
    "ioctl": (16, 29),
    "setns": (308, 268),
    "socket": (41, 198),
    "unshare": (272, 97),
}
_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column above, and AUDIT_ARCH_* of linux/audit.h."""
_X32_BIT: Final = 0x40000000
"""__X32_SYSCALL_BIT: a second table of calls on x86-64, under the same architecture."""

_NEWNET, _NEWNS = 0x40000000, 0x00020000  # linux/sched.h
_NEW_ANY_BUT_NET: Final = 0x80 | _NEWNS | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000
"""CLONE_NEWTIME NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID."""
_FAMILIES: Final = (1, 2, 10, 16)  # AF_UNIX AF_INET AF_INET6 AF_NETLINK
_TERMINALS: Final = (0x5412, 0x541C)  # TIOCSTI TIOCLINUX: type on somebody's terminal

# linux/seccomp.h, linux/prctl.h
_SET_MODE_FILTER = 1
_TSYNC, _SPEC_ALLOW, _TSYNC_ESRCH = 1, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_CALL: Final = {"x86_64": 317, "aarch64": 277}
"""seccomp(2) itself."""
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16  # struct seccomp_data
# linux/bpf_common.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_libc = ctypes.CDLL(None, use_errno=True)


def is_known(machine: str = platform.machine()) -> bool:
    """Tell whether there is a table of calls for this architecture."""
    return machine in _MACHINES


def program(machine: str, *, mounts: bool = False) -> Program:
    """Return the filter for an architecture; `mounts`: mount, umount2 and mount namespaces are allowed."""
    column, arch = _MACHINES[machine]
    no, no_family, no_such_call = (_ERRNO | code for code in (errno.EPERM, errno.EAFNOSUPPORT, errno.ENOSYS))
    out: Program = [(_LOAD, 0, 0, _AT_ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, no), (_LOAD, 0, 0, _AT_NUMBER)]
    if machine == "x86_64":
        out += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, no)]
    for name, numbers in CALLS.items():
        number = numbers[column]
        if number is not None and not (mounts and name in OF_MOUNTS):
            out += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, no)]
    unshared = _NEW_ANY_BUT_NET & ~(_NEWNS if mounts else 0)
    looks: dict[str, Program] = {
        # Flags of clone3 are behind a pointer; glibc falls back to clone when there is no such call.
        "clone3": [(_RETURN, 0, 0, no_such_call)],
        # 0x80 is no namespace here but in a signal's number.
        "clone": [_argument(0), (_ANY_BIT, 0, 1, _NEWNET | _NEW_ANY_BUT_NET & ~0x80), (_RETURN, 0, 0, no)],
        "unshare": [_argument(0), (_ANY_BIT, 0, 1, unshared), (_RETURN, 0, 0, no)],
        "setns": [_argument(1), (_EQUAL, 1, 0, _NEWNET), (_RETURN, 0, 0, no)],
        "ioctl": [
            _argument(1),
            *(each for number in _TERMINALS for each in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, no))),
        ],
        "socket": [
            _argument(0),
            *((_EQUAL, len(_FAMILIES) - at, 0, family) for at, family in enumerate(_FAMILIES)),
            (_RETURN, 0, 0, no_family),
        ],
    }
    for name, look in looks.items():
        body = [*look, (_RETURN, 0, 0, _ALLOW)]
        out += [(_EQUAL, 0, len(body), _LOOKED_INTO[name][column]), *body]
    return [*out, (_RETURN, 0, 0, _ALLOW)]


def put_in_force(*, mounts: bool) -> None:
    """Filter the calls of every thread of this process, and of its children, for good. Raise OSError."""
    machine = platform.machine()
    filters = b"".join(struct.pack("=HBBI", *each) for each in program(machine, mounts=mounts))
    held = ctypes.create_string_buffer(filters)
    packed = struct.pack("@HP", len(filters) // 8, ctypes.addressof(held))
    flags = _TSYNC | _SPEC_ALLOW | _TSYNC_ESRCH
    if _libc.syscall(_CALL[machine], _SET_MODE_FILTER, flags, packed):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _argument(index: int) -> tuple[int, int, int, int]:
    """Load an argument's low half, all that these calls look at; both architectures are little-endian."""
    return (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * index)
