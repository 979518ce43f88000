"""podman's containers, by its command: it has no daemon that would have to run."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from pathlib import Path

from shim.answers import Attachment
from shim.runtimes.source import SourceError

_TIMEOUT_S = 30
_LIST = ("podman", "ps", "--all", "--external", "--quiet", "--no-trunc")
_NETNS = "netns-"
"""How podman names the namespaces it makes for CNI (containers/common, pkg/netns); containerd's are named otherwise."""


class Podman:
    """The podman of this node, of root."""

    name = "podman"

    def claims(self, attachment: Attachment) -> bool:
        """Tell whether it is of our OCI hook, or of a CNI plugin that podman ran."""
        if attachment.owner == "oci":
            return True
        return attachment.owner.startswith("cni:") and Path(attachment.netns_path).name.startswith(_NETNS)

    def unknown(self, attachments: Collection[Attachment]) -> list[Attachment]:
        """Return those without a container. SourceError when podman cannot be asked."""
        try:
            done = subprocess.run(_LIST, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise SourceError(f"cannot ask podman: {error}") from None
        if done.returncode:
            raise SourceError(f"cannot ask podman: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
        known = set(done.stdout.split())
        return [each for each in attachments if each.key.sandbox_id not in known]

    def is_leaked(self, netns_path: Path) -> bool:
        """Tell whether it is a namespace that podman has made."""
        return netns_path.parent.name == "netns" and netns_path.name.startswith(_NETNS)

    def forgotten(self, names: Collection[str]) -> list[str]:  # noqa: ARG002 - of the protocol
        """Return none: it writes a container down before it makes its namespace."""
        return []
