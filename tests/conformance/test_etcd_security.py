"""Users and certificates: who is let in, what is said to who is not, and what happens when that changes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from router.errors import Refusal
from tests.etcd_rig import Router, Server, free_port, server, settings, source, until

TTL_S = 3


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def refused(folder: Path, config: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        source(folder, config, "a").read()
    assert "\n" not in refusal.value.message
    return refusal.value.message


# Users.


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """An etcd that asks for users: root, one that may use our prefix, and one that may use another."""
    with server(tmp_path, "--auth-token-ttl", "2") as made:
        for user in ("root", "router", "other"):
            made.ctl("user", "add", f"{user}:secret-{user}")
        for role, prefix in (("ours", "/podwire/"), ("theirs", "/elsewhere/")):
            made.ctl("role", "add", role)
            made.ctl("role", "grant-permission", role, "readwrite", "--prefix=true", prefix)
        made.ctl("user", "grant-role", "root", "root")
        made.ctl("user", "grant-role", "router", "ours")
        made.ctl("user", "grant-role", "other", "theirs")
        made.ctl("auth", "enable")
        yield made


def user(folder: Path, etcd: Server, name: str, password: str, **others: Any) -> Any:
    (folder / "password").write_text(password + "\n")
    return settings(etcd.url, user=name, password_file=folder / "password", **{"ttl_s": TTL_S} | others)


def test_a_user_and_tokens_that_expire(guarded: Server, stack: ExitStack, tmp_path: Path) -> None:
    one = Router(tmp_path, user(tmp_path, guarded, "router", "secret-router"), "a")
    stack.callback(one.stop)
    assert one.lease.held
    guarded.kill()  # it forgets all tokens
    until(lambda: not one.source.state().connected)
    guarded.start()
    until(lambda: one.source.state().connected and not one.source.state().error, one.source.state)
    two = Router(tmp_path, user(tmp_path, guarded, "router", "secret-router"), "b", 1)
    stack.callback(two.stop)
    one.until_table("a", "b")
    assert one.lease.epoch == 1
    assert one.lease.held


@pytest.mark.parametrize(
    ("name", "password", "words"),
    [
        ("router", "wrong", "refuses the user 'router': authentication failed, invalid user ID or password"),
        ("nobody", "secret", "refuses the user 'nobody': authentication failed"),
        ("other", "secret-other", "refuses the user 'other': permission denied; /podwire/ has to be open to reads and"),
    ],
)
def test_users_that_are_not_let_in(guarded: Server, tmp_path: Path, name: str, password: str, words: str) -> None:
    message = refused(tmp_path, user(tmp_path, guarded, name, password))
    assert message.startswith(f"etcd {guarded.url} ")
    assert words in message
    assert password not in message


def test_no_user_where_one_is_asked_for(guarded: Server, tmp_path: Path) -> None:
    assert "refuses who gives no user: user name is empty (etcd.user" in refused(tmp_path, settings(guarded.url))


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    config = settings("http://127.0.0.1:1", user="a", password_file=tmp_path / "none")
    assert f"cannot read etcd.password_file {tmp_path}/none: No such file" in refused(tmp_path, config)


def test_a_password_that_changes_while_a_router_runs(guarded: Server, stack: ExitStack, tmp_path: Path) -> None:
    """The token that it has goes on for a while; then it says what is wrong, and goes on once that is mended."""
    one = Router(tmp_path, user(tmp_path, guarded, "router", "secret-router"), "a")
    stack.callback(one.stop)
    guarded.ctl("user", "passwd", "router", "--interactive=false", user="root:secret-root", typed="fresh\n")
    guarded.kill()
    guarded.start()
    one.until_error("refuses the user 'router'")
    (tmp_path / "password").write_text("fresh")
    until(lambda: one.source.state().connected and not one.source.state().error, one.source.state)
    assert one.until_held()


def test_a_user_where_none_is_asked_for(stack: ExitStack, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And one is asked for later."""
    with server(tmp_path) as etcd:
        one = Router(tmp_path, user(tmp_path, etcd, "router", "secret"), "a")
        stack.callback(one.stop)
        assert one.lease.held
        assert "asks for no user: 'router' is not looked at" in caplog.text
        for name in ("root", "router"):
            etcd.ctl("user", "add", f"{name}:secret")
        etcd.ctl("user", "grant-role", "root", "root")
        etcd.ctl("user", "grant-role", "router", "root")
        etcd.ctl("auth", "enable")
        two = Router(tmp_path, user(tmp_path, etcd, "router", "secret"), "b", 1)
        stack.callback(two.stop)
        one.until_table("a", "b")
        assert two.lease.held
        stack.close()


# Certificates.


def openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with certificates for a server and a client, and another authority with one for a client."""
    folder = tmp_path_factory.mktemp("pki")
    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "foreign"):
        openssl(
            "req", "-x509", *ec, "-keyout", f"{folder}/{ca}.key", "-out", f"{folder}/{ca}.pem", "-subj", f"/CN={ca}"
        )
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "foreign")):
        request, key, cert = (f"{folder}/{name}.{kind}" for kind in ("csr", "key", "pem"))
        address = ("-addext", "subjectAltName=IP:127.0.0.1")
        openssl("req", *ec, "-keyout", key, "-out", request, "-subj", f"/CN={name}", *address)
        signer = ("-CA", f"{folder}/{ca}.pem", "-CAkey", f"{folder}/{ca}.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", request, *signer, "-copy_extensions", "copyall", "-out", cert)
    return folder


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Server]:
    flags = ("--cert-file", f"{pki}/server.pem", "--key-file", f"{pki}/server.key")
    folder = tmp_path_factory.mktemp("etcd")
    with server(folder, *flags, "--client-cert-auth", "--trusted-ca-file", f"{pki}/ca.pem", scheme="https") as made:
        yield made


def certificates(pki: Path, etcd: Server, ca: str, name: str, **others: Any) -> Any:
    shown = {"cert": pki / f"{name}.pem", "key": pki / f"{name}.key"} if name else {}
    return settings(etcd.url, ca=pki / f"{ca}.pem", ttl_s=TTL_S, **shown, **others)


def test_certificates_both_ways(secure: Server, pki: Path, stack: ExitStack, tmp_path: Path) -> None:
    one = Router(tmp_path, certificates(pki, secure, "ca", "client"), "a")
    stack.callback(one.stop)
    assert one.lease.held
    assert one.source.state().connected


@pytest.mark.parametrize(
    ("ca", "name", "words"),
    [
        ("foreign", "client", "its certificate is not signed by "),
        ("ca", "", "wants a certificate: give etcd.cert"),
        ("ca", "stranger", "refuses the certificate "),
    ],
)
def test_certificates_that_do_not_fit(
    secure: Server, pki: Path, tmp_path: Path, ca: str, name: str, words: str
) -> None:
    message = refused(tmp_path, certificates(pki, secure, ca, name))
    assert message.startswith(f"etcd {secure.url}")
    assert words in message


def test_a_certificate_for_another_name(secure: Server, pki: Path, tmp_path: Path) -> None:
    config = certificates(pki, secure, "ca", "client")
    named = settings(f"https://localhost:{secure.port}", ca=config.ca, cert=config.cert, key=config.key)
    assert "its certificate is for another name" in refused(tmp_path, named)


@pytest.mark.parametrize("what", ["ca", "cert", "key"])
def test_certificates_that_are_not_there(pki: Path, tmp_path: Path, what: str) -> None:
    paths = dict.fromkeys(("ca", "cert", "key"), pki / "ca.pem") | {what: tmp_path / "none"}
    config = settings(f"https://127.0.0.1:{free_port()}", **paths)
    assert f"cannot read etcd.{what} {tmp_path}/none: No such file" in refused(tmp_path, config)


def test_plain_text_to_a_server_with_certificates(secure: Server, tmp_path: Path, stack: ExitStack) -> None:
    """That might be a server that is starting, so it is no reason to give up."""
    one = Router(tmp_path, settings(f"http://127.0.0.1:{secure.port}"), "a")
    stack.callback(one.stop)
    assert one.read is None
    one.until_error("the connection was closed by the other side")


def test_certificates_that_are_renewed(secure: Server, pki: Path, tmp_path: Path, stack: ExitStack) -> None:
    """The files are read again when what was in them is refused."""

    def install(name: str) -> None:
        for kind in ("pem", "key"):
            (tmp_path / f"mine.{kind}").write_bytes((pki / f"{name}.{kind}").read_bytes())

    install("stranger")
    config = settings(secure.url, ca=pki / "ca.pem", cert=tmp_path / "mine.pem", key=tmp_path / "mine.key", ttl_s=TTL_S)
    secure.freeze()  # else the router would not start
    stack.callback(secure.thaw)
    one = Router(tmp_path, config, "z", 9)
    stack.callback(one.stop)
    secure.thaw()
    one.until_error("refuses the certificate")
    install("client")
    assert one.until_held()
    until(lambda: one.source.state().error == "", one.source.state)
