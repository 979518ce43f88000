"""What the overlay can be on this machine: how large its packets, and what of the work the kernel does."""

from __future__ import annotations

from dataclasses import fields

from router.config import Settings
from router.errors import Kind, Refusal
from router.kernel import selftest, underlay
from router.kernel.links import mtu_of
from router.model import Offloads
from router.values import Switch


def mtu_bytes(settings: Settings) -> int:
    """Return the overlay MTU: what was asked for, or all that the underlay's interface leaves. Raise Refusal(INVALID)."""
    overhead = underlay.overhead_bytes(settings.underlay)
    most = mtu_of(settings.underlay.address) - overhead
    wanted = settings.mtu_bytes or most
    if wanted > most:
        raise Refusal(
            Kind.INVALID,
            f"--mtu-bytes {wanted} does not fit: the underlay interface carries {most + overhead}, "
            f"the tunnel adds {overhead}; use {most} or less",
        )
    least = least_mtu_bytes(settings)
    if wanted < least:
        raise Refusal(
            Kind.INVALID,
            f"the overlay MTU would be {wanted}, and must be {least} at least for this cluster range: "
            f"raise the underlay interface's MTU to {least + overhead}",
        )
    return wanted


def least_mtu_bytes(settings: Settings) -> int:
    """Return what every path must carry: IPv6 asks for 1280 bytes (RFC 8200 section 5), IPv4 hosts take 576 (RFC 791)."""
    return 1280 if any(network.version == 6 for network in settings.networks) else 576


def offloads(settings: Settings) -> tuple[Offloads, tuple[str, ...]]:
    """Apply the switches, let the self-test switch off what does not work, and say what and why. Raise Refusal(STATE)."""
    switches = settings.offloads
    names = [entry.name for entry in fields(Offloads) if entry.name != "max_segments"]
    wanted = Offloads(
        **{name: getattr(switches, name) is not Switch.OFF for name in names},
        max_segments=switches.max_segments or Offloads().max_segments,
    )
    found, notes = selftest.probe(wanted)
    for name in names:
        if getattr(switches, name) is Switch.ON and not getattr(found, name):
            why = next((note for note in notes if note.startswith(name)), "")
            raise Refusal(Kind.STATE, f"offload {name} must be on, but does not work here: {why}; set it to auto")
    return found, tuple(notes)
