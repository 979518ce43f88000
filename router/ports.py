"""PLACEHOLDER by the lead until the PORT MAPPINGS developer replaces this file."""

from __future__ import annotations

from collections.abc import Iterable

from router.model import Attachment, AttachmentKey, Interface, PortMapping, Prefix


class Ports:
    """Nothing yet."""

    def __init__(self, networks: tuple[Prefix, ...], egress: bool) -> None: ...
    def claim(
        self, key: AttachmentKey, addresses: tuple[Interface, ...], mappings: tuple[PortMapping, ...]
    ) -> None: ...
    def release(self, key: AttachmentKey) -> None: ...
    def restore(self, attachments: Iterable[Attachment]) -> None: ...
