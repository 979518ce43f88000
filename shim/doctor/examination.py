"""All checks, in the order in which what fails first explains what fails after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shim.doctor import addresses, daemon, kernel, leftovers, limits, programs, runtimes
from shim.doctor.finding import Finding, fail
from shim.doctor.site import Site

Check = Callable[[Site], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    kernel.rights,
    kernel.tun,
    kernel.nftables,
    kernel.offloads,
    daemon.answers,
    daemon.addresses,
    daemon.subnet_table,
    daemon.notes,
    kernel.forwarding,
    addresses.mtu,
    addresses.overlap,
    addresses.return_paths,
    runtimes.runtimes,
    programs.installed,
    limits.open_files,
    limits.processes,
    limits.watches,
    limits.receive_buffer,
    limits.clock,
    leftovers.tombstones,
    leftovers.namespaces,
)


def examine(site: Site) -> Iterator[Finding]:
    """Yield what each check finds. One that breaks down is a finding, and does not keep the others from looking."""
    for check in CHECKS:
        try:
            yield from check(site)
        except Exception as error:  # noqa: BLE001 - a node in an unforeseen state is what this is for
            what = f"the check broke down: {type(error).__name__}: {error}"
            yield fail(check.__name__, what, "this is a bug of the doctor: please report it with this line")
