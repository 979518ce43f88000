"""One endless TCP stream between two Pods, every byte compared, which goes on until it is stopped."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

from shim.lab import netns
from shim.lab.pod import LabPod
from tests.echo import FAMILIES, Address

_PATTERN = bytes(range(251)) * 1024  # of prime length, so that no lost or doubled packet leaves it in step
_PORT = 7079
_WAIT_S = 20.0


class Pump:
    """Sends from one Pod to an address of another inside the `with` block; fails at its end if a byte was wrong."""

    def __init__(self, source: LabPod, target: LabPod, address: Address, pause_s: float = 0) -> None:
        """`pause_s` after each quarter of a megabyte leaves the processors something for others."""
        self._source, self._target, self._address = source, target, address
        self._stack = ExitStack()
        self._pause_s = pause_s
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self.sent_bytes = 0
        self.received_bytes = 0
        """What the receiving application has read, in order."""
        self.error = ""

    def __enter__(self) -> Pump:
        with ExitStack() as stack:
            family = FAMILIES[self._address.version]
            server = stack.enter_context(netns.open_socket(self._target.netns_path, family, socket.SOCK_STREAM))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((str(self._address), _PORT))
            server.listen()
            sender = stack.enter_context(netns.open_socket(self._source.netns_path, family, socket.SOCK_STREAM))
            sender.settimeout(_WAIT_S)
            sender.connect((str(self._address), _PORT))
            receiver = stack.enter_context(server.accept()[0])
            receiver.settimeout(_WAIT_S)
            self._threads = [
                threading.Thread(target=work, args=(end,), daemon=True)
                for work, end in ((self._send, sender), (self._receive, receiver))
            ]
            for thread in self._threads:
                thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with self._stack:
            for thread in self._threads:
                thread.join()
        assert self.error == ""
        assert self.received_bytes == self.sent_bytes

    def _send(self, sender: socket.socket) -> None:
        try:
            while not self._stopping:
                sender.sendall(_PATTERN)
                self.sent_bytes += len(_PATTERN)
                time.sleep(self._pause_s)
            sender.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = f"sending: {error}"

    def _receive(self, receiver: socket.socket) -> None:
        doubled = memoryview(_PATTERN * 2)
        space = memoryview(bytearray(len(_PATTERN)))
        try:
            while size := receiver.recv_into(space):
                at = self.received_bytes % len(_PATTERN)
                if space[:size] != doubled[at : at + size]:
                    self.error = f"other bytes than sent, somewhere after {self.received_bytes}"
                    return
                self.received_bytes += size
        except OSError as error:
            self.error = f"receiving: {error}"
