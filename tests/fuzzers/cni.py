"""The CNI plugin: its environment and what comes on standard input, for the Python one and the compiled one side by side.

Both ask a live server. They must answer alike: a result, or an error with the same code; nothing else is ever on standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from router.control.server import serve
from shim.cni import main as plugin
from shim.cni.config import Config
from shim.cni.environment import Environment
from shim.cni.errors import CniError
from tests.control_daemon import MemoryDaemon
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

COMPILED = Path(__file__).parents[2] / "shim/cni/native/podwire-cni"
_NOBODY = 65534
_TIMEOUT_S = 20.0
_MOST_VALUE_BYTES = 100_000
"""MAX_ARG_STRLEN, linux/binfmts.h, is 131072."""
_KEYS = (
    "cniVersion", "name", "type", "mtu", "ipam", "runtimeConfig", "args", "prevResult", "dns", "ips", "mac", "portMappings", "bandwidth",
    "labels", "cni", "cni.dev/valid-attachments", "cni.dev/attachments", "interfaces", "routes", "hostPort", "containerPort", "capabilities",
)  # fmt: skip
_VERBS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
_PREVIOUS = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/box", "mac": "02:00:00:00:00:01"}],
    "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.1.1.1"]},
}
_VALID: tuple[dict[str, Any], ...] = (
    {"cniVersion": "1.0.0", "name": "net", "type": "podwire-cni"},
    {
        "cniVersion": "1.1.0",
        "name": "net",
        "mtu": 1400,
        "runtimeConfig": {
            "ips": ["10.1.2.3/24"],
            "mac": "02:00:00:00:00:01",
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": "0.0.0.0"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 100_000, "egressRate": 8_000_000, "egressBurst": 0},
            "dns": {"servers": ["10.1.1.1"], "searches": ["x.y"]},
        },
        "args": {"cni": {"labels": [{"key": "a", "value": "b"}], "ips": ["fd00::5"]}},
    },
    {"cniVersion": "0.4.0", "name": "net", "prevResult": _PREVIOUS},
    {"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": [{"containerID": "box", "ifname": "eth0"}]},
)  # fmt: skip
_ENVIRONMENT = {
    "CNI_CONTAINERID": "box",
    "CNI_NETNS": "/run/netns/box",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAME=web;IP=10.1.2.9",
}


class Plugins(Target):
    """An input is JSON: the environment, and the configuration in Latin-1, so that any bytes can stand in it."""

    name = "cni"
    reached_by = "container runtimes, and who may write what they pass on: Pods' annotations, network configurations"

    weight = 3.0

    def __init__(self) -> None:
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="podwire-fuzz-")))
            directory.chmod(0o755)
            self._socket = directory / "router.sock"
            self._daemon = MemoryDaemon()
            server = serve(self._daemon, socket_path=str(self._socket))
            server.start()
            undo.callback(server.stop, 0)
            self._socket.chmod(0o666)  # the compiled one runs as nobody: what it writes by mistake hurts nobody
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def make(self, random: Random) -> bytes:
        environ: dict[str, str] = {"CNI_COMMAND": random.choice(_VERBS), **_ENVIRONMENT}
        if random.random() < 0.4:
            name = random.choice(list(environ))
            value = random.choice((environ[name], "")) + random.choice(mutate.SNIPPETS)
            environ[name] = value.replace("\0", "").encode("utf-8", "replace").decode()[:_MOST_VALUE_BYTES]
        if random.random() < 0.05:
            del environ[random.choice(list(environ))]
        content = (
            mutate.document(random, _VALID, _KEYS) if random.random() < 0.9 else mutate.some(random, [b"{}", b"[]"])
        )
        return json.dumps({"environ": environ, "content": content.decode("latin-1")}).encode()

    def feed(self, given: bytes) -> None:
        asked = json.loads(given)
        environ, content = asked["environ"], self._with_socket(asked["content"].encode("latin-1"))
        self._daemon.held.clear()
        ours = self._python(environ, content)
        if "CNI_COMMAND" not in environ or not COMPILED.exists():
            return
        self._daemon.held.clear()
        theirs = self._compiled(environ, content)
        assert ours == theirs, f"the Python plugin: {ours}, the compiled one: {theirs}"

    def _with_socket(self, content: bytes) -> bytes:
        """Let no damage lead to another socket, beside which a tombstone would be left, nor to a long wait."""
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return content
        if not isinstance(found, dict):
            return content
        pinned = json.dumps({"socket": str(self._socket), "wait_s": 0})
        try:
            rest = json.dumps({name: value for name, value in found.items() if name not in ("socket", "wait_s")})
        except (ValueError, RecursionError):  # a number of thousands of digits
            return content
        return (pinned[:-1] + (", " if len(rest) > 2 else "") + rest[1:]).encode()

    @staticmethod
    def _python(environ: dict[str, str], content: bytes) -> tuple[int, Any]:
        try:
            answer = plugin._do(Environment(environ), Config(content))
        except CniError as error:
            json.dumps(error.message)
            return 1, error.code
        json.dumps(answer)
        return 0, answer

    @staticmethod
    def _compiled(environ: dict[str, str], content: bytes) -> tuple[int, Any]:
        encoded = {name.encode(): value.encode() for name, value in environ.items()}
        done = subprocess.run(
            [COMPILED], input=content, env=encoded, capture_output=True, check=False, timeout=_TIMEOUT_S,
            user=_NOBODY if os.geteuid() == 0 else None,
        )  # fmt: skip
        assert done.returncode in (0, 1), f"exit status {done.returncode}: {done.stderr[-500:]!r}"
        assert b"panicked" not in done.stderr, done.stderr[-500:]
        answer = json.loads(done.stdout) if done.stdout else None
        if done.returncode:
            assert isinstance(answer, dict), done.stdout
            assert isinstance(answer["msg"], str)
            return 1, answer["code"]
        return 0, answer
