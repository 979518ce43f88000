"""Does what the schedule says when it says so, each action in a thread of its own."""

from __future__ import annotations

import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

from tests.chaos.log import Log
from tests.chaos.rig import Rig, Skipped
from tests.chaos.schedule import Action

_AT_A_TIME = 16
_END_TIMEOUT_S = 120.0


class Runner:
    """One run of a schedule."""

    def __init__(self, rig: Rig, log: Log) -> None:
        self._rig = rig
        self._log = log
        self.skipped: dict[str, str] = {}
        """By action: why."""

    def run(self, actions: list[Action], seconds: float, stop: Event) -> None:
        """Do all of them, wait until the time is over and all have ended; or until `stop`."""
        began_s = time.monotonic()
        pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="action")
        futures: list[Future[None]] = []
        try:
            for action in actions:
                if stop.wait(max(0.0, began_s + action.at_s - time.monotonic())):
                    break
                futures.append(pool.submit(self._do, action))
            stop.wait(max(0.0, began_s + seconds - time.monotonic()))
            if stop.is_set():
                self._rig.hurry()
            _, running = wait(futures, _END_TIMEOUT_S)
            if running:
                self._log.complain(
                    "every action ends", f"{len(running)} still run {_END_TIMEOUT_S:.0f} s after the end"
                )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _do(self, action: Action) -> None:
        words = " ".join(f"{name}={value}" for name, value in action.arguments.items())
        self._log.say(f"{action.name} {words}", action=True)
        try:
            getattr(self._rig, action.name)(**action.arguments)
        except Skipped as why:
            self.skipped[action.name] = str(why)
            self._log.say(f"{action.name} {words}: skipped, {why}")
        except Exception as error:  # noqa: BLE001 - each is a failure of the run
            text = traceback.format_exc() if not str(error) else f"{type(error).__name__}: {error}"
            self._log.complain("every action ends", f"{action.name} {words}: {text}")
        else:
            self._rig.done[action.name] += 1
