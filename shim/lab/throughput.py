"""TCP throughput between two Pods, by iperf3, told while it runs."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address

from shim.lab.errors import LabError
from shim.lab.pod import LabPod

INTERVAL_S = 0.5
_GRACE_S = 5.0
"""What iperf3 gets to say goodbye: when a router dies it would wait for TCP, which waits for a quarter of an hour."""
_RATE = re.compile(r"([\d.]+) Mbits/sec")


def measure(
    source: LabPod, target: LabPod, address: IPv4Address | IPv6Address, seconds: float, on_rate: Callable[[float], None]
) -> float:
    """Send TCP from a Pod to another one's address; return Gbit/s received. LabError says why it failed."""
    with _running(target, ["iperf3", "-s", "-1", "--forceflush"]) as server:
        _read_until(server, "listening")
        client = ["iperf3", "-c", str(address), "-t", str(seconds), "-i", str(INTERVAL_S), "-f", "m", "--forceflush"]
        with (
            _running(source, [*client, "--connect-timeout", "3000"]) as sender,
            _ended_after(sender, seconds + _GRACE_S),
        ):
            last = ""
            for line in _lines(sender):
                last = line.strip() or last
                if found := _RATE.search(line):
                    rate = float(found[1]) / 1000
                    if "receiver" in line:
                        return rate
                    if "sender" not in line:
                        on_rate(rate)
    raise LabError(f"iperf3 from {source.name} to {target.name} ({address}) did not finish; its last word: {last}")


def _read_until(process: subprocess.Popen[str], word: str) -> None:
    said = ""
    for line in _lines(process):
        said = line.strip() or said
        if word in line:
            return
    raise LabError(f"the iperf3 server did not start: {said}")


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


@contextmanager
def _ended_after(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _running(pod: LabPod, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = pod.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with process:
        try:
            yield process
        finally:
            process.kill()
