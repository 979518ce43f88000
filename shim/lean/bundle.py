"""An OCI bundle: what its config.json says of the container's network (OCI runtime specification, config-linux.md)."""

from __future__ import annotations

import os

from shim.lean import portspec

TYPE_CHECKING = False  # `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

PORTS, IPS, MTU = "io.podwire.ports", "io.podwire.ips", "io.podwire.mtu"
"""Annotations by which a container asks for what its runtime has no word for."""


class Bundle:
    """One bundle, read once."""

    def __init__(self, directory: str) -> None:
        """Read config.json. OSError when it cannot be read, ValueError when it is none."""
        from json import loads

        self._path = os.path.join(directory, "config.json")  # noqa: PTH118 - pathlib costs 5 ms
        with open(self._path, "rb") as file:  # noqa: PTH123
            found = loads(file.read())
        if type(found) is not dict:
            raise ValueError(f"{self._path} is no JSON object")
        self._found: dict[str, Any] = found
        self.annotations: dict[str, str] = found.get("annotations") or {}

    @property
    def namespace(self) -> dict[str, Any] | None:
        """The entry of its network namespace; None when it shares the node's."""
        for entry in (self._found.get("linux") or {}).get("namespaces") or []:
            if entry.get("type") == "network":
                return dict(entry)
        return None

    def join(self, netns_path: str) -> None:
        """Have the container join a namespace, or (empty) make one of its own again; whole or not at all on disk."""
        from json import dumps

        for entry in self._found["linux"]["namespaces"]:
            if entry.get("type") == "network":
                entry.pop("path", None)
                if netns_path:
                    entry["path"] = netns_path
        draft = f"{self._path}.podwire"
        with open(draft, "w") as file:  # noqa: PTH123
            os.fchmod(file.fileno(), os.stat(self._path).st_mode & 0o777)  # noqa: PTH116
            file.write(dumps(self._found))
        os.replace(draft, self._path)  # noqa: PTH105

    @property
    def wishes(self) -> dict[str, Any]:
        """What its annotations ask the router for, as fields of AttachRequest. ValueError says what is wrong."""
        mtu = self.annotations.get(MTU, "0")
        if not mtu.isdecimal():
            raise ValueError(f"annotation {MTU} {mtu!r}: give bytes")
        return {
            "addresses": _list(self.annotations.get(IPS, "")),
            "ports": [portspec.parse(text) for text in _list(self.annotations.get(PORTS, ""))],
            "mtu_bytes": int(mtu),
        }


def _list(text: str) -> list[str]:
    return [part for part in text.replace(",", " ").split() if part]
