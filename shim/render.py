"""Answers as tables for people. On a terminal bold and folded to its width, in a pipe as plain columns that nothing cuts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shim.answers import Attachment, Counters, Event, Node, Peer, Status, SubnetSource, Tally
from shim.observe.answers import Drop

_PIPE_COLUMNS = 10_000
"""Wider than any line: in a pipe nothing is wrapped or cut."""


def console() -> Console:
    """Return where tables go: standard output."""
    found = Console(highlight=False, emoji=False, markup=False)
    return found if found.is_terminal else Console(highlight=False, emoji=False, markup=False, width=_PIPE_COLUMNS)


def status(out: Console, found: Status) -> None:
    """Show a router at a glance."""
    switches = {
        "tun-checksum": found.offloads.tun_checksum,
        "tun-tso": found.offloads.tun_tso,
        "tun-uso": found.offloads.tun_uso,
        f"udp-segment ({found.offloads.max_segments})": found.offloads.udp_segment,
        "udp-gro": found.offloads.udp_gro,
    }
    rows = {
        "node": f"{found.node} at {found.endpoint}",
        "router": f"podwire {found.version}, engine {found.engine}, up {_duration(time.time() - found.started_at_s)}",
        "cluster range": _list(found.networks),
        "subnets": _list(found.subnets),
        "node addresses": _list(found.node_addresses),
        "overlay": f"MTU {found.mtu_bytes} bytes, VNI {found.vni}",
        "offloads": _list(f"{name} {'on' if on else 'off'}" for name, on in switches.items()),
        "pods, peers": f"{found.attachments}, {found.peers}",
        "subnet table": f"version {found.table_version}, {_duration(found.table_age_s)} old",
        "table from": _source(found.source) if found.source is not None else "-",
        "free addresses": _list(f"{_many(free.free)} in {free.subnet}" for free in found.free_addresses),
        "memory": f"{found.resident_bytes / 1e6:.1f} MB",
        "confined to": found.confinement or "-",
    }
    table = _table("", "", heading=False)
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), value)
    for note in found.notes:
        table.add_row(Text("note", "yellow"), note)
    for why in found.unreachable:
        table.add_row(Text("unreachable", "bold red"), why)
    if found.table_error:
        table.add_row(Text("table refused", "bold red"), found.table_error)
    out.print(table)


def _source(found: SubnetSource) -> str:
    text = f"{found.kind} {found.where}".strip()
    if found.kind not in ("grpc", "file"):
        text += f", confirmed {_duration(found.confirmed_age_s)} ago" if found.connected else ""
    if not found.connected:
        text += f", away for {_duration(found.confirmed_age_s)}: {found.error}"
    elif found.error:
        text += f"; {found.error}"
    if (lease := found.lease) is not None:
        ends = f", ends in {_duration(lease.expires_in_s)} unless renewed" if lease.expires_in_s else ""
        held = f"held{ends}" if lease.held else f"NOT held: {lease.why}"
        text += f"; lease of epoch {lease.epoch} {held}{', reserved' if lease.reserved else ''}"
    return text


def pods(out: Console, found: Iterable[Attachment]) -> None:
    """Show attachments."""
    table = _table("SANDBOX", "INTERFACE", "ADDRESSES", "PORTS", "MTU", "OWNER", "NAMESPACE", "LABELS", right=("MTU",))
    for each in found:
        labels = _list(f"{key}={value}" for key, value in each.labels.items())
        key = each.key
        where = (key.sandbox_id or "(node)", key.if_name, _list(each.addresses))
        ports = _list(
            f"{port.host_address and port.host_address + ':'}{port.host_port}→{port.container_port}/{port.protocol}"
            for port in each.ports
        )
        table.add_row(*where, ports, str(each.mtu_bytes), each.owner or "-", each.netns_path or "-", labels)
    out.print(table)


def routes(out: Console, rows: Iterable[Mapping[str, object]]) -> None:
    """Show prefixes and where they lead."""
    table = _table("PREFIX", "NODE", "ENDPOINT", "VIA")
    for row in rows:
        table.add_row(str(row["prefix"]), str(row["node"]), str(row["endpoint"]), str(row["via"]))
    out.print(table)


def peers(out: Console, found: Iterable[Peer]) -> None:
    """Show the other nodes, how they answer, and what went to and fro."""
    numbers = ("AGE", "RTT", "LOSS", "MTU", "RECEIVED", "SENT", "DROPPED")
    table = _table("NODE", "ENDPOINT", "SUBNETS", "STATE", *numbers, right=numbers)
    down = []
    for peer in found:
        node, seen = peer.node, peer.tally or Tally()
        answers = (
            "-" if peer.heard_age_s is None else _duration(peer.heard_age_s),
            "-" if peer.rtt_s is None else f"{peer.rtt_s * 1000:.2f} ms",
            "-" if peer.state == "unknown" else f"{peer.loss:.0%}",
            str(peer.mtu_bytes or "-"),
        )
        counts = _numbers(out, seen.received_packets, seen.sent_packets, sum(seen.dropped.values()))
        style = "bold red" if peer.state == "down" else ""
        table.add_row(node.name, str(node.endpoint), _list(node.subnets), peer.state, *answers, *counts, style=style)
        if peer.why:
            down.append(f"{node.name} is down: {peer.why}")
    out.print(table)
    for line in down:
        out.print(line)


def table(out: Console, nodes: Iterable[Node]) -> None:
    """Show the subnet table."""
    rows = _table("NODE", "ENDPOINT", "SUBNETS", "OFFLOAD")
    for node in nodes:
        rows.add_row(node.name, str(node.endpoint), _list(node.subnets), "yes" if node.offload else "no")
    out.print(rows)


def counters(out: Console, found: Counters) -> None:
    """Show every packet's fate, for each attachment and peer, and drops by reason."""
    tallies: list[tuple[str, Tally, int | None]] = [
        *(
            (f"pod {each.key}" if each.key.sandbox_id else "node", each.tally, each.kernel_drops)
            for each in found.attachments
        ),
        *((f"peer {each.node or each.endpoint}", each.tally, None) for each in found.peers),
        ("strangers", found.strangers, None),
        ("gone", found.gone, None),
    ]
    numbers = ("RECEIVED", "DELIVERED", "TUNNELLED", "DROPPED", "KERNEL", "BALANCE", "SENT")
    table = _table("SOURCE", *numbers, right=numbers)
    for source, tally, drops in tallies:
        fate = (tally.received_packets, tally.delivered_packets, tally.tunnelled_packets, sum(tally.dropped.values()))
        kernel = "-" if drops is None else _number(out, drops)
        counts = (*_numbers(out, *fate), kernel, *_numbers(out, tally.balance, tally.sent_packets))
        table.add_row(source, *counts, style="bold red" if tally.balance else "")
    out.print(table)
    reasons = [(source, reason, n) for source, tally, _ in tallies for reason, n in sorted(tally.dropped.items()) if n]
    if reasons:
        out.print()
        table = _table("DROPPED FROM", "REASON", "PACKETS", right=("PACKETS",))
        for source, reason, packets in reasons:
            table.add_row(source, reason, _number(out, packets))
        out.print(table)
    out.print()
    errors, suppressed, dropped = _numbers(
        out, sum(tally.icmp_errors for _, tally, _ in tallies), found.icmp_suppressed, found.socket_drops
    )
    out.print(f"ICMP errors sent: {errors}, held back by the rate limit: {suppressed}")
    out.print(f"dropped by the kernel at the underlay socket: {dropped}")
    if found.engine_restarts:
        out.print(f"the engine met a bug and began afresh: {found.engine_restarts} times; podwire events tells more")


def drops(out: Console, found: Sequence[Drop], subject: str, began_s: float) -> None:
    """Show what was dropped lately of a subject or, if it is empty, of all; and once for each reason what to do."""
    if not found:
        of = f" of {subject}" if subject else ""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began_s))
        out.print(
            f"Nothing{of} was dropped lately: the router looks since {began}, {_duration(time.time() - began_s)} ago."
        )
        return
    table = _table("LAST", "WHO SENT IT", "FLOW", "WHY", "PACKETS", right=("PACKETS",))
    for drop in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(drop.last_s))
        flow = str(drop.flow) if drop.flow is not None else "no packet"
        table.add_row(when, drop.source.name, flow, drop.reason.replace("_", " "), _number(out, drop.packets))
    out.print(table)
    told: dict[str, str] = {}
    for drop in found:
        told.setdefault(drop.text, drop.reason.replace("_", " "))
    for text, reason in told.items():
        out.print()
        out.print(Text.assemble((f"{reason}: ", "bold"), text), soft_wrap=not out.is_terminal)


def event(out: Console, found: Event) -> None:
    """Show one event in a line."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.at_s))
    about = " ".join(filter(None, (str(found.key) if found.key else "", found.node)))
    out.print(
        "  ".join(filter(None, (f"{found.sequence:>6}  {when}  {found.kind:<15}", about, found.message))).rstrip()
    )


def _table(*columns: str, right: Sequence[str] = (), heading: bool = True) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=heading, header_style="bold")
    for column in columns:
        # Addresses and names are for copying: they are folded on a narrow terminal, never cut.
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right
        )
    return table


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "-"


def _numbers(out: Console, *values: int) -> list[str]:
    return [_number(out, value) for value in values]


def _number(out: Console, value: int) -> str:
    return f"{value:,}" if out.is_terminal else str(value)


def _many(value: int) -> str:
    """Say a number of addresses: exact while it matters."""
    return str(value) if value < 10**9 else f"about {value:.1e}"


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
