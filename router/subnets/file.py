"""The subnet table as a TOML file, and a watch on it.

    [[node]]
    name = "alpha"
    endpoint = "192.0.2.1"            # ADDR[:PORT]; the port is 6081 unless given
    subnets = ["10.32.1.0/24", "fd00:32:1::/64"]
    offload = true                    # false: its router does not know Podwire's Geneve option
    epoch = 1                         # raise it when the node's subnets were another's meanwhile: what it sends with
                                      # an older table is dropped; 0, the default: not looked at

The watch compares `stat` every 0.4 s. Unlike inotify that cannot lose sight of the file: it may be renamed over
(editors), swapped through a chain of symlinks (ConfigMaps), gone for a moment, or on a file system without events.
Measured: 0.05 % of one core. A changed file is read once it has stood still for a moment, so half of one is not seen.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
import threading
import time
import tomllib
from pathlib import Path

from router.errors import Kind, Refusal
from router.model import Node
from router.subnets.check import check_name
from router.subnets.source import Listener, SourceState
from router.values import parse_endpoint, parse_prefix

_KEYS = ("name", "endpoint", "subnets", "offload", "epoch")
_MOST_EPOCH = 2**63 - 1
_POLL_S = 0.4
_SETTLE_S = 0.15
"""How long a changed file must stand still."""
_MISSING_S = 2.0
"""How long a file may be gone before somebody is told."""
_HEADING = re.compile(r"^[ \t]*\[\[[ \t]*(?:node|\"node\"|'node')[ \t]*\]\]", re.MULTILINE)

_Stamp = tuple[int, int, int, int, int]

log = logging.getLogger(__name__)


def parse_table(text: str, path: Path) -> tuple[Node, ...]:
    """Read a table; Refusal names the file, and the line or entry. What entries say of each other is for `check`."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or brackets as deep
        raise Refusal(Kind.INVALID, f"{path} is not TOML: {error}") from None
    if unknown := [key for key in document if key != "node"]:
        raise Refusal(Kind.INVALID, f"{path}: unknown key {unknown[0]!r}: a table is made of [[node]] entries")
    entries = document.get("node", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refusal(Kind.INVALID, f"{path}: write each node as [[node]], in double brackets")
    if not entries:
        # More likely cut short than meant; a table that loses every node at once is no small thing.
        raise Refusal(Kind.INVALID, f"{path} has no [[node]] entry")
    nodes = []
    for index, entry in enumerate(entries):
        try:
            nodes.append(_node(entry))
        except ValueError as error:
            raise Refusal(Kind.INVALID, f"{_where(text, path, index, entry, len(entries))}: {error}") from None
    return tuple(nodes)


def format_table(nodes: tuple[Node, ...]) -> str:
    """Write a table so that `parse_table` gives the same nodes back."""
    lines = []
    for node in nodes:
        lines += ["[[node]]", f"name = {_quoted(node.name)}", f"endpoint = {_quoted(str(node.endpoint))}"]
        lines.append(f"subnets = [{', '.join(_quoted(str(subnet)) for subnet in node.subnets)}]")
        if not node.offload:
            lines.append("offload = false")
        if node.epoch:
            lines.append(f"epoch = {node.epoch}")
        lines.append("")
    return "\n".join(lines)


class FileSource:
    """The table in a file: read it once, then be told when it changes."""

    def __init__(self, path: Path) -> None:
        """Take the file's path; nothing is read yet."""
        self._path = path
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._confirmed_s = time.monotonic()
        self._error = ""
        self._told = b""
        """Digest of what was last told of, good or bad."""

    def read(self) -> tuple[Node, ...]:
        """Read the table now. Raises Refusal when the file is missing, unreadable or wrong."""
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise Refusal(Kind.STATE, f"cannot read subnet table {self._path}: {error.strerror}") from None
        nodes = self._parse(content)
        self._told = _digest(content)
        return nodes

    def start(self, listener: Listener) -> None:
        """Watch in a daemon thread, and tell the listener from it when the file says something new.

        A missing, unreadable or wrong file, and one that the listener refuses, are told as such, once each.
        """
        if self._thread is not None:
            raise RuntimeError("already started")
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, args=(listener,), name="subnets-file", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch; no callback runs afterwards. May be called twice, not from a callback."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def state(self) -> SourceState:
        """Say how the file stands."""
        return SourceState("file", str(self._path), not self._error, self._confirmed_s, self._error)

    def _watch(self, listener: Listener) -> None:
        stamp: _Stamp | None = None  # unlike any file: what changed between `read` and now is seen
        missing_since_s: float | None = None
        while not self._stop.wait(_POLL_S):
            try:
                now = _stamp(self._path)
                missing_since_s = None
                self._confirmed_s, self._error = time.monotonic(), ""
                if now == stamp:
                    continue
                while not self._stop.wait(_SETTLE_S) and now != (now := _stamp(self._path)):
                    pass
                content = self._path.read_bytes()
                if _stamp(self._path) != now or self._stop.is_set():
                    continue
                stamp = now
            except OSError as error:
                stamp = None
                if missing_since_s is None:
                    missing_since_s = time.monotonic()
                if time.monotonic() - missing_since_s >= _MISSING_S:
                    self._error = f"cannot read subnet table {self._path}: {error.strerror}"
                    self._tell_error(self._error, listener)
                continue
            if _digest(content) != self._told:
                self._told = _digest(content)
                self._tell(content, listener)

    def _tell(self, content: bytes, listener: Listener) -> None:
        try:
            listener.table_changed(self._parse(content))
        except Refusal as refusal:
            listener.table_refused(refusal.message)
        except Exception as error:  # the watch must outlive a bug in a callback
            log.exception("subnet table %s could not be put into force", self._path)
            listener.table_refused(f"subnet table {self._path} could not be put into force: {error!r}; see the log")

    def _tell_error(self, message: str, listener: Listener) -> None:
        digest = _digest(message.encode())
        if digest != self._told:
            self._told = digest
            listener.table_refused(message)

    def _parse(self, content: bytes) -> tuple[Node, ...]:
        try:
            return parse_table(content.decode("utf-8"), self._path)
        except UnicodeDecodeError as error:
            raise Refusal(Kind.INVALID, f"{self._path} is not UTF-8 text: byte {error.start}") from None


def _node(entry: dict[str, object]) -> Node:
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise ValueError(f"unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for key in _KEYS[:3]:
        if key not in entry:
            raise ValueError(f"{key} is missing")
    name, endpoint, subnets, offload = (entry.get(key, True) for key in _KEYS[:4])
    epoch = entry.get("epoch", 0)
    if not isinstance(name, str) or not isinstance(endpoint, str):
        raise ValueError("name and endpoint must be text in quotes")  # noqa: TRY004 — wrong text, not wrong code
    if not isinstance(subnets, list) or not all(isinstance(subnet, str) for subnet in subnets):
        raise ValueError('subnets must be a list of texts, such as ["10.32.1.0/24"]')
    if not isinstance(offload, bool):
        raise ValueError("offload must be true or false")  # noqa: TRY004
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch <= _MOST_EPOCH:
        raise ValueError(f"epoch must be a whole number from 0 to {_MOST_EPOCH}")
    try:
        check_name(name)
    except Refusal as refusal:
        raise ValueError(refusal.message) from None
    return Node(name, parse_endpoint(endpoint), tuple(map(parse_prefix, subnets)), offload, epoch)


def _where(text: str, path: Path, index: int, entry: dict[str, object], count: int) -> str:
    """Say which entry is meant: its line if the headings can be told apart from other text, its number and name."""
    headings = [match.start() for match in _HEADING.finditer(text)]
    line = f":{text.count(chr(10), 0, headings[index]) + 1}" if len(headings) == count else ""
    name = entry.get("name")
    return f"{path}{line}: [[node]] number {index + 1}" + (f" ({name})" if isinstance(name, str) else "")


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which no name of ours holds.
    return json.dumps(text, ensure_ascii=False)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
