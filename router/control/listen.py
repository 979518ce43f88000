"""Where the router listens for control: a Unix socket only its own user can open, and TCP only with mutual TLS.

umask belongs to the whole process, so it cannot make a socket private while other threads run. Instead the socket is
bound inside a fresh directory of mode 0700, gets its mode there, and is then moved to its path by rename(2), which
keeps it bound. The directory is reached through /proc/self/fd, so its own name does not count against sun_path.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from router.errors import Kind, Refusal

MAX_PATH_BYTES = 107
"""sizeof(sun_path) - 1, linux/un.h."""
_LOCK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class TcpListener:
    """A TCP address and the files of mutual TLS, all of them PEM and all of them needed."""

    host: str
    port: int
    """0 lets the kernel choose."""
    cert_path: str = ""
    key_path: str = ""
    client_ca_path: str = ""
    """Who may sign the clients' certificates."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return key, certificate chain and client CAs, checked to fit together; Refusal names the flag."""
        flags = {"--tls-key": self.key_path, "--tls-cert": self.cert_path, "--tls-client-ca": self.client_ca_path}
        for flag, path in flags.items():
            if not path:
                message = f"{flag} is missing: --listen {self} needs mutual TLS; give {', '.join(flags)}"
                raise Refusal(Kind.INVALID, message)
        key, cert, client_ca = (_pem(flag, path) for flag, path in flags.items())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert_path, self.key_path, password="")
        except (ssl.SSLError, OSError) as error:
            message = f"--tls-cert {self.cert_path}, --tls-key {self.key_path}: no PEM pair that fits: {error}"
            raise Refusal(Kind.INVALID, message) from None
        try:
            context.load_verify_locations(self.client_ca_path)
        except (ssl.SSLError, OSError) as error:
            raise Refusal(Kind.INVALID, f"--tls-client-ca {self.client_ca_path}: no PEM file: {error}") from None
        return key, cert, client_ca

    def check_free(self) -> None:
        """Bind and let go, for the cause when it fails: gRPC only logs it. Refusal names it."""
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        except OSError as error:
            raise Refusal(Kind.STATE, f"--listen {self}: cannot listen there: {error.strerror}") from None


def _pem(flag: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Refusal(Kind.INVALID, f"{flag} {path}: {error.strerror}") from None


class UnixSocket:
    """A path at which this process listens, from `claim` to `release`."""

    def __init__(self, path: str) -> None:
        """Check the path. Refusal when no socket can ever be there."""
        size = len(os.fsencode(path))
        if not 1 <= size <= MAX_PATH_BYTES or "\0" in path:
            why = f"it has {size} bytes, and a Unix socket's path 1 to {MAX_PATH_BYTES}"
            raise Refusal(Kind.INVALID, f"--socket {path}: {why}; choose a shorter one")
        self.path = Path(path).absolute()
        self._inode: tuple[int, int] | None = None

    def claim(self, bind: Callable[[str], None], replacing: bool = False) -> None:
        """Have `bind` listen at a private path, and move the socket, mode 0600, to its own path.

        The socket of a dead router is replaced, and `replacing` that of any. Refusal when a live one is there, or something
        that is no socket.
        """
        directory = self.path.parent
        with ExitStack() as undo:
            try:
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                parent_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, parent_fd)
                self._lock(parent_fd)
                if not replacing:
                    self.check_free()
                private = Path(tempfile.mkdtemp(prefix=".podwire-", dir=directory))
                undo.callback(_remove, private)
                # gRPC unlinks the name it bound when it stops, whatever the number in it then stands for: hence a
                # name that is nowhere else.
                name = f"{private.name}.sock"
                private_fd = os.open(private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, private_fd)
                bind(f"/proc/self/fd/{private_fd}/{name}")
                undo.callback((private / name).unlink, missing_ok=True)
                os.chmod(name, 0o600, dir_fd=private_fd)
                self._inode = _inode(os.stat(name, dir_fd=private_fd))
                os.rename(name, self.path, src_dir_fd=private_fd)
            except OSError as error:
                self._inode = None
                raise Refusal(Kind.STATE, f"--socket {self.path}: cannot listen there: {error.strerror}") from error

    def release(self) -> None:
        """Remove the socket, unless another has taken its place. Can be repeated."""
        if self._inode is None:
            return
        with suppress(FileNotFoundError):
            if _inode(self.path.lstat()) == self._inode:
                self.path.unlink()
        self._inode = None

    def _lock(self, parent_fd: int) -> None:
        """Keep other routers from claiming a path in this directory until the descriptor is closed."""
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                return fcntl.flock(parent_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    who = f"another process keeps {self.path.parent} locked"
                    message = f"--socket {self.path}: {who}; use a directory of its own"
                    raise Refusal(Kind.STATE, message) from None
            time.sleep(0.01)

    def _check_directory(self) -> None:
        """Refusal when others may rename what is in the directory, and so answer in the router's place."""
        try:
            status = self.path.parent.stat()
        except OSError:  # not there yet: it is made with mode 755; or what is wrong shows when it is used
            return
        # In a sticky directory, as /tmp, each may only rename what is their own (inode(7)).
        open_to_others = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if open_to_others or status.st_uid not in (0, os.geteuid()):
            how = f"mode {status.st_mode & 0o7777:o}, owner {status.st_uid}"
            message = f"--socket {self.path}: others may put another socket there ({how}); use a directory of root's, mode 755"
            raise Refusal(Kind.STATE, message)

    def check_free(self) -> None:
        """Refusal when a router listens there, when something else than a socket is there, or others may put one there."""
        self._check_directory()
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise Refusal(Kind.STATE, f"--socket {self.path}: cannot listen there: {error.strerror}") from None
        if not stat.S_ISSOCK(mode):
            message = f"--socket {self.path}: something that is no socket is there; remove it or choose another path"
            raise Refusal(Kind.STATE, message)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            outcome = probe.connect_ex(os.fspath(self.path))
        # A full backlog (EAGAIN) has a listener too; only a refused connection proves that nobody is there.
        if outcome not in (errno.ECONNREFUSED, errno.ENOENT):
            message = f"--socket {self.path}: a router is running there already; stop it or choose another path"
            raise Refusal(Kind.STATE, message)


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _remove(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()
