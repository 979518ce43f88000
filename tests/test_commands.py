"""The command as people run it: a process of its own against a real server, its output, exit status and help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.control.server import Server, serve
from router.engine import choose
from router.errors import Kind, Refusal
from router.events import EventKind
from tests.control_daemon import MemoryDaemon

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("attach", "detach", "status", "pods", "routes", "peers", "counters", "events", "subnets list")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def daemon() -> MemoryDaemon:
    return MemoryDaemon()


@pytest.fixture
def server(daemon: MemoryDaemon, tmp_path: Path) -> Iterator[Server]:
    made = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    made.start()
    yield made
    made.stop(0)


def podwire(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TZ": "UTC", "PYTHONWARNINGS": "error", **environment}
    command = [sys.executable, "-m", "router", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    return lambda *arguments: podwire(*arguments, PODWIRE_SOCKET=str(tmp_path / "router.sock"))


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def lines(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Return the cells of a table, in the words of each line."""
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


# Each command, for people and for machines.


def test_attach_and_detach(run: Run) -> None:
    wanted = ("attach", "--id", "web-1", "--netns", "/run/netns/web-1", "--ip", "10.1.1.7", "--label", "name=a=b")
    done = run(*wanted)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "web-1/eth0: 10.1.1.7/24, MTU 1452, in /run/netns/web-1\n"
    found = answer(run(*wanted, "--json"))
    assert found == {
        "key": {"sandbox_id": "web-1", "if_name": "eth0"},
        "netns_path": "/run/netns/web-1",
        "addresses": ["10.1.1.7/24"],
        "mtu_bytes": 1452,
        "labels": {"name": "a=b"},
        "owner": "",
        "ports": [],
        "limits": None,
    }
    assert answer(run("pods", "--json")) == {"attachments": [found]}
    heading, pod = lines(run("pods"))
    assert heading == ["SANDBOX", "INTERFACE", "ADDRESSES", "PORTS", "MTU", "OWNER", "NAMESPACE", "LABELS"]
    assert pod == ["web-1", "eth0", "10.1.1.7/24", "-", "1452", "-", "/run/netns/web-1", "name=a=b"]
    assert run("detach", "--id", "web-1").stdout == "web-1/eth0: detached\n"
    assert run("detach", "--id", "web-1").stdout == "web-1/eth0: was not attached\n"
    assert answer(run("detach", "--id", "web-1", "--json")) == {"detached": False}


def test_attach_with_ports_and_limits(run: Run, daemon: MemoryDaemon) -> None:
    wanted = (
        "attach",
        "--id",
        "web",
        "--netns",
        "/run/netns/web",
        "--port",
        "8080:80",
        "--port",
        "[2001:db8::1]:53:53/udp",
    )
    found = answer(run(*wanted, "--egress-rate", "20M", "--json"))
    assert [(port["host_port"], port["protocol"], port["host_address"]) for port in found["ports"]] == [
        (8080, "tcp", ""),
        (53, "udp", "2001:db8::1"),
    ]
    assert found["limits"]["egress_bits_per_s"] == 20_000_000
    assert found["limits"]["ingress_bits_per_s"] == 0
    (asked,) = daemon.asked
    assert asked.limits.egress is not None
    assert asked.limits.egress.burst_bytes == 625_000
    assert "8080→80/tcp, 2001:db8::1:53→53/udp" in run("pods").stdout
    for wrong in (("--port", "80"), ("--ingress-rate", "fast")):
        done = run(*wanted, *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert wrong[0] in done.stderr


def test_status(run: Run) -> None:
    text = run("status").stdout
    for part in (
        "here at 192.0.2.1:6081",
        "engine python",
        "tun-uso off",
        "tun-tso on",
        "253 in 10.1.1.0/24",
        "50.0 MB",
        "there at [2001:db8::2]:7000: Network is unreachable",
    ):
        assert part in text
    assert "nodes 'a' and 'b' both own 10.1.2.0/24" in text
    found = answer(run("status", "--json"))
    assert (found["node"], found["vni"], found["free_addresses"][1]["free"]) == ("here", 1, 2**64 - 2)
    assert found["offloads"]["tun_uso"] is False


def test_routes(run: Run) -> None:
    assert lines(run("routes")) == [
        ["PREFIX", "NODE", "ENDPOINT", "VIA"],
        ["10.1.1.0/24", "here", "192.0.2.1:6081", "local"],
        ["fd00:0:0:1::/64", "here", "192.0.2.1:6081", "local"],
        ["10.1.2.0/24", "there", "[2001:db8::2]:7000", "tunnel"],
    ]
    found = answer(run("routes", "--json"))
    assert found["version"] == 1
    assert found["routes"][2] == {
        "prefix": "10.1.2.0/24",
        "node": "there",
        "endpoint": "[2001:db8::2]:7000",
        "offload": False,
        "via": "tunnel",
    }


def test_peers(run: Run) -> None:
    rows = lines(run("peers"))[1:]
    assert " ".join(rows[0]) == "there [2001:db8::2]:7000 10.1.2.0/24 down 12 s 1.50 ms 25% 1400 7 0 0"
    assert " ".join(rows[1]) == "there is down: it has not answered for 12 s"
    found = answer(run("peers", "--json"))
    assert [peer["node"]["name"] for peer in found["peers"]] == ["there"]
    assert found["peers"][0]["tally"]["delivered_packets"] == 7
    assert (found["peers"][0]["state"], found["peers"][0]["rtt_s"]) == ("down", 0.0015)


def test_counters(run: Run) -> None:
    text = run("counters").stdout.splitlines()
    assert text[0].split()[:4] == ["SOURCE", "RECEIVED", "DELIVERED", "TUNNELLED"]
    assert next(line for line in text if "pod/eth0" in line).split() == "pod pod/eth0 10 3 4 3 6 0 5".split()
    assert next(line for line in text if "peer 192.0.2.9:6081" in line).split()[2:] == [
        "1",
        "0",
        "0",
        "0",
        "-",
        "1",
        "0",
    ]
    assert "pod pod/eth0 spoofed_source 1" in [" ".join(line.split()) for line in text]
    assert text[-3:] == [
        "ICMP errors sent: 1, held back by the rate limit: 8",
        "dropped by the kernel at the underlay socket: 9",
        "the engine met a bug and began afresh: 10 times; podwire events tells more",
    ]
    found = answer(run("counters", "--json"))
    assert found["attachments"][1]["tally"]["dropped"] == {"no_route": 2, "spoofed_source": 1}
    assert found["attachments"][1]["kernel_drops"] == 6
    assert found["peers"][1]["tally"]["balance"] == 1


def test_events(run: Run, daemon: MemoryDaemon) -> None:
    daemon.events.record(EventKind.STARTED, "engine python", node="here")
    daemon.events.record(EventKind.DETACHED)
    first, second = run("events").stdout.splitlines()
    assert first.split()[0] == "1"
    assert first.endswith("started          here  engine python")
    assert second.endswith("detached")
    found = [json.loads(line) for line in run("events", "--json", "--after", "1").stdout.splitlines()]
    assert [(event["sequence"], event["kind"], event["key"]) for event in found] == [(2, "detached", None)]


def test_events_follow_until_interrupted(server: Server, daemon: MemoryDaemon, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "router", "events", "--follow", "--json", "--socket", f"{tmp_path}/router.sock"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        daemon.events.record(EventKind.ATTACHED)
        assert json.loads(process.stdout.readline())["kind"] == "attached"
        daemon.events.record(EventKind.DETACHED)
        assert json.loads(process.stdout.readline())["kind"] == "detached"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (130, "")


def test_subnets(run: Run) -> None:
    change = ("subnets", "set", "new", "--subnet", "10.1.3.0/24", "--no-offload", "--json", "--endpoint")
    for endpoint, meant in {
        "192.0.2.3": ("192.0.2.3", 6081),
        "192.0.2.3:7": ("192.0.2.3", 7),
        "2001:db8::3": ("2001:db8::3", 6081),
        "[2001:db8::3]:7": ("2001:db8::3", 7),
        "[2001:db8::3]": ("2001:db8::3", 6081),
    }.items():
        found = answer(run(*change, endpoint))["nodes"][-1]
        assert (found["endpoint"]["address"], found["endpoint"]["port"]) == meant
        assert (found["subnets"], found["offload"]) == (["10.1.3.0/24"], False)
    assert lines(run("subnets", "list"))[2] == ["there", "[2001:db8::2]:7000", "10.1.2.0/24", "no"]
    assert [row[0] for row in lines(run("subnets", "list"))] == ["NODE", "here", "there", "new"]
    assert [node["name"] for node in answer(run("subnets", "remove", "new", "--json"))["nodes"]] == ["here", "there"]


# What goes wrong.


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unreachable_router_is_one_line_and_69(command: str, tmp_path: Path) -> None:
    needs = {"attach": ["--id", "a", "--netns", "/n"], "detach": ["--id", "a"]}.get(command, [])
    path = tmp_path / "none.sock"
    done = podwire(*command.split(), *needs, "--socket", str(path))
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        f"podwire: cannot reach the router at unix:{path}: No such file or directory; "
        "is `podwire router run` running? (--socket PATH, or PODWIRE_SOCKET)\n"
    )


@pytest.mark.parametrize(
    ("path", "why"), [("file", "Connection refused"), ("x" * 200, "at most 107"), ("a/b", "No such file")]
)
def test_a_socket_that_is_none_is_said_so(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "file").write_text("")
    done = podwire("status", "--socket", str(tmp_path / path))
    assert done.returncode == 69
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_refusal_is_one_line_and_1(run: Run) -> None:
    done = run("subnets", "remove", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "podwire: there is no node 'nobody'; `podwire subnets list` names all\n"


def test_a_router_that_will_not_now_is_69_with_its_own_words(run: Run, daemon: MemoryDaemon) -> None:
    def refuse() -> None:
        raise Refusal(Kind.UNAVAILABLE, "starting up; try again")

    daemon.on_status = refuse
    done = run("status")
    assert (done.returncode, done.stderr) == (69, "podwire: starting up; try again\n")


def test_a_bug_of_the_router_is_70(run: Run, daemon: MemoryDaemon) -> None:
    daemon.on_status = lambda: 1 / 0
    done = run("status")
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("attach",),
        ("attach", "--id", "a", "--netns", "/n", "--label", "novalue"),
        ("attach", "--id", "a", "--netns", "/n", "--mtu", "big"),
        ("subnets", "set", "a", "--endpoint", "192.0.2.1:x"),
        ("nonsense",),
        ("status", "--nonsense"),
    ],
)
def test_a_wrong_command_line_is_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(run: Run, server: Server, tmp_path: Path) -> None:
    command = f"{sys.executable} -m router counters --socket {tmp_path}/router.sock | true"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# Help.


@pytest.mark.parametrize("command", [*COMMANDS, "subnets set", "subnets remove"])
def test_help_has_what_a_man_page_has(command: str) -> None:
    done = podwire(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        f"Usage: podwire {command}",
        "Examples:",
        f"podwire {command}",
        "Exit status:",
        "--json",
        "PODWIRE_SOCKET",
    ):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_names_every_command_and_imports_none() -> None:
    code = "import sys; from router.__main__ import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in (
        "router",
        "attach",
        "detach",
        "status",
        "pods",
        "routes",
        "peers",
        "counters",
        "events",
        "lab",
        "demo",
    ):
        assert f"\n  {command} " in done.stdout
    for module in ("'grpc'", "'numpy'", "'rich'", "'shim.commands'", "'google.protobuf'"):
        assert module not in done.stdout


def test_help_of_a_client_command_imports_no_grpc() -> None:
    code = (
        "import sys; from router.__main__ import main\ntry: main(['attach', '-h'])\nfinally: print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'shim.commands'" in done.stdout
    for module in ("'grpc'", "'numpy'", "'rich'"):
        assert module not in done.stdout


def test_help_starts_quickly() -> None:
    """150 ms are asked for; the bound is wide, since the machine is shared."""
    took_s = []
    for _ in range(5):
        began_s = time.monotonic()
        podwire("--help")
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < 0.5


def test_version_names_the_engines() -> None:
    done = podwire("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("podwire ")
    assert done.stdout.endswith(f"(engines: {', '.join(choose.available())})\n")


def test_every_command_named_is_there() -> None:
    import click

    from router.__main__ import podwire as group

    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        assert command.name == name
