"""A thread that waits for fds and takes calls from other threads between two batches.

Everything a batch reads or counts is changed only here, between batches: so a detach that has returned knows that nobody
uses its fd, and counters read together belong together. Control never waits for traffic to pause.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from router.engine.interface import BATCH_PACKETS

T = TypeVar("T")


class Loop:
    """Runs `batch(fd, most)` for every readable fd, and `call`s in between. A batch does at most `most` reads and says how many.

    A batch that raises is a bug: `failed(loop, why)` cleans up behind it and tells of it, and the next batch comes as ever.
    """

    def __init__(self, name: str, batch: Callable[[int, int], int], failed: Callable[[Loop, str], None]) -> None:
        self._name = name
        self._batch = batch
        self._failed = failed
        self.restarts = 0
        """Batches that raised."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._calls: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._due_s: dict[int, float] = {}
        """When to watch an fd again that has paused."""

    def watch(self, fd: int) -> None:
        """Run a batch whenever the fd is readable. Level-triggered: what a batch leaves comes back."""
        self._epoll.register(fd, select.EPOLLIN)

    def pause(self, fd: int, seconds: float) -> None:
        """Watch an fd no more until that time has passed; for the loop's own thread."""
        with suppress(OSError):
            self._epoll.unregister(fd)
            self._due_s[fd] = time.monotonic() + seconds

    def unwatch(self, fd: int) -> None:
        """Stop watching; an fd that is not watched is no error."""
        self._due_s.pop(fd, None)
        with suppress(OSError):
            self._epoll.unregister(fd)

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` between two batches and return its result; at once when the loop is not running."""
        with self._lock:
            if self._thread is not None and threading.current_thread() is not self._thread:
                future: Future[object] = Future()
                self._calls.append((future, work))
                os.eventfd_write(self._wake, 1)
            else:
                return work()
        return future.result()  # type: ignore[return-value]

    def start(self) -> None:
        """Start the thread."""
        with self._lock:  # a call that found no thread is done before there is one
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after its batch and the calls already waiting."""
        thread, self._stopping = self._thread, True
        if thread is None:
            return
        os.eventfd_write(self._wake, 1)
        thread.join()
        with self._lock:
            self._thread = None
            self._run_calls()

    def poll(self, budget: int) -> int:
        """Run batches of whatever is readable now until `budget` reads are done; return how many there were."""
        done = 0
        while done < budget:
            before = done
            if self._due_s:
                self._resume()
            for fd, _ in self._epoll.poll(0):
                if fd != self._wake and done < budget:
                    done += self._guarded(fd, min(budget - done, BATCH_PACKETS))
            if done == before:
                break
        return done

    def _run(self) -> None:
        while not self._stopping:
            for fd, _ in self._epoll.poll(self._resume() if self._due_s else None):
                if fd == self._wake:
                    self._drain_wake()
                    continue
                self._guarded(fd, BATCH_PACKETS)
                if self._calls:
                    self._run_calls()
            if self._calls:
                self._run_calls()

    def _guarded(self, fd: int, most: int) -> int:
        """Run a batch; one that raised counts as one read."""
        try:
            return self._batch(fd, most)
        except Exception as error:  # noqa: BLE001 - a bug must cost a batch, not the node's network
            self.restarts += 1
            self._failed(self, f"{self._name}: {type(error).__name__}: {error}")
            return 1

    def _resume(self) -> float | None:
        """Watch again what has paused long enough; return the seconds until the next is due, None when none is."""
        now_s = time.monotonic()
        for fd in [fd for fd, due_s in list(self._due_s.items()) if due_s <= now_s]:
            if self._due_s.pop(fd, None) is not None:
                with suppress(OSError):  # closed meanwhile
                    self.watch(fd)
        waiting_s = list(self._due_s.values())  # at once: `unwatch` may come from another thread
        return max(0.0, min(waiting_s) - now_s) if waiting_s else None

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _run_calls(self) -> None:
        while self._calls:
            future, work = self._calls.popleft()
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is the caller's to handle
                future.set_exception(error)

    def close(self) -> None:
        """Free the loop's own fds; only when stopped."""
        self._epoll.close()
        os.close(self._wake)
