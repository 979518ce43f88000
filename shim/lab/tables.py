"""What the demo prints as tables: who reaches whom, and the counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shim.answers import Counters, Tally
from shim.lab.matrix import Matrix, Probe

_PADDING = (0, 1, 0, 0)  # so that all of it is there in 80 columns
_BARS = "▁▂▃▄▅▆▇█"


def reachability(matrix: Matrix) -> Table:
    """Return one row a source, one column a target; in each cell a mark for IPv4 and one for IPv6."""
    caption = (
        "In each field IPv4, then IPv6: ✓ if both UDP and TCP were answered, with the source seen as its own address"
    )
    table = Table(box=SIMPLE_HEAD, padding=_PADDING, pad_edge=False, caption=caption)
    table.add_column("from", style="bold", no_wrap=True)
    for place in matrix.places:
        table.add_column(place.name, justify="center", no_wrap=True)
    table.add_column("is seen as", overflow="fold")
    for source in matrix.places:
        cells = [_cell(matrix.cell(source.name, target.name)) for target in matrix.places]
        table.add_row(source.name, *cells, " ".join(matrix.seen_as(source.name)))
    return table


def counters(every: Sequence[tuple[str, Counters]], pods: Mapping[str, str]) -> Table:
    """Return one row for each attachment and peer of each node; `pods` gives names to sandbox ids."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=_PADDING,
        pad_edge=False,
        caption=f"Besides, the kernel dropped at full rings and sockets: {_kernel_drops(every)}",
    )
    for title in ("at", "from"):
        table.add_column(title, no_wrap=True)
    for title in ("received", "delivered", "tunnelled", "dropped"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("namely", overflow="fold")
    for node, found in every:
        rows = [
            (pods.get(each.key.sandbox_id, each.key.if_name), each.tally)
            for each in sorted(found.attachments, key=lambda each: str(each.key))
        ]
        rows += [(f"peer {peer.node or peer.endpoint}", peer.tally) for peer in found.peers]
        for name, tally in rows:
            reasons = ", ".join(f"{packets}×{reason}" for reason, packets in tally.dropped.items() if packets)
            fates = (
                tally.received_packets,
                tally.delivered_packets,
                tally.tunnelled_packets,
                sum(tally.dropped.values()),
            )
            table.add_row(node, name, *(f"{packets:,}" for packets in fates), f"[yellow]{reasons}[/]")
        table.add_section()
    return table


def _kernel_drops(every: Sequence[tuple[str, Counters]]) -> str:
    drops = ((node, found.socket_drops + sum(each.kernel_drops for each in found.attachments)) for node, found in every)
    return ", ".join(f"{node} {packets:,}" for node, packets in drops)


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
    good = [all(probe.good for probe in probes if probe.expected.version == family) for family in (4, 6)]
    return "".join("[green]✓[/]" if each else "[bold red]✗[/]" for each in good)
