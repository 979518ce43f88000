"""containerd's containers, by its own API: that of Kubernetes' Pods and that of `ctr` alike.

A sandbox that is not ready any more is still a container, until its runtime removes it: only what has no record is unknown.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import grpc

from shim.answers import Attachment
from shim.lean import codec
from shim.runtimes.source import SourceError

_TIMEOUT_S = 10.0
_NAMESPACES = "/containerd.services.namespaces.v1.Namespaces/List"
_CONTAINERS = "/containerd.services.containers.v1.Containers/List"
_OWNER = "containerd:"
_CRI_NAMESPACE = "k8s.io"
_CRI_NETNS = "cni-"
"""How containerd's CRI plugin names the namespaces of its sandboxes (pkg/netns); podman's are named otherwise."""
_SHIM_NETNS = "podwire-"


class Containerd:
    """One containerd, by its socket."""

    def __init__(self, socket_path: str) -> None:
        self.name = f"containerd:{socket_path}"
        self._socket_path = socket_path

    def claims(self, attachment: Attachment) -> bool:
        """Tell whether it is of our shim, or of a CNI plugin that containerd's CRI ran."""
        if attachment.owner.startswith(_OWNER):
            return True
        return attachment.owner.startswith("cni:") and Path(attachment.netns_path).name.startswith(_CRI_NETNS)

    def unknown(self, attachments: Collection[Attachment]) -> list[Attachment]:
        """Return those without a container. SourceError when containerd cannot be asked."""
        known = self._containers()
        return [each for each in attachments if not self._key(each) & known]

    def is_leaked(self, netns_path: Path) -> bool:
        """Tell whether it is a sandbox's namespace: one whose RunPodSandbox was killed stays for ever."""
        return netns_path.parent.name == "netns" and netns_path.name.startswith((_CRI_NETNS, _SHIM_NETNS))

    @staticmethod
    def _key(attachment: Attachment) -> set[tuple[str, str]]:
        """Return as what containerd may know an attachment's sandbox: namespace and id."""
        sandbox_id = attachment.key.sandbox_id
        if not attachment.owner.startswith(_OWNER):
            return {(_CRI_NAMESPACE, sandbox_id)}
        namespace = attachment.owner.removeprefix(_OWNER)
        return {(namespace, sandbox_id), (namespace, sandbox_id.removeprefix(f"{namespace}:"))}

    def _containers(self) -> set[tuple[str, str]]:
        found = set()
        with grpc.insecure_channel(f"unix:{self._socket_path}", [("grpc.enable_http_proxy", 0)]) as channel:
            # Both answers are a list of messages whose first field is the name or id.
            for namespace in self._first_texts(channel, _NAMESPACES, ()):
                metadata = (("containerd-namespace", namespace),)
                found |= {(namespace, each) for each in self._first_texts(channel, _CONTAINERS, metadata)}
        return found

    def _first_texts(self, channel: grpc.Channel, method: str, metadata: tuple[tuple[str, str], ...]) -> list[str]:
        try:
            ask: Any = channel.unary_unary(method)
            answer: bytes = ask(b"", timeout=_TIMEOUT_S, metadata=metadata)
            messages = [raw for number, _, raw in codec.fields(answer) if number == 1]
            return [
                bytes(raw).decode() for message in messages for number, _, raw in codec.fields(message) if number == 1
            ]
        except grpc.RpcError as error:
            why = " ".join((error.details() or "").split())
            raise SourceError(f"cannot ask containerd at {self._socket_path}: {error.code().name}: {why}") from None
        except (ValueError, TypeError) as error:
            raise SourceError(f"what answers at {self._socket_path} is no containerd: {error}") from None
