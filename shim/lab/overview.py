"""A lab seen from above, from what is on disk: for programs a dictionary, for people a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import ROUNDED
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shim.lab.ledger import LabRecord, Ledger
from shim.lab.plan import CLUSTER_V4, CLUSTER_V6, NodePlan

_UNWRAPPED_WIDTH = 130


def describe(ledger: Ledger) -> dict[str, Any]:
    """Return what is known of a lab, ready for JSON."""
    record = ledger.read()
    if record is None:
        return {"name": ledger.name, "complete": False}
    return {
        "name": ledger.name,
        "complete": record.complete,
        "underlay_mtu_bytes": record.plan.underlay_mtu_bytes,
        "underlay_family": record.plan.underlay_family,
        "nodes": [
            {
                "name": node.name,
                "netns": node.netns,
                "endpoint": node.endpoint,
                "subnets": [str(subnet) for subnet in node.subnets],
                "addresses": [str(address) for address in node.addresses],
                "router_pid": _router_pid(ledger, node),
                "socket": str(ledger.node_path(node.name) / "router.sock"),
                "log": str(ledger.node_path(node.name) / "router.log"),
            }
            for node in record.plan.nodes
        ],
        "pods": [
            {"name": pod.name, "node": pod.node, "netns": pod.netns, "addresses": list(pod.addresses)}
            for pod in record.pods
        ],
    }


def console() -> Console:
    """Return where to draw: the terminal as wide as it is, or plain text wide enough for three nodes in a row."""
    found = Console()
    return found if found.is_terminal else Console(width=_UNWRAPPED_WIDTH)


def draw(ledgers: Sequence[Ledger]) -> None:
    """Print labs one after the other."""
    out = console()
    if not ledgers:
        out.print("There is no lab. Make one with: podwire lab up")
    for ledger in ledgers:
        record = ledger.read()
        if record is None:
            out.print(f"lab {ledger.name}: nothing made yet")
        else:
            out.print(picture(ledger, record))


def picture(ledger: Ledger, record: LabRecord) -> RenderableType:
    """Return a drawing of a lab: its nodes with their Pods, on the underlay."""
    plan = record.plan
    state = "" if record.complete else " [red](half made)[/]"
    boxes: list[RenderableType] = [_node(ledger, record, node) for node in plan.nodes]
    if plan.with_outside:
        boxes.append(Panel(f"eth0 {plan.gateway[0].ip}\n     {plan.gateway[1].ip}", title="outside", box=ROUNDED))
    return Group(
        Text.from_markup(f"[bold]lab {escape(plan.name)}[/]{state} · cluster {CLUSTER_V4} {CLUSTER_V6}"),
        Columns(boxes, padding=(0, 1)),
        Rule(f"underlay · bridge br0 · IPv{plan.underlay_family} · MTU {plan.underlay_mtu_bytes}", characters="═"),
    )


def _node(ledger: Ledger, record: LabRecord, node: NodePlan) -> Panel:
    pid = _router_pid(ledger, node)
    grid = Table.grid(padding=(0, 1))
    for pod in record.pods:
        if pod.node == node.name:
            grid.add_row(f"[green]{pod.name}[/]", *pod.addresses or ("[red]not attached[/]",))
    grid.add_row("podwire0", *map(str, node.addresses))
    router = f"router {pid}" if pid else "[red]router dead[/]"
    return Panel(grid, title=f"[bold]{node.name}[/]", subtitle=f"{router} · {node.endpoint}", box=ROUNDED)


def _router_pid(ledger: Ledger, node: NodePlan) -> int | None:
    found = ledger.router_process(node.name)
    return found.pid if found and found.alive else None
