"""The CNI plugin as a runtime runs it: an executable of its own, JSON on its standard input, its verb in the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shim import launchers
from shim.lab import netns
from shim.lab.node import LabNode

STOCK = Path("/usr/lib/cni")
"""Where Debian has the plugins of containernetworking-plugins."""


CLIENTS = ("python", "native")


def need(client: str) -> None:
    """Skip the test, aloud, where it wants the compiled plugin and that is not built."""
    if client == "native" and launchers.built_client() is None:
        pytest.skip("the compiled podwire-cni is not built: scripts/build-native.sh --require")


def executable_of(client: str, directory: Path) -> Path:
    """Return our plugin, of the one kind or the other."""
    need(client)
    (made,) = launchers.write(directory, [launchers.PLUGIN], client=client)
    return made


@dataclass(frozen=True)
class Said:
    """What an executable said."""

    status: int
    answer: Any
    stderr: str


@dataclass
class Plugin:
    """One plugin's executable in the namespace of a node, with its configuration."""

    executable: Path
    node: LabNode
    config: dict[str, Any] = field(default_factory=dict)

    def run(
        self, command: str, environment: Mapping[str, str], config: bytes | Mapping[str, Any] | None = None
    ) -> Said:
        """Run a verb; the configuration is completed by the rig's unless it is bytes."""
        given = config if isinstance(config, bytes) else json.dumps(self.config | dict(config or {})).encode()
        environ = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": str(STOCK), **environment}
        done = netns.run(self.node.netns_path, [str(self.executable)], input=given, env=environ, text=False, timeout=60)
        out = done.stdout.decode()
        return Said(done.returncode, json.loads(out) if out else None, done.stderr.decode())


@dataclass(frozen=True)
class Sandbox:
    """What a runtime knows of a sandbox."""

    container_id: str
    netns_path: str
    if_name: str = "eth0"
    arguments: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns_path,
            "CNI_IFNAME": self.if_name,
            "CNI_ARGS": self.arguments,
        }

    @property
    def without_netns(self) -> dict[str, str]:
        """What is left when the sandbox's namespace is gone."""
        return self.environment | {"CNI_NETNS": ""}


def chain(
    plugins: Sequence[tuple[Plugin, Mapping[str, Any]]], command: str, sandbox: Sandbox, result: Any = None
) -> Any:
    """Run a verb through a list of plugins as libcni does: ADD forwards with each result handed on, DEL backwards."""
    order = plugins if command != "DEL" else list(reversed(plugins))
    for plugin, config in order:
        previous = {"prevResult": result} if result is not None else {}
        said = plugin.run(command, sandbox.environment, {**config, **previous})
        assert said.status == 0, said
        if command == "ADD":
            result = said.answer
    return result
