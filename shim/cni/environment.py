"""What a runtime says in the environment (CNI specification, "Parameters"), checked."""

from __future__ import annotations

from shim.cni.errors import ENVIRONMENT, CniError

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Mapping

_IF_NAME_BYTES = 15
"""IFNAMSIZ - 1, linux/if.h."""
_MOST_ID_CHARACTERS = 256


class Environment:
    """CNI_COMMAND and what belongs to it; what the verb does not need is not looked at."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.command = self._need("CNI_COMMAND")

    @property
    def container_id(self) -> str:
        """The sandbox."""
        found = self._need("CNI_CONTAINERID")
        first = found[0]
        if not (first.isascii() and first.isalnum()) or not all(
            c.isascii() and (c.isalnum() or c in "_.-") for c in found
        ):
            raise _bad("CNI_CONTAINERID", found, 'use a letter or digit, then letters, digits, "_", "." and "-"')
        if len(found) > _MOST_ID_CHARACTERS:
            raise _bad("CNI_CONTAINERID", found[:80] + "…", f"it is longer than {_MOST_ID_CHARACTERS} characters")
        return found

    @property
    def if_name(self) -> str:
        """The interface in the sandbox."""
        found = self._need("CNI_IFNAME")
        if len(found.encode("utf-8", "surrogateescape")) > _IF_NAME_BYTES:
            raise _bad("CNI_IFNAME", found, f"it is longer than {_IF_NAME_BYTES} bytes")
        if found in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in found):
            raise _bad("CNI_IFNAME", found, 'it is no name of an interface: use one like "eth0"')
        return found

    @property
    def netns_path(self) -> str:
        """The sandbox's network namespace."""
        found = self._need("CNI_NETNS")
        if not found.startswith("/"):
            raise _bad("CNI_NETNS", found, "it must be an absolute path")
        if not _is_text(found):
            raise _bad("CNI_NETNS", found, "the router takes paths in UTF-8")
        return found

    @property
    def arguments(self) -> dict[str, str]:
        """CNI_ARGS, "KEY=VALUE;KEY=VALUE"; what has no "=" is no argument."""
        found = {}
        for pair in self._environ.get("CNI_ARGS", "").split(";"):
            key, equals, value = pair.strip().partition("=")
            if not _is_text(pair):
                raise _bad("CNI_ARGS", pair, "write it in UTF-8")
            if equals:
                found[key] = value
            elif key:
                raise _bad("CNI_ARGS", pair, "write KEY=VALUE, with ; between them")
        return found

    def _need(self, name: str) -> str:
        found = self._environ.get(name, "")
        if not found:
            raise CniError(
                ENVIRONMENT, f"{name} is not set; a CNI plugin is run by a container runtime, see its --help"
            )
        return found


def _is_text(found: str) -> bool:
    """Tell whether the bytes of the environment were UTF-8; Python keeps others as lone surrogates (PEP 383)."""
    return not any("\ud800" <= c <= "\udfff" for c in found)


def _bad(name: str, value: str, why: str) -> CniError:
    return CniError(ENVIRONMENT, f"{name} {value!r}: {why}")
