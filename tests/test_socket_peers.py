"""Who reaches a router's control API: by its socket nobody but its own user and root, over TCP who has a certificate of ours."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from router.control.listen import TcpListener, UnixSocket
from router.control.server import Server, serve
from router.errors import Kind, Refusal
from router.rpc.v1 import router_pb2
from router.rpc.v1.router_pb2_grpc import RouterStub
from tests.control_daemon import MemoryDaemon

NOBODY = 65534

_CONNECT = f"""
import os, socket, sys
os.setgroups([]); os.setgid({{gid}}); os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as asking:
    print(asking.connect_ex(sys.argv[1]))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody may enter, as /run/podwire: what keeps others out is the socket's own mode."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    made = serve(MemoryDaemon(), socket_path=str(directory / "router.sock"))
    made.start()
    yield made
    made.stop(0)


def connect_as_nobody(path: Path, gid: int = NOBODY) -> int:
    """Return errno of another user's connect."""
    words = [sys.executable, "-c", _CONNECT.format(gid=gid), str(path)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_another_user_is_refused_by_the_kernel(server: Server, directory: Path) -> None:
    path = directory / "router.sock"
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert connect_as_nobody(path) == errno.EACCES
    assert connect_as_nobody(path, gid=status.st_gid) == errno.EACCES, "nor does the group help"
    path.chmod(0o666)
    assert connect_as_nobody(path) == 0, "it was the mode that kept it out, not the way there"


@pytest.mark.parametrize(
    ("mode", "owner", "refused"),
    [
        (0o755, 0, False),
        (0o700, 0, False),
        (0o1777, 0, False),  # as /tmp: each renames only what is their own
        (0o777, 0, True),
        (0o775, 0, True),
        (0o755, NOBODY, True),
        (0o1777, NOBODY, True),
    ],
)
def test_a_directory_in_which_others_may_put_a_socket_is_refused(
    tmp_path: Path, mode: int, owner: int, refused: bool
) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    os.chown(directory, owner, owner)
    directory.chmod(mode)
    socket = UnixSocket(str(directory / "router.sock"))
    if not refused:
        return socket.check_free()
    bound: list[str] = []
    for attempt in (socket.check_free, lambda: socket.claim(bound.append)):
        with pytest.raises(Refusal, match="others may put another socket there") as caught:
            attempt()
        assert caught.value.kind is Kind.STATE
        assert f"mode {mode:o}, owner {owner}" in caught.value.message
    assert bound == []
    assert list(directory.iterdir()) == []
    return None


def test_a_socket_is_private_before_it_has_its_name(directory: Path) -> None:
    """Whoever is quick finds a directory that is closed, not a socket that is still open."""
    seen: list[int] = []
    socket = UnixSocket(str(directory / "router.sock"))

    def bind(path: str) -> None:
        seen.append(stat.S_IMODE(Path(path).parent.stat().st_mode))
        import socket as sockets

        with sockets.socket(sockets.AF_UNIX) as listener:
            listener.bind(path)

    socket.claim(bind)
    assert seen == [0o700]
    assert stat.S_IMODE((directory / "router.sock").stat().st_mode) == 0o600
    socket.release()


# TCP


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make our CA and another, and clients' certificates of both: one that is good, one that has expired, one of a later day."""
    made = tmp_path_factory.mktemp("pki")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=made, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ours", "others"):
        openssl(
            "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"
        )
    (made / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    (made / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "unique_subject=no\n[p]\ncommonName=supplied\n"
    )
    (made / "index").touch()
    (made / "serial").write_text("1000\n")
    periods = {
        "router": ("20200101000000Z", "20991231000000Z", "ours"),
        "good": ("20200101000000Z", "20991231000000Z", "ours"),
        "expired": ("20200101000000Z", "20210101000000Z", "ours"),
        "later": ("20980101000000Z", "20991231000000Z", "ours"),
        "stranger": ("20200101000000Z", "20991231000000Z", "others"),
    }
    for name, (begins, ends, ca) in periods.items():
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-cert", f"{ca}.pem", "-keyfile", f"{ca}.key", "-extfile", "san", "-batch", "-notext")
        openssl(
            "ca", "-config", "ca.cnf", "-in", f"{name}.csr", "-out", f"{name}.pem",
            "-startdate", begins, "-enddate", ends, *signed,
        )  # fmt: skip
    return made


@pytest.fixture
def port(directory: Path, pki: Path) -> Iterator[int]:
    tcp = TcpListener("127.0.0.1", 0, str(pki / "router.pem"), str(pki / "router.key"), str(pki / "ours.pem"))
    made = serve(MemoryDaemon(), socket_path=str(directory / "router.sock"), tcp=tcp)
    made.start()
    yield made.tcp_port
    made.stop(0)


def ask(port: int, pki: Path, name: str | None) -> str:
    chain = ((pki / f"{name}.key").read_bytes(), (pki / f"{name}.pem").read_bytes()) if name else (None, None)
    credentials = grpc.ssl_channel_credentials((pki / "ours.pem").read_bytes(), *chain)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        return RouterStub(channel).GetStatus(router_pb2.GetStatusRequest(), timeout=20).node


def test_a_certificate_of_ours_is_let_in(port: int, pki: Path) -> None:
    assert ask(port, pki, "good") == "here"


@pytest.mark.parametrize("name", ["expired", "later", "stranger", None])
def test_any_other_is_not(port: int, pki: Path, name: str | None) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(port, pki, name)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ask(port, pki, "good") == "here", "and the next one is let in"


def test_without_tls_nobody_is_let_in(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
        RouterStub(channel).GetStatus(router_pb2.GetStatusRequest(), timeout=20)
