"""Files that people write: the subnet table and the settings."""

from __future__ import annotations

import tempfile
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from router.config import ENVIRONMENT, load_settings
from router.errors import Refusal
from router.model import Endpoint
from router.subnets import check, file
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

_NETWORKS = (ip_network("10.32.0.0/16"), ip_network("fd00:32::/48"))
_UNDERLAY = Endpoint(ip_address("192.0.2.1"))
_TABLE = """\
[[node]]
name = "alpha"
endpoint = "192.0.2.1"
subnets = ["10.32.1.0/24", "fd00:32:0:1::/64"]

[[node]]
name = "beta"
endpoint = "[2001:db8::2]:7000"
subnets = ["10.32.2.0/24"]
offload = false
epoch = 3
"""
_SETTINGS = """\
node = "alpha"
network = ["10.32.0.0/16", "fd00:32::/48"]
underlay = "192.0.2.1"
subnets = "/etc/podwire/subnets.toml"
engine_threads = 1
mtu_bytes = 1400
egress = true
address_rest_s = 1.5
reconcile = ["containerd:/run/containerd/containerd.sock", "podman"]
confine = "auto"

[offloads]
tun_uso = "off"
max_segments = 64

[tls]
listen = "192.0.2.1:6082"
cert = "a"
key = "b"
ca = "c"

[log]
format = "json"
"""
_STORE = """\
node = "alpha"
network = "10.32.0.0/16"
underlay = "192.0.2.1"

[etcd]
endpoints = ["https://192.0.2.10:2379", "http://[2001:db8::1]:2379"]
prefix = "/podwire"
ttl_s = 30
ipv4_length = 24
reserve = true
user = "u"
password_file = "p"
"""
_WORDS = (
    "[[node]]",
    "[node]",
    "[etcd]",
    "[tls]",
    "[kubernetes]",
    "name",
    "endpoint",
    "subnets",
    "epoch",
    "node",
    "vni = -1\n",
    "=",
    "1979-05-27T07:32:00Z",
)


class SubnetTables(Target):
    """A subnet table in TOML, and the check of what its rows say of each other."""

    name = "subnets-file"
    reached_by = "who may write the file: root, or a ConfigMap's author"

    def make(self, random: Random) -> bytes:
        return mutate.text(random, (_TABLE, _TABLE * 20), _WORDS)

    def feed(self, given: bytes) -> None:
        source = file.FileSource(Path("table.toml"))
        try:
            nodes = source._parse(given)
            assert file.parse_table(file.format_table(nodes), Path("again")) == nodes, "written and read, it is another"
            check.check(nodes, _NETWORKS, "alpha", _UNDERLAY)
        except Refusal as refusal:
            self.is_one_line(refusal.message)


class Settings(Target):
    """A configuration file and the environment."""

    name = "settings"
    reached_by = "who may write the file or set the environment: root"

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="podwire-fuzz-")
        self._path = Path(self._directory.name) / "podwire.toml"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._directory.cleanup()

    def make(self, random: Random) -> bytes:
        whole = mutate.text(random, (_SETTINGS, _STORE), _WORDS)
        if random.random() < 0.3:
            name = random.choice(
                ("NODE", "NETWORK", "MTU_BYTES", "ETCD_TTL_S", "TLS_LISTEN", "NODES", "EGRESS", "RECONCILE")
            )
            whole = f"{ENVIRONMENT}{name}={random.choice(mutate.SNIPPETS)}\0".encode("utf-8", "surrogatepass") + whole
        return whole

    def feed(self, given: bytes) -> None:
        environ = {}
        if given.startswith(ENVIRONMENT.encode()) and b"\0" in given:
            pair, _, given = given.partition(b"\0")
            name, _, value = pair.decode("utf-8", "surrogateescape").partition("=")
            environ[name] = value
        self._path.write_bytes(given)
        try:
            load_settings({}, environ, self._path)
        except Refusal as refusal:
            self.is_one_line(refusal.message)
