"""Where a router's time goes: copies, system calls by what they are for, and its own code, while traffic saturates it.

    perf record samples both routers → perf script → each sample's innermost function, then its outermost system call

What the kernel does in a router's name below a call (a send crosses the underlay and queues at the other end) is that
call's. Without hardware counters perf samples by a timer, which cannot interrupt where interrupts are off: such time
shows in the function that allows them again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contenders import Contender, Network
from benchmarks.figures import Figures, Metric
from benchmarks.measures.flow import Flow
from benchmarks.measures.interface import MeasureFailed
from benchmarks.measures.stream import saturating, serve
from benchmarks.namespace import PREFIX, CommandFailed
from benchmarks.rounds import Progress

_WARM_UP_S = 0.7
_FREQUENCY_HZ = 1999
_PAYLOAD_BYTES = 64
COPIES, OWN, OTHER = "copies", "own", "kernel"
PARTS = {
    COPIES: "Copies", "send": "UDP send", "receive": "UDP receive", "tun_read": "TUN read", "tun_write": "TUN write",
    "wait": "Waiting", OTHER: "Other kernel", OWN: "Own code",
}  # fmt: skip
"""In the order they are drawn; all but the first and the last are the kernel's, copies left out."""
_COPY = re.compile(r"copy_(from|to|page|user)|skb_copy|memcpy|memmove|rep_movs")
# What a router reads and writes but sockets are TUN devices.
_CALLS = (
    (re.compile(r"sys_sendm?msg|sys_sendto|sys_sendmmsg|io_send"), "send"),
    (re.compile(r"sys_recvm?msg|sys_recvfrom|sys_recvmmsg|io_recv"), "receive"),
    (re.compile(r"tun_chr_read|ksys_read|do_readv"), "tun_read"),
    (re.compile(r"tun_chr_write|ksys_write|do_writev"), "tun_write"),
    (re.compile(r"epoll_wait|epoll_pwait|sys_p?poll|sys_ppoll|futex|sys_p?select|nanosleep"), "wait"),
)
_FRAME = re.compile(r"^\s+([0-9a-f]+) (\S+)")
_KERNEL_HALF = 1 << 63


def missing() -> str:
    """Return why nothing can be profiled here; empty when it can."""
    if shutil.which("perf") is None:
        return "perf is not installed: apt-get install linux-perf"
    try:
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-perf-") as directory:
            _perf("record", "--quiet", "--event", _event(), "-g", "--output", f"{directory}/perf.data", "--", "true")
    except CommandFailed as error:
        return str(error)
    return ""


def steps(contenders: Sequence[Contender], rounds: int) -> int:
    """Return how often `run` reports progress at most."""
    return len(contenders) + 2 * len(contenders) * rounds


def run(figures: Figures, contenders: Sequence[Contender], rounds: int, seconds: float, progress: Progress) -> None:
    """Profile each router under one TCP stream and under small datagrams; what fails is told of in the figures."""
    if why := missing():
        figures.notes.append(f"no profile: {why}")
        return
    with ExitStack() as stack:
        up: list[tuple[Contender, Network]] = []
        for contender in contenders:
            progress(f"profile: setting up {contender.title}")
            try:
                network = contender.open(stack)
                serve(stack, network.across)
            except (CommandFailed, MeasureFailed) as error:
                figures.failures.append(f"profile: {contender.name} did not come up: {error}")
                continue
            up.append((contender, network))
        for number in range(rounds):
            for contender, network in up:
                for traffic, (title, under) in _TRAFFIC.items():
                    progress(f"profile, round {number + 1} of {rounds}: {title}, {contender.title}")
                    try:
                        shares = under(network, seconds)
                    except (CommandFailed, MeasureFailed, OSError) as error:
                        figures.failures.append(f"profile: {title}, {contender.title}: {error}")
                        continue
                    figures.titles.setdefault(f"profile:{traffic}", title)
                    for part, share in shares.items():
                        figures.add(metric(contender, part), f"profile:{traffic}", share)


def metric(contender: Contender, part: str) -> Metric:
    """Return what a share means."""
    group = f"Router time, {contender.title}"
    return Metric(f"profile_{contender.engine}_{part}", PARTS[part], "%", group, part == OWN)


def under_stream(network: Network, seconds: float) -> dict[str, float]:
    """Return the shares while one TCP stream takes all there is."""
    with saturating(network.across, _WARM_UP_S + seconds + 5) as stream:
        time.sleep(_WARM_UP_S)
        found = record(network.router_pids, seconds)
        if stream.poll() is not None:
            raise MeasureFailed(f"the stream ended before its time: iperf3 status {stream.returncode}")
    return found


def under_flood(network: Network, seconds: float) -> dict[str, float]:
    """Return the shares while small datagrams come faster than they are carried."""
    with Flow(network.across, _PAYLOAD_BYTES, ahead=True):
        time.sleep(_WARM_UP_S)
        return record(network.router_pids, seconds)


_TRAFFIC: dict[str, tuple[str, Callable[[Network, float], dict[str, float]]]] = {
    "tcp1": ("TCP, 1 stream", under_stream),
    "udp64": ("UDP 64 B", under_flood),
}


def record(pids: Sequence[int], seconds: float) -> dict[str, float]:
    """Sample processes for that long; return what percentage of the samples each part has. CommandFailed without any."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-perf-") as directory:
        written = Path(directory, "perf.data")
        _perf("record", "--quiet", "--event", _event(), "--freq", str(_FREQUENCY_HZ), "-g", "--output", str(written),
              "--pid", ",".join(map(str, pids)), "--", "sleep", str(seconds))  # fmt: skip
        printed = _perf("script", "--input", str(written), "--fields", "comm,ip,sym")
    counts = Counter(map(part_of, stacks(printed)))
    if not (total := counts.total()):
        raise CommandFailed("perf took no samples: the routers were idle")
    return {part: 100 * counts[part] / total for part in PARTS}


def stacks(printed: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the stack of each sample that `perf script` printed: addresses and functions, innermost first."""
    for sample in printed.split("\n\n"):
        frames = [(int(found[1], 16), found[2]) for line in sample.splitlines() if (found := _FRAME.match(line))]
        if frames:
            yield frames


def part_of(stack: Sequence[tuple[int, str]]) -> str:
    """Return the part a sample belongs to."""
    address, function = stack[0]
    if _COPY.search(function):
        return COPIES
    if address < _KERNEL_HALF:
        return OWN
    for _, outer in reversed(stack):
        for pattern, part in _CALLS:
            if pattern.search(outer):
                return part
    return OTHER


def _event() -> str:
    return "cycles" if Path("/sys/bus/event_source/devices/cpu").exists() else "cpu-clock"


def _perf(*words: str) -> str:
    done = subprocess.run(["perf", *words], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise CommandFailed(f"perf {words[0]} failed with status {done.returncode}: {said}")
    return done.stdout
