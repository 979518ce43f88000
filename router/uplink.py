"""The node as an attachment: TUN `podwire0` in the node's own namespace, and the way out of the cluster.

Through it nodes reach Pods and Pods reach nodes with their own addresses; what leaves the cluster is the kernel's to
forward, masqueraded.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from router.engine.interface import Engine
from router.errors import Kind, Refusal
from router.ipam import node_address
from router.kernel import masquerade, netns, portmap, tun
from router.model import NODE_KEY, Attachment, AttachmentKey, Interface, Offloads, Prefix
from router.takeover.inherited import Inherited


class Uplink:
    """Keeps podwire0 and the masquerade rules as the node's subnets want them. The caller locks."""

    def __init__(
        self, networks: tuple[Prefix, ...], mtu_bytes: int, offloads: Offloads, egress: bool, masquerading: bool
    ) -> None:
        self._networks = networks
        self._mtu_bytes = mtu_bytes
        self._offloads = offloads
        self._egress = egress
        self._masquerading = masquerading
        self._fd = -1
        self._made = False
        self._subnets: tuple[Prefix, ...] | None = None
        self._attached: tuple[Interface, ...] = ()
        """The addresses with which the engine has it."""

    @property
    def fd(self) -> int:
        """The TUN, for who shares it; -1 while there is none."""
        return self._fd

    def take_up(self, subnets: tuple[Prefix, ...], engine: Engine, inherited: Inherited) -> None:
        """Carry packets of the podwire0 that was left, if one was; `apply` makes good what it lacks. Raise Refusal."""
        if not subnets:
            return
        self._fd = inherited.tun(NODE_KEY, netns.identity(netns.OWN))
        if self._fd < 0:
            self._reopen()
        if self._fd >= 0:
            self._attach(node_interfaces(subnets), engine)

    def _reopen(self) -> None:
        """Open the podwire0 an earlier router left, if one did."""
        try:
            self._fd = tun.reopen(netns.OWN, NODE_KEY.if_name, self._offloads)
        except Refusal as refusal:
            if refusal.kind is not Kind.NOT_FOUND:
                raise

    def _attach(self, addresses: tuple[Interface, ...], engine: Engine) -> None:
        if addresses == self._attached:
            return
        with suppress(KeyError):
            engine.detach(NODE_KEY)
        engine.attach(Attachment(NODE_KEY, netns.OWN, addresses, self._mtu_bytes), self._fd)
        self._attached = addresses

    def apply(self, subnets: tuple[Prefix, ...], engine: Engine) -> tuple[str, ...]:
        """Make podwire0 carry the first address of each subnet; return notes on what was changed on the node.

        Raise Refusal when the kernel does not allow it; the next call begins anew.
        """
        if subnets == self._subnets or (not subnets and self._fd < 0):
            return ()
        addresses = node_interfaces(subnets)
        dress = tun.Dress(addresses, (), self._networks, self._mtu_bytes, self._offloads.max_segments)
        # The rules first: they are what is most likely refused, and then nothing has changed yet.
        if self._egress and self._masquerading:
            masquerade.enable(subnets, self._networks)
        else:
            masquerade.disable()
        if self._fd < 0:
            self._reopen()
        if self._fd < 0:
            self._fd = tun.create(netns.OWN, NODE_KEY.if_name, dress, self._offloads)
            self._made = True
        tun.redress(netns.OWN, NODE_KEY.if_name, dress)
        _admit_own()
        self._attach(addresses, engine)
        self._subnets = subnets
        return masquerade.forward(subnets) if self._egress else ()

    def ring_drops(self) -> dict[AttachmentKey, int]:
        """Return what the kernel dropped at podwire0's full ring."""
        return {NODE_KEY: tun.ring_drops([(netns.OWN, NODE_KEY.if_name)])[0]} if self._fd >= 0 else {}

    def withdraw(self) -> None:
        """Take podwire0 and the rules away again, unless an earlier router had left them: the start came to nothing."""
        if self._made and self._fd >= 0:
            tun.discard(self._fd)
            self._fd = -1
            masquerade.disable()
            portmap.remove_all()

    def close(self) -> None:
        """Let go of podwire0, which stays with its addresses for the next router."""
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def _admit_own() -> None:
    """Let podwire0 take packets of the node's own addresses. No error if it cannot be set.

    accept_local: the router's ICMP errors about the node's packets, which IPv4 else takes for martians
    (fib_validate_source, net/ipv4/fib_frontend.c). route_localnet: packets from 127.0.0.1 to a port that leads to a Pod,
    masqueraded as they leave (portmap.py); the router itself carries nothing of 127.0.0.0/8.
    """
    for switch in ("accept_local", "route_localnet"):
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv4/conf/{NODE_KEY.if_name}/{switch}").write_text("1\n")


def remove() -> None:
    """Take podwire0 and all rules off this node."""
    tun.remove(netns.OWN, NODE_KEY.if_name)
    masquerade.disable()
    portmap.remove_all()


def node_interfaces(subnets: tuple[Prefix, ...]) -> tuple[Interface, ...]:
    """Return the node's address in each of its subnets."""
    return tuple(node_address(subnet) for subnet in subnets)
