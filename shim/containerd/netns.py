"""A named network namespace for a container that has none, made and removed as `ip netns` does."""

from __future__ import annotations

import os

_DIRECTORY = "/run/netns"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2  # linux/mount.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h


def path_of(address: str, namespace: str, container_id: str) -> str:
    """Return where the namespace of a container is, or would be: a container of that containerd, by its socket's path."""
    from zlib import crc32

    # Words alone do not tell a/b-c from a-b/c, nor one containerd from another, and a name is not to be taken from who uses it.
    whose = crc32("\0".join((os.path.realpath(address), namespace, container_id)).encode())
    return f"{_DIRECTORY}/podwire-{namespace}-{container_id}-{whose:08x}"


def make(path: str) -> None:
    """Make a namespace with its loopback up at a path, in the place of one left there. Raise OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, flags: int) -> None:
        if libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)

    def prepare() -> None:
        """Make a shared mount, so that names made in one mount namespace can be removed in every other.

        As iproute2 ip/ipnetns.c netns_add() does, with its lock: containers start side by side after a boot.
        """
        from fcntl import LOCK_EX, flock

        os.makedirs(_DIRECTORY, mode=0o755, exist_ok=True)  # noqa: PTH103 - pathlib costs 5 ms
        fd = os.open(_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flock(fd, LOCK_EX)
            try:
                mount("", _DIRECTORY, _MS_SHARED | _MS_REC)
            except OSError:
                mount(_DIRECTORY, _DIRECTORY, _MS_BIND | _MS_REC)
                mount("", _DIRECTORY, _MS_SHARED | _MS_REC)
        finally:
            os.close(fd)

    remove(path)
    prepare()
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        child = os.fork()  # the namespace moves who makes it, and this process stays where it is
        if not child:
            status = 1
            try:
                if libc.unshare(_CLONE_NEWNET) == 0:
                    _loopback_up()
                    mount("/proc/self/ns/net", path, _MS_BIND)
                    status = 0
                else:
                    status = ctypes.get_errno()
            except OSError as error:
                status = error.errno or 1
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            raise OSError(max(status, 1), os.strerror(max(status, 1)), path)
    except BaseException:
        remove(path)
        raise


def remove(path: str) -> None:
    """Remove a namespace's name; the kernel takes it down when nobody is in it. Missing is fine."""
    import ctypes

    if os.path.lexists(path):
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), _MNT_DETACH)
        os.unlink(path)  # noqa: PTH108


def _loopback_up() -> None:
    import _socket
    from fcntl import ioctl

    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, "little" if _little() else "big") + bytes(14)
    ioctl(control.fileno(), _SIOCSIFFLAGS, request)
    control.close()


def _little() -> bool:
    import sys

    return sys.byteorder == "little"
