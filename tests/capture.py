"""What is on a lab's underlay, as Wireshark's dumpcap records it and tshark decodes it."""

from __future__ import annotations

import ctypes
import fcntl
import re
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shim.lab import netns
from shim.lab.node import LabNode

_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h


def undo_offloads(node: LabNode) -> None:
    """Have the kernel finish checksums and split trains before the wire, as a network card would: veth does neither."""

    def work() -> None:
        value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
        request = struct.pack("16sP", b"eth0", ctypes.addressof(value))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCETHTOOL, request)

    netns.call(node.netns_path, work)


@contextmanager
def capturing(node: LabNode, file: Path) -> Iterator[None]:
    """Record what passes a node's eth0 into a file while the block runs; nothing of it may be lost."""
    command = ["dumpcap", "-q", "-P", "-i", "eth0", "-B", "64", "-f", "udp port 6081", "-w", str(file)]
    with node.popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            while not said.startswith("File:"):  # it has opened the interface by then
                said = process.stderr.readline()
                assert said, "dumpcap ended at its start"
            yield
            process.send_signal(signal.SIGINT)
            ending = process.stderr.read()
            found = re.search(r"received/dropped on interface '\S+': (\d+)/(\d+)", ending)
            assert found, ending
            assert found[2] == "0", ending
        finally:
            process.kill()


def decode(
    file: Path, fields: Sequence[str], *, shown: str = "", checks: Sequence[str] = ()
) -> list[dict[str, list[str]]]:
    """Return these fields, with all their occurrences in order, of each packet the display filter shows.

    `checks` are the protocols whose checksums tshark is to verify.
    """
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"]
    for protocol in ("ip", "udp", "tcp"):
        command += ["-o", f"{protocol}.check_checksum:{'TRUE' if protocol in checks else 'FALSE'}"]
    for field in fields:
        command += ["-e", field]
    if shown:
        command += ["-Y", shown]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return [{field: cell.split(",") if cell else [] for field, cell in zip(fields, row, strict=True)} for row in rows]
