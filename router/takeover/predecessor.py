"""The running router's side of a takeover: a thread that waits for a successor, and serves one at a time."""

# What the calls of Owner do stands where they are, in router/owner.py.
# ruff: noqa: D102

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from router.errors import Kind, Refusal
from router.takeover.channel import MOST_FDS, PROTOCOL, Channel, Gone

_log = logging.getLogger(__name__)

_SUFFIX = ".takeover"
_HELLO_S = 5.0
_READY_S = 120.0
"""A successor reads a table, asks its store for seconds, and builds its engine."""
_RUNNING_S = 10.0
"""Nobody carries packets meanwhile."""
_LEAVE_S = 120.0
_ENDED_S = 10.0


class Owner(Protocol):
    """The router whose work is handed over (router/owner.py)."""

    def check(self, hello: dict[str, Any]) -> None: ...
    def freeze(self) -> None: ...
    def estate(self) -> tuple[dict[str, Any], dict[str, int], int]: ...
    def stop_engine(self) -> None: ...
    def start_engine(self) -> None: ...
    def counters(self) -> dict[str, Any]: ...
    def let_go(self) -> None: ...
    def thaw(self, ended: threading.Event) -> None: ...


class Predecessor:
    """Lets successors in from `start` to `stop`."""

    def __init__(
        self, socket_path: Path, owner: Owner, leave: Callable[[bool], None], relieved: Callable[[], None]
    ) -> None:
        """`socket_path` is the control socket's; ours is beside it.

        `leave` gives addresses free, those of control too if it is told so; `relieved` is told when a successor has it all.
        """
        self._path = door_of(socket_path)
        self._owner = owner
        self._leave = leave
        self._relieved = relieved
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._inode: tuple[int, int] | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._thread = threading.Thread(target=self._run, name="takeover", daemon=True)

    def claim(self) -> None:
        """Be where a successor knocks, instead of whoever was; it waits until `start`. Raise Refusal(STATE)."""
        name = f".{self._path.name}-{os.getpid()}"
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Through the directory's fd: the path of a control socket leaves no room for a longer one (sun_path).
            directory_fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory_fd)
                self._listening.bind(f"/proc/self/fd/{directory_fd}/{name}")
                os.chmod(name, 0o600, dir_fd=directory_fd)
                self._listening.listen(1)
                status = os.stat(name, dir_fd=directory_fd)
                os.rename(name, self._path.name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
                self._inode = status.st_dev, status.st_ino
            finally:
                os.close(directory_fd)
        except OSError as error:
            where = self._path.with_name(self._path.name.removesuffix(_SUFFIX))
            raise Refusal(Kind.STATE, f"--socket {where}: cannot listen there: {error.strerror}") from None

    def start(self) -> None:
        """Let a successor in, from a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End; a successor that has not got it all is let down. May be called twice."""
        self._ended.set()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        with self._lock:
            if self._channel is not None:
                self._channel.interrupt()
        if self._thread.ident is not None:
            self._thread.join()
        self._listening.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        if self._inode is not None:
            with suppress(OSError):
                status = self._path.lstat()
                if (status.st_dev, status.st_ino) == self._inode:
                    self._path.unlink()
            self._inode = None

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._listening.fileno(), self._wake):
            poll.register(fd, select.POLLIN)
        while not self._ended.is_set():
            poll.poll()
            if self._ended.is_set():
                return
            try:
                channel = Channel(self._listening.accept()[0])
            except (OSError, Refusal) as error:
                _log.warning("takeover: %s", getattr(error, "message", error))
                continue
            with self._lock:
                self._channel = channel
            try:
                if self._serve(channel):
                    self._relieved()
                    return
            except Exception:  # noqa: BLE001 - a bug must not end the router's work, nor keep a later successor out
                _log.exception("takeover failed: a bug of the router")
            finally:
                with self._lock:
                    self._channel = None
                channel.close()

    def _serve(self, channel: Channel) -> bool:
        """Deal with one that says it is our successor; tell whether it has everything now."""
        try:
            hello = channel.receive("hello", timeout_s=_HELLO_S)
            if hello.get("protocol") != PROTOCOL:
                raise Refusal(
                    Kind.STATE,
                    f"the running router takes takeovers of protocol {PROTOCOL}, not {str(hello.get('protocol'))[:20]}: "
                    "stop it, and start the other",
                )
            self._owner.check(hello)
        except Refusal as refusal:
            _refuse(channel, refusal.message)
            return False
        except Gone as gone:
            _log.warning("takeover: process %d: %s", channel.pid, gone)
            return False
        _log.info("process %d takes over", channel.pid)
        stopped = False
        gap_s = 0.0
        try:
            self._owner.freeze()
            self._hand_over(channel)
            channel.receive("ready", timeout_s=_READY_S)
            stopped = True
            self._owner.stop_engine()
            stopped_s = time.monotonic()
            channel.send("stopped")
            channel.receive("running", timeout_s=_RUNNING_S)
            gap_s = time.monotonic() - stopped_s
            channel.send("counters", counters=self._owner.counters())
            leave = channel.receive("leave", timeout_s=_LEAVE_S)
        except BaseException as error:
            self._take_back(channel, error, stopped)
            if isinstance(error, (Gone, Refusal)):
                return False
            raise
        # No way back from here: it may delete devices, and change the journal.
        try:
            self._owner.let_go()
            self._leave(leave.get("control") == "stop")
        except Exception:  # noqa: BLE001 - there is nothing left to go on with: end all the same
            _log.exception("takeover: not everything was let go of")
        with suppress(Gone):
            channel.send("left")
            channel.wait_end(_ENDED_S)
        _log.info("process %d has taken over; no engine ran for %.1f ms", channel.pid, gap_s * 1000)
        return True

    def _hand_over(self, channel: Channel) -> None:
        told, fds, lock_fd = self._owner.estate()
        channel.send("estate", [lock_fd], count=len(fds), **told)
        names = list(fds)
        for at in range(0, len(names), MOST_FDS):
            some = names[at : at + MOST_FDS]
            channel.send("fds", [fds[name] for name in some], names=some)

    def _take_back(self, channel: Channel, error: BaseException, stopped: bool) -> None:
        """Go on as if nobody had come."""
        why = error.message if isinstance(error, Refusal) else str(error)
        if self._ended.is_set():  # what the successor has read must stay true, and its engine be the only one
            _log.warning("this router was told to end while process %d was taking over from it", channel.pid)
            channel.close()
            return
        if stopped:
            self._owner.start_engine()
        with suppress(Gone):
            channel.send("kept", why=why)
        channel.close()
        _log.warning("process %d did not take over (%s): this router goes on", channel.pid, why)
        self._owner.thaw(self._ended)


def _refuse(channel: Channel, why: str) -> None:
    _log.warning("process %d may not take over: %s", channel.pid, why)
    with suppress(Gone):
        channel.send("refused", why=why)


def door_of(socket_path: Path) -> Path:
    """Return where a successor knocks, beside the control socket."""
    return socket_path.with_name(f"{socket_path.name}{_SUFFIX}")
