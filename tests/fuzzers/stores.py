"""What stands in the stores of the subnet table: values and keys of etcd, Node objects of Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_network
from random import Random
from typing import Any

from router.errors import Refusal
from router.model import Endpoint, Node
from router.rpc.etcd import kv_pb2
from router.subnets.etcd import layout, messages
from router.subnets.etcd.holder import Holder
from router.subnets.etcd.transaction import Stored
from router.subnets.kubernetes import rows
from router.values import parse_address
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

_HOLDER = Holder("id", "boot", 4026531836, 77, 12345, "host", "2026-01-01T00:00:00Z")
_SUBNETS = (ip_network("10.32.1.0/24"), ip_network("fd00:32:0:1::/64"))
_NODE = Node("alpha", Endpoint(parse_address("192.0.2.1")), _SUBNETS, epoch=3)
_KEYS = (
    "endpoint",
    "subnets",
    "offload",
    "epoch",
    "holder",
    "node",
    "reserved",
    "identity",
    "networks",
    "vni",
    "pid",
    "by",
    "at",
    "ipv4_length",
)


class EtcdValues(Target):
    """A value and the key it stands under; each reader gets each."""

    name = "etcd"
    reached_by = "who may write below the prefix in etcd"

    def __init__(self) -> None:
        self._layout = layout.Layout("/podwire")
        config = layout.Config((ip_network("10.32.0.0/16"),), 24, 64, 1)
        whole = (
            layout.write_config(config, _HOLDER, "store"),
            layout.write_row(_NODE, _HOLDER),
            layout.write_owner(layout.Owner("alpha", 3, True)),
            layout.write_record(layout.Record("id", 3, _SUBNETS)),
        )
        self._valid = [json.loads(each) for each in whole]
        self._names = ("alpha", "a/b", "", "ä", "x" * 300, "..", "alpha\n")

    def make(self, random: Random) -> bytes:
        value = mutate.document(random, self._valid, _KEYS)
        if random.random() < 0.1:
            value = mutate.some(random, [json.dumps(each).encode() for each in self._valid])
        key = f"/podwire/members/{random.choice(self._names)}".encode()
        if random.random() < 0.1:
            key = mutate.damaged(random, key)
        return len(key).to_bytes(2, "big") + key + value

    def feed(self, given: bytes) -> None:
        size = int.from_bytes(given[:2], "big")
        stored = messages.stored(
            kv_pb2.KeyValue(key=given[2 : 2 + size], value=given[2 + size :], mod_revision=5, lease=7)
        )
        readers: tuple[Callable[[Stored], object], ...] = (
            lambda found: layout.read_row(found, self._layout),
            layout.read_config,
            layout.read_owner,
            layout.read_record,
        )
        for read in readers:
            try:
                read(stored)
            except Refusal as refusal:
                self.is_one_line(refusal.message)


class KubernetesNodes(Target):
    """A Node object, as the API server hands it out in JSON."""

    name = "kubernetes"
    reached_by = "who may write Nodes in Kubernetes: kubelets, controllers"

    _valid: tuple[dict[str, Any], ...] = (
        {
            "metadata": {"name": "alpha", "resourceVersion": "5", "annotations": {rows.ENDPOINT: "192.0.2.1:6081", rows.OFFLOAD: "true"}},
            "spec": {"podCIDR": "10.32.1.0/24", "podCIDRs": ["10.32.1.0/24", "fd00:32:0:1::/64"]},
            "status": {"addresses": [{"type": "Hostname", "address": "alpha"}, {"type": "InternalIP", "address": "192.0.2.1"}]},
        },
        {
            "metadata": {"name": "beta", "resourceVersion": "6"},
            "spec": {"podCIDR": "10.32.2.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]},
        },
    )  # fmt: skip
    _keys = (
        "metadata",
        "spec",
        "status",
        "podCIDRs",
        "podCIDR",
        "addresses",
        "annotations",
        "name",
        rows.ENDPOINT,
        rows.OFFLOAD,
    )

    def make(self, random: Random) -> bytes:
        return json.dumps(mutate.tree(random, random.choice(self._valid), self._keys)).encode("utf-8", "surrogatepass")

    def feed(self, given: bytes) -> None:
        try:
            item = json.loads(given.decode("utf-8", "surrogatepass"))
        except ValueError:
            return
        networks, underlay = (ip_network("10.32.0.0/16"), ip_network("fd00:32::/48")), _NODE.endpoint
        try:
            name = rows.name_of(item)
            rows.version_of(item)
        except ValueError:
            return
        roster = rows.Roster("alpha")
        row = rows.row_of(item, networks, underlay)
        roster.put(name, row)
        assert isinstance(roster.remarks(), str)
        assert len(roster.nodes) == isinstance(row, Node)
