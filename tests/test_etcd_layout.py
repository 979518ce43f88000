"""Keys and values: what is written is read, and whatever else stands in the store is a refusal that names its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Refusal
from router.model import Endpoint, Node
from router.subnets.etcd.holder import Standing, living, standing, this_process
from router.subnets.etcd.layout import (
    Config,
    Layout,
    Owner,
    Record,
    read_config,
    read_owner,
    read_record,
    read_row,
    write_config,
    write_owner,
    write_record,
    write_row,
)
from router.subnets.etcd.transaction import Stored

LAYOUT = Layout("/podwire")
HOLDER = this_process("11111111-2222-3333-4444-555555555555", "9:7")
SUBNETS = (ip_network("10.32.1.0/24"), ip_network("fd00:32:0:1::/64"))
NODE = Node("alpha", Endpoint(ip_address("2001:db8::1"), 7000), SUBNETS, offload=False, epoch=7)
CONFIG = Config((ip_network("10.32.0.0/12"), ip_network("fd00:32::/48")), 24, 64, 5)
READERS = (read_config, read_owner, read_record, lambda stored: read_row(stored, LAYOUT))


def refusal_of(read: Callable[[], object]) -> str | None:
    try:
        read()
    except Refusal as refusal:
        return refusal.message
    return None


def stored(key: str, value: bytes) -> Stored:
    return Stored(key, value, 12, 34)


def test_keys() -> None:
    assert LAYOUT.lease(SUBNETS[0]) == "/podwire/leases/10.32.1.0-24"
    assert LAYOUT.owner(SUBNETS[1]) == "/podwire/owners/fd00:32:0:1::-64"
    assert LAYOUT.endpoint(NODE.endpoint) == "/podwire/endpoints/[2001:db8::1]:7000"
    assert (LAYOUT.member("a"), LAYOUT.node("a"), LAYOUT.config) == (
        "/podwire/members/a",
        "/podwire/nodes/a",
        "/podwire/config",
    )


def test_what_is_written_is_read() -> None:
    row = read_row(stored("/podwire/members/alpha", write_row(NODE, HOLDER)), LAYOUT)
    assert (row.node, row.holder, row.mod_revision, row.lease) == (NODE, HOLDER, 12, 34)
    assert read_owner(stored("k", write_owner(Owner("a", 3, reserved=True)))) == Owner("a", 3, reserved=True)
    record = Record(HOLDER.identity, 3, SUBNETS)
    assert read_record(stored("k", write_record(record))) == record
    config, who = read_config(stored("k", write_config(CONFIG, HOLDER, "s")))
    assert config == CONFIG
    assert who == f"{HOLDER.hostname} at {HOLDER.since}"


def test_a_newer_router_may_say_more() -> None:
    value = {**json.loads(write_row(NODE, HOLDER)), "colour": "blue"}
    assert read_row(stored("/podwire/members/alpha", json.dumps(value).encode()), LAYOUT).node == NODE


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("endpoint", "192.0.2.1:99999", "the port must be a number"),
        ("endpoint", "0.0.0.0:1", "not the address of one machine"),
        ("endpoint", 7, "endpoint must be text"),
        ("endpoint", "x" * 2000, "endpoint must be text"),
        ("subnets", [], "subnets must be a list of 1 to 64"),
        ("subnets", ["10.32.1.0/24"] * 65, "subnets must be a list of 1 to 64"),
        ("subnets", "10.32.1.0/24", "subnets must be a list"),
        ("subnets", ["10.32.1.1/24"], "'10.32.1.1/24' is no prefix"),
        ("subnets", ["10.32.1.0/255.255.255.0"], "is no prefix"),
        ("subnets", [["10.32.1.0/24"]], "is no prefix"),
        ("subnets", ["FD00::/64"], "is no prefix"),
        ("offload", "yes", "offload must be true or false"),
        ("epoch", -1, "epoch must be a whole number"),
        ("epoch", True, "epoch must be a whole number"),
        ("epoch", 1e300, "epoch must be a whole number"),
        ("epoch", 2**60, "epoch must be a whole number"),
        ("holder", None, "holder must be an object"),
        ("holder", {}, "identity must be text"),
    ],
)
def test_a_bad_member_is_named(member: str, value: object, words: str) -> None:
    changed = {**json.loads(write_row(NODE, HOLDER)), member: value}
    with pytest.raises(Refusal) as refused:
        read_row(stored("/podwire/members/alpha", json.dumps(changed).encode()), LAYOUT)
    assert refused.value.message.startswith("etcd key /podwire/members/alpha: ")
    assert words in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "ä", "a" * 254, "\\xff"])
def test_a_row_under_no_name(name: str) -> None:
    with pytest.raises(Refusal, match="node name"):
        read_row(stored(f"/podwire/members/{name}", write_row(NODE, HOLDER)), LAYOUT)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"[" * 60000,
        b'{"a":' * 12000,
        b"9" * 6000,
        b'{"epoch":NaN}',
        b"{" + b" " * 70000 + b"}",
        b'{"identity":"\\ud800"}',
    ],
    ids=range(11),
)
def test_no_value_of_ours(value: bytes) -> None:
    for reader in READERS:
        with pytest.raises(Refusal, match="etcd key /podwire/members/x: "):
            reader(stored("/podwire/members/x", value))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=8,
)
NAMES = (
    "endpoint subnets offload epoch holder identity node reserved networks ipv4_length ipv6_length vni by at".split()
)


@given(
    st.one_of(
        st.binary(max_size=200), st.dictionaries(st.sampled_from(NAMES), JSON).map(lambda v: json.dumps(v).encode())
    )
)
def test_anything_at_all_is_read_or_refused(value: bytes) -> None:
    for reader in READERS:
        refused = refusal_of(lambda reader=reader: reader(stored("/podwire/members/x", value)))
        assert refused is None or "/podwire/members/x" in refused


@given(data=st.data(), member=st.sampled_from(["endpoint", "subnets", "offload", "epoch", "holder"]))
def test_one_strange_member_is_read_or_refused(data: st.DataObject, member: str) -> None:
    value: dict[str, Any] = json.loads(write_row(NODE, HOLDER))
    value[member] = data.draw(JSON)
    changed = stored("/podwire/members/alpha", json.dumps(value).encode())
    refused = refusal_of(lambda: read_row(changed, LAYOUT))
    assert refused is None or "/podwire/members/alpha" in refused


def test_how_a_holder_stands_to_us() -> None:
    ours = this_process("i", "9:7")
    assert standing(ours, ours) is Standing.SELF
    earlier = replace(ours, run="other")
    assert standing(earlier, replace(ours, place="")) is Standing.ENDED
    living.add("other")
    try:
        assert standing(earlier, replace(ours, place="")) is Standing.ALIVE
        assert standing(earlier, ours) is Standing.ENDED, "it cannot have the lock that we have"
    finally:
        living.discard("other")
    init = replace(earlier, pid=1, place="")
    assert standing(init, ours) is Standing.ENDED, "that pid is another process by now"
    assert standing(replace(init, pid=2**22 + 1), ours) is Standing.ENDED
    assert standing(replace(init, pid_namespace=1), ours) is Standing.UNKNOWN
    assert standing(replace(earlier, boot_id="x"), ours) is Standing.UNKNOWN
    assert standing(replace(earlier, boot_id="x", place="9:7"), ours) is Standing.UNKNOWN
