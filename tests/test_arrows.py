"""The arrows of docs/architecture.md: who may import whom, read from the source of every module, lazy imports too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 400

# Lowest first; a module imports from its own layer and those below. A module not named here is a part.
_LAYER_OF = {
    "router.model": "words",
    "router.errors": "words",
    "router.table": "core",
    "router.decide": "core",
    "router.wire": "core",
    "router.engine": "engine",
    "router.daemon": "daemon",
    "router.attachments": "daemon",
    "router.reconcile": "daemon",
    "router.owner": "daemon",
    "router.control": "control",
    "router.__main__": "root",
    "router.commands": "root",
}
"""By module, or by the package it is in."""
_PACKAGES = frozenset(("router", "router.wire", "router.kernel", "router.control"))
LAYERS = ("words", "core", "engine", "part", "daemon", "control", "root")

IMPURE = frozenset(
    "asyncio fcntl google grpc io logging os pathlib pyroute2 pytun random secrets select selectors socket sqlite3 "
    "subprocess sys threading time".split()
)
"""What the pure core does without: time, fds and randomness are arguments."""
OPENERS = frozenset("google grpc pathlib pyroute2 pytun sqlite3 subprocess".split())
OPENING_CALLS = frozenset(
    ("open", "io.open", "os.open", "socket.create_connection", "socket.socket", "socket.socketpair")
)
"""What an engine does without: it is handed fds."""

ETCD_EDGE = frozenset(f"router.subnets.etcd.{part}" for part in ("client", "connection", "messages", "watch"))
"""What speaks to etcd, in its own protocol."""
CONTROL_EDGE = frozenset(f"router.control.{part}" for part in ("calls", "messages", "observe", "server"))
"""What speaks the contract, on the router's side."""
ONLY_IN: Mapping[str, frozenset[str]] = {
    "dpkt": frozenset(("router.wire.icmp",)),
    "google": CONTROL_EDGE | {"shim.client", "shim.observe.client"},
    "grpc": CONTROL_EDGE | {"shim.client", "shim.observe.client", "shim.runtimes.containerd"} | ETCD_EDGE,
    "grpc_health": frozenset(("router.control.server", "shim.client")),
    "grpc_reflection": frozenset(("router.control.server",)),
    "kubernetes": frozenset(("router.subnets.kubernetes.api",)),
    "prometheus_client": frozenset(("router.metrics.collector",)),
    "pytun": frozenset(("router.kernel.tun",)),
    "sqlite3": frozenset(("router.statefile",)),
    "waitress": frozenset(("router.web.server",)),
}
"""A dependency, and the only modules that import it. Generated stubs are free."""
LEAN = ("shim.lean", "shim.cni", "shim.containerd", "shim.oci")
"""What runtimes start for each Pod: it knows itself and the standard library, for its start is most of its time."""
STUBS_ONLY_IN = CONTROL_EDGE | {"shim.client", "shim.observe.client"} | ETCD_EDGE


def modules(root: Path) -> dict[str, str]:
    """Return the source of every module of both packages by its name, generated stubs left out."""
    found = {}
    for path in (*root.glob("router/**/*.py"), *root.glob("shim/**/*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith("router.rpc"):
            found[name] = path.read_text()
    return found


def imports(tree: ast.AST, known: Mapping[str, str]) -> Iterator[str]:
    """Yield the modules imported anywhere in a module, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide an arrow; write the whole name"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known or node.module in _PACKAGES else node.module


def layer(module: str) -> int:
    """Return how high a router module stands."""
    package = ".".join(module.split(".")[:2])
    return LAYERS.index(_LAYER_OF.get(package, "part"))


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return every import or call that goes against an arrow, as a sentence."""
    found = []
    for module, source in sources.items():
        tree = ast.parse(source)
        for imported in sorted(set(imports(tree, sources))):
            found += [f"{module} imports {imported}: {why}" for why in _against_arrows(module, imported)]
        if LAYERS[layer(module)] == "engine" and not module.startswith("shim"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENING_CALLS:
                    found.append(f"{module}:{node.lineno} calls {ast.unparse(node.func)}: an engine opens nothing")
    return found


def _against_arrows(module: str, imported: str) -> Iterator[str]:
    top = imported.split(".", maxsplit=1)[0]
    in_shim = module.split(".", maxsplit=1)[0] == "shim"
    name = LAYERS[layer(module)]
    if top in ONLY_IN and module not in ONLY_IN[top]:
        yield f"only {', '.join(sorted(ONLY_IN[top]))} may"
    if imported.startswith("router.rpc"):
        if module not in STUBS_ONLY_IN:
            yield "protobuf types stop at the edge"
    elif in_shim:
        if top == "router":
            yield "the shim talks to a router over gRPC only"
        elif module.startswith(LEAN) and not imported.startswith(LEAN) and top not in sys.stdlib_module_names:
            yield "what lives for milliseconds imports next to nothing"
    elif top == "shim":
        if name != "root":
            yield "the router does not know its shims"
    elif top == "router":
        if layer(imported) > layer(module):
            yield f"the {name} layer stands below {LAYERS[layer(imported)]}"
        if name == "part" and layer(imported) == LAYERS.index("engine") and imported != "router.engine.interface":
            yield "a part knows the engine contract, not an engine"
    elif name in ("words", "core") and top in IMPURE:
        yield "the core is pure"
    elif name == "engine" and top in OPENERS:
        yield "an engine opens nothing"


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    graph = {name: set(imports(ast.parse(source), sources)) & set(sources) for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_follows_the_arrows() -> None:
    sources = modules(ROOT)
    assert {"router.model", "router.engine.interface", "shim"} <= set(sources)
    assert violations(sources) == []


def test_no_import_goes_in_a_circle() -> None:
    assert cycle(modules(ROOT)) == []


def test_named_modules_exist() -> None:
    assert set(_LAYER_OF) | _PACKAGES <= set(modules(ROOT)), "named in a layer, but not there"


def test_no_source_file_is_too_long() -> None:
    """Past that length a file has a second noun; find it."""
    lengths = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for package in ("router", "shim", "benchmarks", "proto")
        for path in (ROOT / package).rglob("*.py")
        if (ROOT / "router/rpc") not in path.parents
    }
    assert {str(path): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("router.wire.packet", "import socket", "pure"),
        ("router.model", "from time import monotonic", "pure"),
        ("router.table", "def f():\n    import logging", "pure"),
        ("router.wire.geneve", "from router.kernel import tun", "stands below"),
        ("router.wire.segment", "from router.engine.interface import Engine", "stands below"),
        ("router.model", "from router.wire.packet import Buffer", "stands below"),
        ("router.wire.segment", "import dpkt", "only router.wire.icmp may"),
        ("router.engine.python", "import dpkt.ip", "only router.wire.icmp may"),
        ("router.engine.python", "from router.kernel.tun import open_tun", "stands below"),
        ("router.engine.python", "import subprocess", "opens nothing"),
        ("router.engine.python", "import socket\ndef f(): return socket.socket()", "opens nothing"),
        ("router.engine.python", "def f(): return open('x')", "opens nothing"),
        ("router.kernel.tun", "from router.daemon import Daemon", "stands below"),
        ("router.ipam", "from router.engine.python import PythonEngine", "not an engine"),
        ("router.daemon", "import grpc", "only router.control.calls, "),
        ("router.daemon", "from router.rpc.v1 import router_pb2", "stop at the edge"),
        ("router.daemon", "from router.control.server import Control", "stands below"),
        ("router.daemon", "from google.protobuf.message import Message", "only router.control"),
        ("router.control.server", "import shim.client", "does not know its shims"),
        ("router.kernel.underlay", "import pytun", "only router.kernel.tun"),
        ("router.ipam", "import sqlite3", "only router.statefile"),
        ("shim.lab.pod", "from router.model import Address", "over gRPC only"),
        ("shim.lab.pod", "if TYPE_CHECKING:\n    from router import model", "over gRPC only"),
        ("shim.lab.pod", "from router.rpc.v1 import router_pb2", "stop at the edge"),
        ("shim.client", "from router import errors", "over gRPC only"),
        ("shim.commands", "import grpc", "only router.control.calls, "),
        ("shim.cni.verbs", "from shim.client import Client", "next to nothing"),
        ("shim.lean.call", "def f():\n    import click", "next to nothing"),
    ],
)
def test_a_planted_violation_is_caught(module: str, source: str, why: str) -> None:
    planted = {"router.kernel.tun": "", "router.model": "", "router.errors": ""} | {module: source}
    assert any(found.startswith(module) and why in found for found in violations(planted))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("router.wire.packet", "import struct\nfrom router.model import Address"),
        ("router.wire.icmp", "import dpkt\nfrom router import model\nfrom router.wire import packet"),
        (
            "router.engine.python",
            "import os, socket\nfrom router.wire import icmp\ndef f(s: socket.socket): os.readv(1, [])",
        ),
        ("router.daemon", "import time\nfrom router.engine.choose import choose\nfrom router.kernel import tun"),
        (
            "router.control.server",
            "import grpc\nfrom router.rpc.v1 import router_pb2\nfrom router.daemon import Daemon",
        ),
        ("router.__main__", "from shim.commands import attach\nfrom router.control.server import serve"),
        ("shim.client", "import grpc\nfrom router.rpc.v1 import router_pb2"),
        ("shim.commands", "from shim.client import Client"),
    ],
)
def test_what_is_allowed_is_not_caught(module: str, source: str) -> None:
    assert violations({"router.kernel.tun": "", "router.model": "", "shim.client": ""} | {module: source}) == []


def test_a_planted_circle_is_caught() -> None:
    planted = {
        "router.a": "import router.b",
        "router.b": "def f():\n    from router import c",
        "router.c": "from router.a import x",
    }
    assert set(cycle(planted)) == {"router.a", "router.b", "router.c"}
