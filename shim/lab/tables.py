"""What the demo prints as tables: who reaches whom, and the counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shim.answers import Counters, Tally
from shim.lab.matrix import Matrix, Probe

_BARS = "▁▂▃▄▅▆▇█"


def reachability(matrix: Matrix) -> Table:
    """Return one row a source, one column a target; in each cell both families, each good over UDP and TCP."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption="4 and 6: IPv4 and IPv6, each over UDP and TCP")
    table.add_column("from ╲ to", style="bold")
    for place in matrix.places:
        table.add_column(place.name, justify="center")
    table.add_column("seen by all of them as")
    for source in matrix.places:
        cells = [_cell(matrix.cell(source.name, target.name)) for target in matrix.places]
        table.add_row(source.name, *cells, " ".join(matrix.seen_as(source.name)))
    return table


def counters(every: Sequence[tuple[str, Counters]], pods: Mapping[str, str]) -> Table:
    """Return one row for each attachment and peer of each node; `pods` gives names to sandbox ids."""
    sockets = ", ".join(f"{node} {found.socket_drops:,}" for node, found in every)
    caption = f"Besides, the kernel dropped at full TUN rings (last column) and full underlay sockets ({sockets})"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption)
    for title in ("node", "packets from"):
        table.add_column(title)
    for title in ("received", "delivered", "tunnelled", "dropped"):
        table.add_column(title, justify="right")
    table.add_column("by reason")
    for title in ("sent to", "ring full"):
        table.add_column(title, justify="right")
    for node, found in every:
        rows = [
            (pods.get(each.key.sandbox_id, each.key.if_name), each.tally, f"{each.kernel_drops:,}")
            for each in sorted(found.attachments, key=lambda each: str(each.key))
        ]
        rows += [(f"peer {peer.node or peer.endpoint}", peer.tally, "") for peer in found.peers]
        for name, tally, ring in rows:
            reasons = ", ".join(f"{reason} {packets}" for reason, packets in tally.dropped.items() if packets)
            fates = (
                tally.received_packets,
                tally.delivered_packets,
                tally.tunnelled_packets,
                sum(tally.dropped.values()),
            )
            counted = [f"{packets:,}" for packets in fates]
            table.add_row(node, name, *counted, f"[yellow]{reasons}[/]", f"{tally.sent_packets:,}", ring)
        table.add_section()
    return table


def dropped(found: Counters, sandbox_id: str) -> dict[str, int]:
    """Return what was dropped of a Pod's packets, by reason."""
    return next((each.tally.dropped for each in found.attachments if each.key.sandbox_id == sandbox_id), {})


def balances(found: Counters) -> Iterator[int]:
    """Yield what every count leaves unexplained."""
    for each in found.attachments:
        yield each.tally.balance
    for peer in found.peers:
        yield peer.tally.balance
    tallies: tuple[Tally, ...] = (found.strangers, found.gone)
    for tally in tallies:
        yield tally.balance


def spark(rates: Sequence[float]) -> str:
    """Draw rates as a line of bars."""
    top = max(rates, default=0) or 1
    return "".join(_BARS[round(rate / top * (len(_BARS) - 1))] for rate in rates)


def _cell(probes: Sequence[Probe]) -> str:
    if not probes:
        return "[dim]·[/]"
    marks = []
    for family in (4, 6):
        good = all(probe.good for probe in probes if probe.expected.version == family)
        marks.append(f"[green]{family}✓[/]" if good else f"[bold red]{family}✗[/]")
    return " ".join(marks)
