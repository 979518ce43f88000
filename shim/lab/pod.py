"""A Pod of a lab: a bare namespace that its node's router gave an interface."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from shim.lab import netns
from shim.lab.ledger import PodRecord
from shim.lab.node import LabNode

IF_NAME = "eth0"


class LabPod:
    """One Pod."""

    def __init__(self, record: PodRecord, node: LabNode) -> None:
        self.record = record
        self.node = node
        self.name = record.name
        self.netns = record.netns
        self.netns_path = netns.path_of(record.netns)

    @property
    def sandbox_id(self) -> str:
        """What the router knows it by."""
        return self.netns

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """Its IPv4 and its IPv6 address. ValueError while it has none."""
        v4, v6 = sorted((ip_address(text) for text in self.record.addresses), key=lambda address: address.version)
        assert isinstance(v4, IPv4Address)
        assert isinstance(v6, IPv6Address)
        return v4, v6

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the Pod; options as for subprocess.run, output is captured text."""
        return netns.run(self.netns_path, command, **options)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in the Pod; options as for subprocess.Popen."""
        return netns.popen(self.netns_path, command, **options)
