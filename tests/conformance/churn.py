"""Many Pods made and removed at once, with runtimes and routers that die in between, and kubelets that never give up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum, unique

from tests.conformance.cri import CriError
from tests.conformance.kubelet import Kubelet, Pod

WIDTH = 4
"""Pods of one node that are under way at a time: twice the processors of a small machine."""
GIVE_UP_S = 120.0
_LONGEST_DELAY_S = 0.25
"""RunPodSandbox and StopPodSandbox take about 0.1 s each: a kill falls anywhere in them, or just behind."""


@unique
class Victim(StrEnum):
    """What is killed."""

    CONTAINERD = "containerd"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill -9 that falls into the making or the removal of a Pod."""

    victim: Victim
    while_making: bool
    after_s: float


@dataclass(frozen=True, slots=True)
class Fate:
    """One Pod's: on which node, and which kill falls into its life."""

    name: str
    node: int
    kill: Kill | None = None


def plan(seed: int, pods: int, kills: int, nodes: int = 2) -> list[Fate]:
    """Return the fates of Pods, drawn from a seed; half the kills hit containerd, half the router."""
    chance = random.Random(seed)
    doomed = chance.sample(range(pods), kills)
    drawn = {
        number: Kill(list(Victim)[turn % 2], chance.random() < 0.7, chance.uniform(0, _LONGEST_DELAY_S))
        for turn, number in enumerate(doomed)
    }
    return [Fate(f"churn-{number}", number % nodes, drawn.get(number)) for number in range(pods)]


class Churn:
    """A run of all that over the nodes of a cluster."""

    def __init__(self, kubelets: Sequence[Kubelet]) -> None:
        self._kubelets = kubelets
        self._killing = [threading.Lock() for _ in kubelets]
        self._held: dict[object, str] = {}
        self._changing = threading.Lock()
        self.retries = 0
        """Calls that failed because of a kill, and were made again."""

    def run(self, fates: Sequence[Fate]) -> None:
        """Let every Pod live and be removed; raises what the first of them failed with."""
        with ThreadPoolExecutor(max_workers=WIDTH * len(self._kubelets)) as pool:
            for done in [pool.submit(self._live, fate) for fate in fates]:
                done.result()

    def _live(self, fate: Fate) -> None:
        kubelet = self._kubelets[fate.node]
        with self._kill_meanwhile(fate, making=True):
            pod = self._make(kubelet, fate)
        self._reach(pod, self._kubelets[fate.node - 1])
        with self._kill_meanwhile(fate, making=False):
            self._remove(kubelet, fate, pod)

    def _make(self, kubelet: Kubelet, fate: Fate) -> Pod:
        """Make the Pod, however often it takes; what failed is removed first, as a kubelet does."""
        deadline_s = time.monotonic() + GIVE_UP_S
        attempt = 0
        while True:
            try:
                pod = kubelet.run_pod(fate.name, attempt=attempt, timeout_s=30.0)
                break
            except CriError as error:
                self._again(error, deadline_s)
                attempt += 1  # a sandbox's name has it, and the last one's is still reserved for a while
                self._sweep(kubelet, fate, deadline_s)
        with self._changing:
            for address in pod.addresses:
                holder = self._held.setdefault(address, fate.name)
                assert holder == fate.name, f"{address} was given to {fate.name} while {holder} has it"
        return pod

    def _reach(self, pod: Pod, other: Kubelet) -> None:
        """Reach the Pod from another node; packets may be lost while routers come and go, but not for long."""
        deadline_s = time.monotonic() + GIVE_UP_S
        for address in pod.addresses:
            while other.node.run(["ping", "-q", "-c", "1", "-W", "1", str(address)]).returncode:
                assert time.monotonic() < deadline_s, f"{address} does not answer"

    def _remove(self, kubelet: Kubelet, fate: Fate, pod: Pod) -> None:
        deadline_s = time.monotonic() + GIVE_UP_S
        with self._changing:
            # Before it is stopped: from then on another may rightly get them.
            for address in pod.addresses:
                self._held.pop(address, None)
        self._sweep(kubelet, fate, deadline_s)

    def _sweep(self, kubelet: Kubelet, fate: Fate, deadline_s: float) -> None:
        """Stop and remove every sandbox of this Pod until the runtime has none."""
        while True:
            try:
                left = kubelet.pod_ids(fate.name)
                for pod_id in left:
                    kubelet.remove_pod(pod_id)
                if not left:
                    return
            except CriError as error:
                self._again(error, deadline_s)

    def _again(self, error: CriError, deadline_s: float) -> None:
        if time.monotonic() > deadline_s:
            raise error
        with self._changing:
            self.retries += 1
        time.sleep(0.1)  # a kubelet's back-off, shortened

    @contextmanager
    def _kill_meanwhile(self, fate: Fate, *, making: bool) -> Iterator[None]:
        """Kill and start again what is to be killed, some time after the block has begun."""
        kill = fate.kill
        if kill is None or kill.while_making is not making:
            yield
            return
        failure: list[BaseException] = []

        def strike() -> None:
            try:
                time.sleep(kill.after_s)
                self._strike(fate.node, kill.victim)
            except BaseException as error:  # noqa: BLE001 - raised again in the Pod's thread
                failure.append(error)

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            yield
        finally:
            striker.join()
        if failure:
            raise failure[0]

    def _strike(self, node: int, victim: Victim) -> None:
        kubelet = self._kubelets[node]
        with self._killing[node]:
            match victim:
                case Victim.CONTAINERD:
                    kubelet.containerd.kill9()
                    kubelet.containerd.start()
                case Victim.ROUTER:
                    kubelet.node.kill9()
                    kubelet.node.start()
