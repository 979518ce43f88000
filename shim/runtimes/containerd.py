"""containerd's containers, by its own API: that of Kubernetes' Pods and that of `ctr` alike.

A sandbox that is not ready any more is still a container, until its runtime removes it: only what has no record is unknown.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import grpc

from shim.answers import Attachment
from shim.containerd import netns
from shim.lean import codec
from shim.runtimes.source import SourceError

_TIMEOUT_S = 10.0
_NAMESPACES = "/containerd.services.namespaces.v1.Namespaces/List"
_CONTAINERS = "/containerd.services.containers.v1.Containers/ListStream"
"""As a stream: the list of a few hundred containers, specifications and all, is more than a message may have."""
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

    def forgotten(self, names: Collection[str]) -> list[str]:
        """Return those that no container's record names. SourceError when containerd cannot be asked."""
        records = self._records()
        # Our shim's: the name is made of the container's. CRI's: the path is in a sandbox's specification, in JSON.
        shims = {
            Path(netns.path_of(self._socket_path, namespace, container_id)).name
            for namespace, container_id, _ in records
        }
        written = [record for _, _, record in records]
        return [name for name in names if name not in shims and not any(name.encode() in each for each in written)]

    @staticmethod
    def _key(attachment: Attachment) -> set[tuple[str, str]]:
        """Return as what containerd may know an attachment's sandbox: namespace and id."""
        sandbox_id = attachment.key.sandbox_id
        if not attachment.owner.startswith(_OWNER):
            return {(_CRI_NAMESPACE, sandbox_id)}
        namespace = attachment.owner.removeprefix(_OWNER)
        return {(namespace, sandbox_id), (namespace, sandbox_id.removeprefix(f"{namespace}:"))}

    def _containers(self) -> set[tuple[str, str]]:
        return {(namespace, container_id) for namespace, container_id, _ in self._records()}

    def _records(self) -> list[tuple[str, str, bytes]]:
        """Return each container's namespace, its id, and all that containerd has written down of it."""
        found = []
        with grpc.insecure_channel(f"unix:{self._socket_path}", [("grpc.enable_http_proxy", 0)]) as channel:
            for namespace, _ in self._list(channel.unary_stream(_NAMESPACES), ()):
                metadata = (("containerd-namespace", namespace),)
                found += [(namespace, *each) for each in self._list(channel.unary_stream(_CONTAINERS), metadata)]
        return found

    def _list(self, ask: Any, metadata: tuple[tuple[str, str], ...]) -> list[tuple[str, bytes]]:
        """Return the messages that answers are lists of, each behind its first field: a name or id."""
        try:
            # One answer is a stream of one, as they are on the wire.
            answers: list[bytes] = list(ask(b"", timeout=_TIMEOUT_S, metadata=metadata))
            messages = [bytes(raw) for answer in answers for number, _, raw in codec.fields(answer) if number == 1]
            return [
                (bytes(raw).decode(), message)
                for message in messages
                for number, _, raw in codec.fields(message)
                if number == 1
            ]
        except grpc.RpcError as error:
            why = " ".join((error.details() or "").split())
            raise SourceError(f"cannot ask containerd at {self._socket_path}: {error.code().name}: {why}") from None
        except (ValueError, TypeError) as error:
            raise SourceError(f"what answers at {self._socket_path} is no containerd: {error}") from None
