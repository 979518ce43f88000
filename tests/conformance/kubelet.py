"""What a kubelet does with its runtime: runs Pods and containers, and after a crash cleans up and tries again."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Any

from tests.conformance import images, who
from tests.conformance.containerd import Containerd
from tests.conformance.cri import Cri


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox that runs, its addresses, and how it was asked for."""

    id: str
    config: dict[str, Any]
    addresses: tuple[IPv4Address, IPv6Address]


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to a port of the Pod."""

    host: int
    container: int
    protocol: str = "TCP"


class Kubelet:
    """The kubelet of one node. Every method raises CriError."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.node = containerd.node
        self._open = ExitStack()
        self.cri: Cri = self._open.enter_context(containerd.cri())

    def __enter__(self) -> Kubelet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def reconnect(self) -> None:
        """Talk to a containerd that was started anew."""
        self._open.close()
        self.cri = self._open.enter_context(self.containerd.cri())

    def conditions(self) -> dict[str, tuple[bool, str]]:
        """Return the runtime's conditions: whether each holds, and its message."""
        status = self.cri.call("Status")["status"]
        return {each["type"]: (each["status"], each["message"]) for each in status["conditions"]}

    def run_pod(
        self,
        name: str = "",
        *,
        ports: Sequence[HostPort] = (),
        annotations: Mapping[str, str] | None = None,
        handler: str = "",
        attempt: int = 0,
        timeout_s: float = 60.0,
    ) -> Pod:
        """Make a Pod's sandbox, and read its addresses."""
        config = pod_config(name or f"pod-{secrets.token_hex(4)}", ports, annotations, attempt)
        answer = self.cri.call("RunPodSandbox", timeout_s=timeout_s, config=config, runtime_handler=handler)
        return Pod(answer["pod_sandbox_id"], config, self._addresses(answer["pod_sandbox_id"]))

    def run_container(self, pod: Pod, command: Sequence[str] = images.SLEEP) -> str:
        """Start a container in a Pod and return its id."""
        config = {
            "metadata": {"name": f"c-{secrets.token_hex(4)}"},
            "image": {"image": images.NAME},
            "command": list(command),
            "linux": {"security_context": {"capabilities": {"add_capabilities": ["NET_RAW"]}}},
        }
        made = self.cri.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        self.cri.call("StartContainer", container_id=made["container_id"])
        return str(made["container_id"])

    def serve(self, pod: Pod) -> str:
        """Start a container with the image's web server, wait until it listens, and return its id."""
        container = self.run_container(pod, images.SERVE)
        who.wait_listening(self.inside(container))
        return container

    def exec(self, container: str, *command: str, timeout_s: int = 20) -> tuple[int, str]:
        """Run a command in a container; return its exit status and all it said."""
        answer = self.cri.call("ExecSync", container_id=container, cmd=list(command), timeout=timeout_s)
        said = base64.b64decode(answer["stdout"]) + base64.b64decode(answer["stderr"])
        return int(answer["exit_code"]), said.decode(errors="replace")

    def inside(self, container: str) -> who.Run:
        """Return what runs commands in a container."""
        return lambda command: self.exec(container, *command)

    def stop_pod(self, pod_id: str) -> None:
        self.cri.call("StopPodSandbox", pod_sandbox_id=pod_id)

    def remove_pod(self, pod_id: str) -> None:
        """Stop, stop and remove, as a kubelet does: three DELs."""
        self.stop_pod(pod_id)
        self.stop_pod(pod_id)
        self.cri.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    def pod_ids(self, name: str | None = None) -> list[str]:
        """Return the sandboxes the runtime has, in whatever state; of one Pod, if a name is given."""
        items = self.cri.call("ListPodSandbox")["items"]
        return [item["id"] for item in items if name in (None, item["metadata"]["name"])]

    def _addresses(self, pod_id: str) -> tuple[IPv4Address, IPv6Address]:
        network = self.cri.call("PodSandboxStatus", pod_sandbox_id=pod_id)["status"]["network"]
        texts = [network["ip"], *(each["ip"] for each in network["additional_ips"])]
        v4, v6 = sorted(map(ip_address, texts), key=lambda address: address.version)
        assert isinstance(v4, IPv4Address)
        assert isinstance(v6, IPv6Address)
        return v4, v6


def pod_config(
    name: str, ports: Sequence[HostPort] = (), annotations: Mapping[str, str] | None = None, attempt: int = 0
) -> dict[str, Any]:
    """Return how a sandbox is asked for."""
    return {
        "metadata": {"name": name, "uid": secrets.token_hex(8), "namespace": "conformance", "attempt": attempt},
        "hostname": name,
        "port_mappings": [
            {"protocol": port.protocol, "host_port": port.host, "container_port": port.container} for port in ports
        ],
        "labels": {"made-by": "conformance"},
        "annotations": dict(annotations or {}),
        "linux": {"cgroup_parent": "/podwire-conformance"},
    }
