"""The board as a screen that fits whatever the terminal is. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shim.observe.board import Board

_LEAST_ROWS = 1
_SECTION_LINES = 3
"""Of a section beside its rows: a blank line, title, and heading of its columns."""


def screen(found: Board, width: int, height: int, sort: str, message: str = "", keys: bool = True) -> RenderableType:
    """Return at most `height` lines of at most `width` columns."""
    top = _head(found, sort, message, width)
    if height <= len(top):
        return Group(*top[:height])
    left = height - len(top) - (1 if keys else 0)
    sections = [
        ("PODS", _pods(found, width), len(found.pods)),
        ("PEERS", _peers(found, width), len(found.peers)),
        ("FLOWS", _flows(found, width), len(found.flows)),
        ("DROPPED LATELY", _drops(found, width), len(found.drops)),
    ]
    shares = _shares([total for _, _, total in sections], left)
    parts: list[RenderableType] = list(top)
    for (title, rows, total), share in zip(sections, shares, strict=True):
        if share < _LEAST_ROWS:
            continue
        more = f"  {share} of {total}" if total > share else ""
        parts += [Text(""), Text(title + more, "bold", no_wrap=True, overflow="ellipsis")]
        parts.append(_table(rows, share) if total else Text("none", "dim"))
    if keys:
        parts.append(Text("q quit   s sort", "dim", no_wrap=True, overflow="crop"))
    return Group(*parts)


def _shares(totals: Sequence[int], lines: int) -> list[int]:
    """Divide lines: each section what it needs, while there is room; those that come last go without first."""
    shown = len(totals)
    while shown and lines < shown * (_SECTION_LINES + _LEAST_ROWS):
        shown -= 1
    left = lines - shown * _SECTION_LINES
    shares = [0] * len(totals)
    while left > 0:
        wanting = [i for i in range(shown) if shares[i] < max(1, totals[i])]
        if not wanting:
            break
        for i in wanting[:left]:
            shares[i] += 1
        left -= len(wanting[:left])
    return shares


def _head(found: Board, sort: str, message: str, width: int) -> list[Text]:
    line = Text.assemble(
        ("podwire ", "bold"), (found.node, "bold cyan"), f"  {found.engine}",
        f"  {bits(found.carried_bytes_per_s)}  {packets(found.carried_packets_per_s)}  ",
        (f"dropped {packets(found.dropped_per_s)}", "bold red" if found.dropped_per_s else ""),
        (f"  by {sort}", "dim"),
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    line.truncate(width, overflow="ellipsis")
    notes = [message] if message else [*found.notes][:2]
    return [line, *(Text(note, "yellow", no_wrap=True, overflow="ellipsis") for note in notes)]


_Columns = tuple[tuple[str, bool], ...]
_Rows = tuple[_Columns, list[tuple[tuple[str, ...], str]]]
"""(heading, whether it is a number) of each column; cells and style of each row."""


def _pods(found: Board, width: int) -> _Rows:
    wide = width >= 90
    columns = [("POD", False), ("SENDS", True), ("RECEIVES", True), ("DROPPED", True)]
    if wide:
        columns = [*columns[:2], ("", True), columns[2], ("", True), columns[3], ("IN ALL", True)]
    rows = []
    for pod in found.pods:
        cells = [pod.name, bits(pod.sends_bytes_per_s), bits(pod.receives_bytes_per_s), packets(pod.dropped_per_s)]
        if wide:
            cells = [
                *cells[:2], packets(pod.sends_packets_per_s), cells[2], packets(pod.receives_packets_per_s), cells[3],
                f"{pod.dropped:,}",
            ]  # fmt: skip
        rows.append((tuple(cells), "red" if pod.dropped_per_s else ""))
    return tuple(columns), rows


def _peers(found: Board, width: int) -> _Rows:
    wide = width >= 90
    columns = [("PEER", False), ("STATE", False), ("RTT", True), ("TO IT", True), ("FROM IT", True), ("DROPPED", True)]
    if wide:
        columns = [*columns[:3], ("LOSS", True), ("MTU", True), *columns[3:]]
    rows = []
    for peer in found.peers:
        cells = [
            peer.name, peer.state, seconds(peer.rtt_s), bits(peer.to_bytes_per_s), bits(peer.from_bytes_per_s),
            packets(peer.dropped_per_s),
        ]  # fmt: skip
        if wide:
            cells = [*cells[:3], f"{peer.loss:.0%}", str(peer.mtu_bytes or "-"), *cells[3:]]
        rows.append((tuple(cells), "bold red" if peer.state == "down" else "red" if peer.dropped_per_s else ""))
    return tuple(columns), rows


def _flows(found: Board, width: int) -> _Rows:
    wide = width >= 110
    columns = [("FLOW", False), ("RATE", True), ("VERDICT", False)]
    if wide:
        columns = [columns[0], ("FROM", False), ("TO", False), columns[1], ("PACKETS", True), columns[2]]
    rows = []
    for flow in found.flows:
        cells = [flow.flow, bits(flow.bytes_per_s), flow.verdict]
        if wide:
            cells = [cells[0], flow.source, flow.target, cells[1], packets(flow.packets_per_s), cells[2]]
        rows.append((tuple(cells), "" if flow.verdict in ("local", "tunnel", "") else "red"))
    return tuple(columns), rows


def _drops(found: Board, width: int) -> _Rows:
    wide = width >= 90
    columns = [("AGO", True), ("REASON", False), ("PACKETS", True), ("FLOW", False)]
    if wide:
        columns.insert(1, ("FROM", False))
    rows = []
    for drop in found.drops:
        cells = [f"{drop.age_s:.0f} s", drop.reason, f"{drop.packets:,}", drop.flow]
        if wide:
            cells.insert(1, drop.source)
        rows.append((tuple(cells), ""))
    return tuple(columns), rows


def _table(rows: _Rows, most: int) -> Table:
    columns, lines = rows
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading, number in columns:
        table.add_column(heading, justify="right" if number else "left", no_wrap=True, overflow="ellipsis")
    for cells, style in lines[:most]:
        table.add_row(*(Text(cell, style) for cell in cells))  # Text: what stands in a name is no markup
    return table


def bits(bytes_per_s: float) -> str:
    """Say a rate of bytes in bits."""
    return _scaled(bytes_per_s * 8, (" bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s"))


def packets(per_s: float) -> str:
    """Say a rate of packets."""
    return _scaled(per_s, ("/s", "k/s", "M/s", "G/s"))


def seconds(value: float | None) -> str:
    """Say a round trip."""
    return "-" if value is None else f"{value * 1000:.2f} ms"


def _scaled(number: float, units: Sequence[str]) -> str:
    unit = 0
    while number >= 999.5 and unit < len(units) - 1:
        number /= 1000
        unit += 1
    return f"{number:.0f}{units[unit]}" if number >= 100 or number == 0 else f"{number:.1f}{units[unit]}"
