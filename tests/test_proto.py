"""The contract: generated files are fresh, everything is documented, client and router mean the same by it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from router.events import EventKind
from router.rpc.v1 import (
    attachment_pb2,
    counters_pb2,
    events_pb2,
    observe_pb2,
    peers_pb2,
    router_pb2,
    status_pb2,
    subnets_pb2,
)
from router.status import Status
from shim import answers
from shim.observe import answers as observe_answers

ROOT = Path(__file__).resolve().parent.parent
STUBS = (attachment_pb2, counters_pb2, events_pb2, observe_pb2, peers_pb2, router_pb2, status_pb2, subnets_pb2)
MESSAGES = {name: message for stubs in STUBS for name, message in stubs.DESCRIPTOR.message_types_by_name.items()}


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "proto/generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_generated_files_are_fresh() -> None:
    done = generate(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_finds_what_is_stale_and_generating_mends_it(tmp_path: Path) -> None:
    for part in ("proto", "router/rpc", "docs/reference"):
        shutil.copytree(ROOT / part, tmp_path / part)
    proto = tmp_path / "proto/podwire/v1/router.proto"
    proto.write_text(proto.read_text().replace("bool no_follow", "bool stop_early"))
    (tmp_path / "router/rpc/v1/old_pb2.py").write_text("")
    done = generate(tmp_path, "--check")
    assert done.returncode == 1
    for path in ("router/rpc/v1/router_pb2.py", "router/rpc/v1/old_pb2.py", "docs/reference/api.md"):
        assert re.search(rf"^stale: {re.escape(path)} \(", done.stdout, re.MULTILINE), done.stdout
    assert "python proto/generate.py" in done.stderr
    assert generate(tmp_path).returncode == 0
    assert not (tmp_path / "router/rpc/v1/old_pb2.py").exists()
    assert generate(tmp_path, "--check").returncode == 0


def test_a_field_without_a_comment_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    proto = tmp_path / "proto/podwire/v1/events.proto"
    proto.write_text(proto.read_text().replace("  // One line for people to read.\n", ""))
    done = generate(tmp_path)
    assert done.returncode == 1
    assert "events.proto" in done.stderr
    assert "has no comment" in done.stderr


def test_numbers_say_their_range() -> None:
    """Every number has a unit or a range in its comment, as the reference page shows it."""
    page = (ROOT / "docs/reference/api.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` = \d+ \| (?:optional |repeated )?(uint32|uint64|int64|double) \| (.*) \|$", page, re.MULTILINE
    )
    assert len(rows) > 20
    vague = [name for name, _, comment in rows if not re.search(r"\d|\bor more\b|seconds", comment)]
    assert not vague


def test_stubs_import_without_a_warning() -> None:
    code = "import router.rpc.v1.router_pb2_grpc"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for module in (answers, observe_answers)
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ],
)
def test_the_client_names_fields_as_the_contract_does(kind: type) -> None:
    assert [field.name for field in dataclasses.fields(kind)] == [
        field.name for field in MESSAGES[kind.__name__].fields
    ]


def test_every_kind_of_event_is_in_the_contract() -> None:
    named = {f"EVENT_KIND_{kind.name}" for kind in EventKind} | {"EVENT_KIND_UNSPECIFIED"}
    assert named == set(events_pb2.EventKind.keys())


def test_status_is_whole() -> None:
    assert [field.name for field in dataclasses.fields(Status)] == [field.name for field in MESSAGES["Status"].fields]
