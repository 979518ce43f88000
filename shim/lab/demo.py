"""`podwire demo`: a cluster comes up, shows that it does what a Pod network promises, and goes again."""

from __future__ import annotations

from rich.markup import escape

from shim.client import ClientError
from shim.lab import matrix, misuse, tables, throughput, traceroute
from shim.lab.errors import LabError
from shim.lab.lab import Lab
from shim.lab.ledger import Ledger
from shim.lab.overview import console, picture
from shim.lab.report import Report

NODES = 3
PODS_PER_NODE = 2
_SHORT_S = 2.0
_UNOWNED = ("10.42.200.9", "fd42:0:0:200::9")
"""Inside the cluster range, in a subnet that no node has."""
_REFUSALS = ("Destination Net Unreachable", "No route")
"""What ping prints for ICMP 3/0 (RFC 1812 section 5.2.7.1) and ICMPv6 1/0 (RFC 4443 section 3.1)."""
_NO_ROUTE, _SPOOFED = "no_route", "spoofed_source"


class Demo:
    """The whole show. `run` returns what was not as it must be: empty when all is well."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._report = Report(console())

    def run(self) -> list[str]:
        """Show everything, with a lab that is there only meanwhile."""
        report = self._report
        report.heading(f"A cluster of {NODES} nodes with {PODS_PER_NODE} Pods each, in namespaces of this machine")
        lab = Lab(NODES, PODS_PER_NODE, progress=report.now)
        try:
            with report.working("bringing it up"):
                lab.up()
            ready_s = report.elapsed_s
            report.show(picture(Ledger(lab.name), lab.record))
            report.check(True, f"{NODES} routers serve, {len(lab.pods)} Pods are attached, after {ready_s:.1f} s")
            for part in (self._reach, self._trace, self._measure, self._misuse):
                try:
                    part(lab)
                except (LabError, ClientError) as error:
                    report.check(False, str(error))
        finally:
            with report.working("taking it down"):
                lab.down()
        report.heading("Everything is taken down again")
        report.show(f" {report.elapsed_s:.0f} s in all")
        for failure in report.failures:
            report.show(f" [bold red]✗[/] {escape(failure)}")
        return report.failures

    def _reach(self, lab: Lab) -> None:
        report = self._report
        report.heading("Who reaches whom: every Pod asks every Pod and node, every node every Pod")
        places = [matrix.Place(pod.name, pod.netns_path, pod.addresses) for pod in lab.pods]
        places += [matrix.Place(node.name, node.netns_path, node.addresses, node=True) for node in lab.nodes]
        with report.working("asking"):
            measured = matrix.measure(places, lambda name: report.now(f"asking: {name} is done"))
        report.show(tables.reachability(measured))
        good = len(measured.probes) - len(measured.bad)
        report.check(
            not measured.bad,
            f"{good} of {len(measured.probes)} questions were answered, with the asker's own address as their source",
        )
        for probe in measured.bad[:10]:
            report.check(False, str(probe))

    def _trace(self, lab: Lab) -> None:
        source, target = lab.pods[0], lab.pods[-1]
        self._report.heading(f"The way from {source.name} to {target.name}: both nodes' routers show themselves")
        for family in (0, 1):
            address = target.addresses[family]
            hops, printed = traceroute.trace(source, address)
            wanted = [str(source.node.addresses[family]), str(target.node.addresses[family]), str(address)]
            self._report.show(escape(printed))
            names = f"{source.node.name}, {target.node.name}, {target.name}"
            self._report.check(hops == wanted, f"IPv{address.version}: {names} answer as {', '.join(wanted)}")

    def _measure(self, lab: Lab) -> None:
        source, far, near = lab.pods[0], lab.pods[PODS_PER_NODE], lab.pods[1]
        self._report.heading("TCP throughput, one stream (iperf3)")
        for what, target, family, seconds in (
            ("across nodes", far, 0, self._seconds),
            ("across nodes", far, 1, min(self._seconds, _SHORT_S)),
            ("on one node", near, 0, min(self._seconds, _SHORT_S)),
        ):
            address = target.addresses[family]
            way = f"{source.name} → {target.name}, {what}, IPv{address.version}"
            rates: list[float] = []
            with self._report.working(way):

                def show(rate: float, way: str = way, rates: list[float] = rates) -> None:
                    rates.append(rate)
                    self._report.now(f"{way}: {tables.spark(rates)} {rate:.2f} Gbit/s")

                mean = throughput.measure(source, target, address, seconds, show)
            self._report.check(mean > 0, f"{way}: {mean:.2f} Gbit/s {tables.spark(rates)}")

    def _misuse(self, lab: Lab) -> None:
        report = self._report
        sender, victim, target = lab.pods[0], lab.pods[1], lab.pods[PODS_PER_NODE]
        report.heading("What must go nowhere goes nowhere, and is counted")
        with sender.node.client() as client:
            before = tables.dropped(client.counters(), sender.sandbox_id)
        for family in (4, 6):
            honest = misuse.send_as(sender, sender, target, family)
            spoofed = misuse.send_as(victim, sender, target, family)
            report.check(
                honest and not spoofed,
                f"IPv{family}: a packet from {sender.name} to {target.name} {_arrival(honest)} with its own address, "
                f"and with that of {victim.name} it {_arrival(spoofed)}",
            )
        for address, refusal in zip(_UNOWNED, _REFUSALS, strict=True):
            done = sender.run(["ping", "-n", "-c", "1", "-W", "2", address])
            said = [line for line in done.stdout.splitlines() if line.startswith("From ")]
            heard = said[0] if said else "no word of the router"
            report.check(refusal in heard, f"ping of {address}, which no node owns: {heard}")
        every = []
        for node in lab.nodes:
            with node.client() as client:
                every.append((node.name, client.counters()))
        after = tables.dropped(every[0][1], sender.sandbox_id)
        report.show(tables.counters(every, {pod.sandbox_id: pod.name for pod in lab.pods}))
        for reason in (_SPOOFED, _NO_ROUTE):
            grown = after.get(reason, 0) - before.get(reason, 0)
            report.check(grown >= len(_UNOWNED), f"{sender.name}: {grown} more dropped as {reason}")
        astray = sum(abs(balance) for _, found in every for balance in tables.balances(found))
        report.check(
            astray == 0, f"received = delivered + tunnelled + dropped, everywhere ({astray} packets unaccounted for)"
        )


def _arrival(arrived: bool) -> str:
    return "arrived" if arrived else "did not arrive"
