"""Settings of where the subnet table comes from: one source, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import Etcd, Kubernetes, Settings, load_settings
from router.errors import Refusal

HERE: dict[str, object] = {"node": "alpha", "network": "10.32.0.0/16,fd00:32::/48", "underlay": "192.0.2.1"}


def settings(**flags: object) -> Settings:
    return load_settings(HERE | {name.replace("__", "."): value for name, value in flags.items()}, {}, None)


def test_an_etcd_needs_its_urls_and_nothing_else() -> None:
    found = settings(etcd__endpoints=("http://192.0.2.10:2379", "https://[2001:db8::1]:2379/"))
    assert found.etcd == Etcd(("http://192.0.2.10:2379", "https://[2001:db8::1]:2379"))
    assert (found.etcd.prefix, found.etcd.ttl_s, found.etcd.ipv4_length, found.etcd.ipv6_length) == (
        "/podwire",
        30,
        24,
        64,
    )


def test_the_environment_and_a_file_say_it_too(tmp_path: Path) -> None:
    file = tmp_path / "podwire.toml"
    file.write_text('[etcd]\nendpoints = ["https://store:2379"]\nca = "ca.pem"\nreserve = true\nttl_s = 60\n')
    found = load_settings(HERE, {"PODWIRE_ETCD_PREFIX": "/a/b/", "PODWIRE_ETCD_USER": "podwire"} | {
        "PODWIRE_ETCD_PASSWORD_FILE": "/etc/podwire/password"}, file)  # fmt: skip
    assert found.etcd == Etcd(
        ("https://store:2379",),
        prefix="/a/b",
        ttl_s=60,
        reserve=True,
        ca=tmp_path / "ca.pem",
        user="podwire",
        password_file=Path("/etc/podwire/password"),
    )


def test_kubernetes_is_a_kubeconfig_or_the_pods_own() -> None:
    assert settings(kubernetes__config="in-cluster").kubernetes == Kubernetes("in-cluster")
    found = settings(kubernetes__config="/root/.kube/config", kubernetes__context="edge").kubernetes
    assert found == Kubernetes("/root/.kube/config", "edge")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"etcd__endpoints": "192.0.2.10:2379"}, "--etcd: '192.0.2.10:2379' must be http://HOST:PORT or https://HOST"),
        ({"etcd__endpoints": "http://a"}, "must be http://HOST:PORT"),
        ({"etcd__prefix": "/x"}, r"etcd.endpoints is not set \(--etcd\)"),
        ({"etcd__endpoints": "http://a:1", "etcd__prefix": "x"}, "'x' must be a path"),
        ({"etcd__endpoints": "http://a:1", "etcd__ttl_s": "2"}, "--etcd-ttl-s: '2' must be a whole number from 3"),
        ({"etcd__endpoints": "http://a:1", "etcd__ca": "/ca"}, "http://a:1 is not https, and certificates are given"),
        ({"etcd__endpoints": "https://a:1", "etcd__cert": "/c"}, "etcd.cert and etcd.key go together"),
        ({"etcd__endpoints": "https://a:1", "etcd__user": "u"}, "etcd.user and etcd.password_file go together"),
        (
            {"etcd__endpoints": "http://a:1", "etcd__ipv4_length": "15"},
            r"etcd.ipv4_length 15 cuts no subnets from 10.32.0.0/16: use 17 or more \(--etcd-ipv4-length\)",
        ),
        ({"etcd__endpoints": "http://a:1", "etcd__ipv6_length": "40"}, "40 cuts no subnets from fd00:32::/48"),
        ({"etcd__endpoints": "http://a:1", "subnets": "/t"}, "from one source, not from --subnets and --etcd"),
        ({"kubernetes__context": "x"}, r"kubernetes.config is not set \(--kubernetes\)"),
        (
            {"etcd__endpoints": "http://a:1", "kubernetes__config": "in-cluster"},
            "from one source, not from --etcd and --kubernetes",
        ),
    ],
)
def test_what_cannot_be_is_named(flags: dict[str, object], words: str) -> None:
    with pytest.raises(Refusal, match=words):
        settings(**flags)
