"""Named network namespaces, as `ip netns` keeps them, made and entered without starting a process.

A namespace belongs to a thread (setns(2)), so work inside one is done by a thread that enters it and ends there: no
other thread ever sees it, and there is nothing to switch back. What such a thread makes stays: a socket belongs for good
to the namespace it was made in, and a child process is born in that of the thread that forked it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from shim.lab.errors import LabError

DIRECTORY = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def need_root() -> None:
    """Raise LabError unless this is root."""
    if os.geteuid() != 0:
        raise LabError("a lab needs root, for its namespaces: run this with sudo")


def path_of(name: str) -> Path:
    """Return where a namespace of that name is, or would be."""
    return DIRECTORY / name


def create(name: str, sysctls: Sequence[tuple[str, str]] = ()) -> None:
    """Make a namespace with its loopback up and these sysctls (path below net/, value) set before that."""
    _prepare_directory()
    path = path_of(name)
    try:
        path.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        raise LabError(f"namespace {name} exists already: remove it with `ip netns delete {name}`") from None

    def make() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "cannot make a network namespace (root needed)")
        _mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", path, _MS_BIND)
        for key, value in sysctls:
            write_sysctl(key, value)
        _loopback_up()

    _in_thread(make, to_the_end=True)


def delete(name: str) -> None:
    """Remove a namespace's name; the kernel takes it down when nothing is in it any more. Missing is fine."""
    path = path_of(name)
    if not path.exists():
        return
    # EINVAL: its maker died between making the file and mounting the namespace on it.
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)


def call(path: Path, work: Callable[[], _T], *, to_the_end: bool = True) -> _T:
    """Run work in a thread inside the namespace and return what it returns, or raise what it raises.

    Ctrl-C waits for work that is short and makes something, so that it is known what there is; `to_the_end=False`
    is for work that may be left.
    """

    def enter_and_work() -> _T:
        enter(path)
        return work()

    return _in_thread(enter_and_work, to_the_end)


def enter(path: Path) -> None:
    """Move the calling thread into the namespace, for good."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"cannot open the namespace {path}: {error.strerror}") from None
    try:
        _check(_libc.setns(fd, _CLONE_NEWNET), f"cannot enter the namespace {path} (root needed)")
    finally:
        os.close(fd)


def run(path: Path, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command inside the namespace; options are those of subprocess.run, output is captured text."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "check": False} | options
    with _found(command):
        return call(path, lambda: subprocess.run(command, **settings), to_the_end=False)  # noqa: PLW1510 - a setting


def popen(path: Path, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a command inside the namespace; options are those of subprocess.Popen, streams are text."""
    settings: dict[str, Any] = {"text": True} | options
    with _found(command):
        return call(path, lambda: subprocess.Popen(command, **settings))


def open_socket(path: Path, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Open a socket that lives inside the namespace; any thread may then use it."""
    return call(path, lambda: socket.socket(family, kind, protocol))


def ip_batch(path: Path, lines: Sequence[str]) -> None:
    """Run lines of ip(8) inside the namespace, as one process. LabError names the first that failed."""
    done = run(path, ["ip", "-batch", "-"], input="\n".join(lines) + "\n")
    if done.returncode:
        raise LabError(f"ip failed inside {path.name}: {' / '.join(done.stderr.split(chr(10))).strip(' /')}")


def write_sysctl(key: str, value: str) -> None:
    """Set net/KEY in the namespace of the calling thread (procfs looks at the thread, not the process)."""
    try:
        Path("/proc/sys/net", key).write_text(value)
    except FileNotFoundError:
        raise LabError(f"this kernel has no sysctl net/{key}; the lab needs IPv4 and IPv6 in it") from None


def pids_inside(names: Collection[str]) -> list[int]:
    """Return the processes whose main thread is in one of these namespaces, but not the caller's own."""
    wanted = set()
    for name in names:
        with suppress(FileNotFoundError):
            found = path_of(name).stat()
            wanted.add((found.st_dev, found.st_ino))
    pids = []
    for entry in Path("/proc").glob("[1-9]*") if wanted else ():
        with suppress(OSError):  # it ended meanwhile
            found = (entry / "ns/net").stat()
            if (found.st_dev, found.st_ino) in wanted and int(entry.name) != os.getpid():
                pids.append(int(entry.name))
    return pids


@contextmanager
def _found(command: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise LabError(f"the command `{command[0]}` is missing on this machine: install it") from None


def _prepare_directory() -> None:
    """Make /run/netns a shared mount, so that names made in one mount namespace can be removed in every other.

    As iproute2 ip/ipnetns.c netns_add() does, with its lock.
    """
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        target = os.fsencode(DIRECTORY)
        if _libc.mount(b"", target, b"none", _MS_SHARED | _MS_REC, None) < 0:
            _mount(str(DIRECTORY), DIRECTORY, _MS_BIND | _MS_REC)
            _check(_libc.mount(b"", target, b"none", _MS_SHARED | _MS_REC, None), f"cannot share {DIRECTORY}")
    finally:
        os.close(fd)


def _mount(source: str, target: Path, flags: int) -> None:
    _check(_libc.mount(source.encode(), os.fsencode(target), b"none", flags, None), f"cannot mount {target}")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise LabError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _in_thread(work: Callable[[], _T], to_the_end: bool) -> _T:
    result: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        if to_the_end:
            thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]
