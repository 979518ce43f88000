"""Settings: precedence, and one line for whatever is wrong."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from router.commands import run
from router.config import (
    _PARSERS,
    ENVIRONMENT,
    OffloadSwitches,
    Settings,
    Tls,
    flag,
    load_settings,
)
from router.errors import Kind, Refusal
from router.model import Endpoint, Offloads
from router.values import Switch, parse_endpoint, parse_prefix

NEEDED = {"node": "alpha", "network": ("10.32.0.0/12", "fd00:32::/32"), "underlay": "192.0.2.1"}


def refusal(flags: dict[str, object], environ: dict[str, str] | None = None, config_file: Path | None = None) -> str:
    with pytest.raises(Refusal) as refused:
        load_settings(flags, environ or {}, config_file)
    assert refused.value.kind is Kind.INVALID
    assert "\n" not in refused.value.message
    return refused.value.message


def test_three_settings_are_enough() -> None:
    assert load_settings(NEEDED, {"HOME": "/root"}, None) == Settings(
        node="alpha",
        networks=(ip_network("10.32.0.0/12"), ip_network("fd00:32::/32")),
        underlay=Endpoint(ip_address("192.0.2.1"), 6081),
        subnets_file=None,
        socket_path=Path("/run/podwire/router.sock"),
        state_dir=Path("/var/lib/podwire"),
        engine="auto",
        vni=1,
        mtu_bytes=0,
        egress=True,
        masquerade=True,
        address_rest_s=60.0,
        offloads=OffloadSwitches(),
        tls=None,
        log_level="info",
        log_format="text",
    )


def test_every_offload_has_its_switch() -> None:
    assert [entry.name for entry in fields(OffloadSwitches)] == [entry.name for entry in fields(Offloads)]


def test_a_file_can_say_everything(tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(
        """
        node = "beta"
        network = ["10.32.0.0/12"]
        underlay = "[2001:db8::2]:7000"
        subnets = "subnets.toml"
        socket = "/tmp/x.sock"
        state_dir = "state"
        engine = "python"
        vni = 77
        mtu_bytes = 1400
        egress = false
        masquerade = false
        address_rest_s = 1.5
        [offloads]
        tun_checksum = "on"
        tun_tso = true
        tun_uso = false
        udp_gro = "off"
        max_segments = 64
        [tls]
        listen = "192.0.2.1:7443"
        cert = "/etc/podwire/cert.pem"
        key = "key.pem"
        ca = "ca.pem"
        [log]
        level = "debug"
        format = "json"
        """
    )
    assert load_settings({}, {}, file) == Settings(
        node="beta",
        networks=(ip_network("10.32.0.0/12"),),
        underlay=Endpoint(ip_address("2001:db8::2"), 7000),
        subnets_file=tmp_path / "subnets.toml",
        socket_path=Path("/tmp/x.sock"),
        state_dir=tmp_path / "state",
        engine="python",
        vni=77,
        mtu_bytes=1400,
        egress=False,
        masquerade=False,
        address_rest_s=1.5,
        offloads=OffloadSwitches(Switch.ON, Switch.ON, Switch.OFF, Switch.AUTO, Switch.OFF, 64),
        tls=Tls(
            Endpoint(ip_address("192.0.2.1"), 7443),
            Path("/etc/podwire/cert.pem"),
            tmp_path / "key.pem",
            tmp_path / "ca.pem",
        ),
        log_level="debug",
        log_format="json",
    )


def test_flags_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text("vni = 2\nmtu_bytes = 1401\nengine = 'file'\n[log]\nlevel = 'error'\n")
    environ = {"PODWIRE_MTU_BYTES": "1402", "PODWIRE_ENGINE": "environment", "PODWIRE_CONFIG": "elsewhere"}
    got = load_settings({**NEEDED, "engine": "flag", "vni": None}, environ, file)
    assert (got.vni, got.mtu_bytes, got.engine, got.log_level) == (2, 1402, "flag", "error")


def test_the_environment_can_say_everything_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "PODWIRE_NODE": "gamma",
        "PODWIRE_NETWORK": "10.32.0.0/12, fd00:32::/32",
        "PODWIRE_UNDERLAY": "192.0.2.3:99",
        "PODWIRE_SUBNETS": "table.toml",
        "PODWIRE_OFFLOADS_TUN_TSO": "off",
        "PODWIRE_MASQUERADE": "no",
        "PODWIRE_PORT": "tcp://10.96.0.1:80",
        "PODWIRE_SERVICE_HOST": "10.96.0.1",
    }
    got = load_settings({"network": ()}, environ, None)
    assert got.networks == (ip_network("10.32.0.0/12"), ip_network("fd00:32::/32"))
    assert got.subnets_file == tmp_path / "table.toml"
    assert got.offloads.tun_tso is Switch.OFF
    assert not got.masquerade


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"node": None}, "node is not set: give --node, PODWIRE_NODE, or node in the --config file"),
        ({"network": ()}, "network is not set"),
        ({"underlay": None}, "underlay is not set"),
        ({"node": "-x"}, "--node: node name '-x' must be"),
        ({"node": ""}, "--node: '' must be text"),
        (
            {"network": ("10.33.0.0/12",)},
            "--network: '10.33.0.0/12' has bits set behind the prefix: did you mean 10.32",
        ),
        ({"network": ("10.0.0.0",)}, "--network: '10.0.0.0' has no prefix length"),
        ({"network": ("10.0.0.0/8", "10.32.0.0/12")}, "cluster ranges 10.0.0.0/8 and 10.32.0.0/12 overlap"),
        ({"network": ("fd00::/16", "fd00::/16")}, "cluster ranges fd00::/16 and fd00::/16 overlap"),
        ({"network": ("192.0.2.0/24",)}, "range 192.0.2.0/24 contains this node's underlay address 192.0.2.1"),
        ({"network": ("0.0.0.0/0",)}, "cluster range 0.0.0.0/0 overlaps 0.0.0.0/8, which is never routed"),
        ({"network": ("fe80::/16",)}, "cluster range fe80::/16 overlaps fe80::/10"),
        ({"underlay": "node1"}, "--underlay: 'node1' is no IPv4 or IPv6 address (names are not looked up)"),
        ({"underlay": "192.0.2.1:x"}, "--underlay: '192.0.2.1:x': the port must be a number"),
        ({"vni": "16777216"}, "--vni: '16777216' must be a whole number from 0 to 16777215"),
        ({"vni": True}, "--vni: True must be"),
        ({"mtu_bytes": "100"}, "--mtu-bytes: '100' must be 0 or a whole number"),
        ({"mtu_bytes": "1279"}, "mtu_bytes 1279 is below the 1280 that IPv6 needs (RFC 8200), for fd00:32::/32"),
        ({"address_rest_s": "nan"}, "--address-rest-s: 'nan' must be a number of seconds"),
        ({"egress": "maybe"}, "--egress: 'maybe' must be true or false"),
        ({"offloads.tun_tso": "2"}, "--tun-tso: '2' must be auto, on or off"),
        ({"offloads.tun_checksum": "off", "offloads.tun_tso": "on"}, "cannot be on while offloads.tun_checksum is off"),
        ({"offloads.max_segments": "129"}, "--max-segments: '129' must be 0 or"),
        ({"log.level": "loud"}, "--log-level: 'loud' must be one of debug, info, warning, error"),
        ({"tls.listen": "192.0.2.1"}, "--listen: '192.0.2.1' needs a port"),
        ({"tls.cert": "/c"}, "a TCP listener needs mutual TLS, and tls.listen, tls.key, tls.ca is not set"),
        ({"nodes": "x"}, "flags: no setting 'nodes'; did you mean node?"),
    ],
)
def test_wrong_flags(flags: dict[str, object], words: str) -> None:
    assert words in refusal({**NEEDED, **flags})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vnj = 1", "no setting 'vnj'; did you mean vni?"),
        ("[ofloads]", "no setting 'ofloads'; did you mean offloads?"),
        ("[offloads]\ntun_tos = true", "no setting 'tun_tos' in [offloads]; did you mean tun_tso?"),
        ("tls = 1", "tls is a table: write [tls]"),
        ("vni = ", "is not TOML: Invalid value (at end of document)"),
        ("vni = 'x'", "vni: 'x' must be a whole number"),
        ("network = [1]", "network: 1 must be text"),
        ("network = []", "network: [] must be a list of prefixes"),
        ("network = 7", "network: 7 must be a list of prefixes"),
        ("[log]\nlevel = 3", "log.level: 3 must be one of"),
        ("\x00", "is not TOML"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "router.toml"
    file.write_text(text)
    message = refusal({**NEEDED, "network": None}, {}, file)
    assert str(file) in message
    assert words in message


def test_missing_and_binary_files(tmp_path: Path) -> None:
    assert refusal(NEEDED, {}, tmp_path / "none.toml").endswith("none.toml: No such file or directory")
    (tmp_path / "latin.toml").write_bytes(b"node = '\xe9'")
    assert "latin.toml is not TOML" in refusal(NEEDED, {}, tmp_path / "latin.toml")


def test_wrong_environment_is_named() -> None:
    assert refusal(NEEDED, {"PODWIRE_VNI": "x"}).startswith("PODWIRE_VNI: 'x' must be")
    assert "no setting PODWIRE_STATEDIR; did you mean PODWIRE_STATE_DIR?" in refusal(NEEDED, {"PODWIRE_STATEDIR": "/x"})


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1", "192.0.2.1:6081"),
        ("192.0.2.1:7", "192.0.2.1:7"),
        ("2001:db8::1", "[2001:db8::1]:6081"),
        ("[2001:db8::1]", "[2001:db8::1]:6081"),
        ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
        ("2001:db8::1:6081", "[2001:db8::1:6081]:6081"),
    ],
)
def test_endpoints(text: str, endpoint: str) -> None:
    assert str(parse_endpoint(text)) == endpoint
    assert parse_endpoint(str(parse_endpoint(text))) == parse_endpoint(text)


NO_ENDPOINTS = """
: [] [::1 ::1] [::1]x [::1]: 1.2.3.4: 1.2.3.4:0 1.2.3.4:65536 1.2.3.4:+1 1.2.3.4:1_0 1.2.3.4:\u0663 1.2.3.4:1:2 [1.2.3.4]:1
1.2.3 01.2.3.4 host:1 0.0.0.0 :: 224.0.0.1 ff02::1 255.255.255.255 fe80::1%eth0 ::ffff:1.2.3.4
"""
NO_PREFIXES = """
/ 10.0.0.0 10.0.0.0/ 10.0.0.0/255.0.0.0 10.0.0.0/33 10.0.0.1/24 fd00::1/64 fd00::/129 fe80::%1/64 x/8 10.0.0.0/8/8
10.0.0.0/\uff18 10.0.0.0/-1
"""


@pytest.mark.parametrize("text", ["", " 1.2.3.4", "1.2.3.4\n", *NO_ENDPOINTS.split()])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S+ \S+"):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["", " 10.0.0.0/8", "10.0.0.0/8\n", *NO_PREFIXES.split()])
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S+ \S+"):
        parse_prefix(text)


def test_every_setting_is_documented_under_all_its_names() -> None:
    """docs/configuration.md, the flags of `podwire router run` and the parsers name the same settings."""
    text = (Path(__file__).resolve().parent.parent / "docs/configuration.md").read_text()
    flags = {option for parameter in run.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name in _PARSERS:
        table, _, key = name.rpartition(".")
        row = next(
            line for line in text.splitlines() if line.startswith(f"| `[{table}] {key}`" if table else f"| `{key}`")
        )
        assert f"`{ENVIRONMENT}{name.upper().replace('.', '_')}`" in row
        assert f"`{flag(name)}" in row
        assert flag(name) in flags, f"{flag(name)} is no flag of `podwire router run`"
