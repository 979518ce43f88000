"""Work inside another network namespace, in a thread that exists for nothing else.

setns(2) moves a thread, not the process; a thread that never comes back cannot be left in the wrong place.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from router.errors import Kind, Refusal

T = TypeVar("T")
Identity = tuple[int, int]
"""What tells one namespace from all others of this boot: device and inode of its file."""

CLONE_NEWNET = 0x40000000
OWN = "/proc/self/ns/net"
"""The namespace the router itself lives in: the node's."""
OWN_THREAD = "/proc/thread-self/ns/net"
"""The namespace of the calling thread."""

_libc = ctypes.CDLL(None, use_errno=True)


def inside(netns_path: str, work: Callable[[], T]) -> T:
    """Run `work` inside the namespace at a path and return its result.

    Raise Refusal(INVALID) when the path leads to no network namespace, Refusal(STATE) when it may not be entered.
    """
    fd = _open(netns_path)
    try:
        return _in_thread(lambda: _enter(fd, netns_path), work)
    finally:
        os.close(fd)


def inside_each(netns_paths: Sequence[str], work: Callable[[int], T]) -> list[T | None]:
    """Run `work` (told which) inside each of the namespaces in turn, in one thread; None where one cannot be entered."""

    def visit(which: int) -> T | None:
        try:
            fd = _open(netns_paths[which])
        except Refusal:
            return None
        try:
            _enter(fd, netns_paths[which])
            return work(which)
        except Refusal:
            return None
        finally:
            os.close(fd)

    return _in_thread(lambda: None, lambda: [visit(which) for which in range(len(netns_paths))])


def inside_new(work: Callable[[], T]) -> T:
    """Run `work` inside a network namespace made for it, which goes when its last fd goes. Raise OSError."""
    return _in_thread(_unshare, work)


def identity(netns_path: str) -> Identity:
    """Return what two paths to one namespace have in common: device and inode of the namespace file.

    Raise Refusal(INVALID) when there is nothing at the path.
    """
    try:
        status = Path(netns_path).stat()
    except OSError as error:
        raise _no_namespace(netns_path, error) from None
    return status.st_dev, status.st_ino


def _open(netns_path: str) -> int:
    try:
        return os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_namespace(netns_path, error) from None


def _no_namespace(netns_path: str, error: OSError) -> Refusal:
    return Refusal(Kind.INVALID, f"cannot open network namespace {netns_path}: {error.strerror}; does it exist?")


def _enter(fd: int, netns_path: str) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        if code == 1:
            raise Refusal(Kind.STATE, f"may not enter {netns_path}: the router needs CAP_SYS_ADMIN; run it as root")
        raise Refusal(Kind.INVALID, f"{netns_path} is not a network namespace ({os.strerror(code)})")


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _in_thread(enter: Callable[[], None], work: Callable[[], T]) -> T:
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            enter()
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
