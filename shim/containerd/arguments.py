"""What containerd says on the command line of a shim (runtime/v2/README.md of containerd), in the style of Go's flags."""

from __future__ import annotations

_SWITCHES = frozenset(("debug", "v", "info", "h", "help"))


class Arguments:
    """Flags and the verb after them."""

    def __init__(self, words: list[str]) -> None:
        self.flags: dict[str, str] = {}
        self.verb = ""
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            if not word.startswith("-"):
                self.verb = word
                break
            name, equals, value = word.lstrip("-").partition("=")
            if not equals and name not in _SWITCHES and waiting:
                value = waiting.pop(0)
            self.flags[name] = value

    @property
    def namespace(self) -> str:
        """The namespace of containerd itself: k8s.io for Pods of Kubernetes, default for `ctr`."""
        return self.flags.get("namespace", "")

    @property
    def address(self) -> str:
        """The socket of containerd."""
        return self.flags.get("address", "")

    @property
    def publisher(self) -> str:
        """The binary of containerd."""
        return self.flags.get("publish-binary", "")

    @property
    def container_id(self) -> str:
        """The container, unique in that namespace."""
        return self.flags.get("id", "")
