"""A lab seen from above, from what is on disk: for programs a dictionary, for people a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shim.lab.ledger import LabRecord, Ledger
from shim.lab.links import Link, Links, LinksState
from shim.lab.plan import LabPlan, NodePlan
from shim.lab.relay.switch import Pair
from shim.lab.store import LabStore

_UNWRAPPED_WIDTH = 130
_ASK_TIMEOUT_S = 2.0
_SHOWN_LINKS = 8
_COUNTS = {
    "frames": "frames",
    "passed": "passed",
    "lost": "lost",
    "too big": "swallowed",
    "queue full": "overflowed",
    "delayed": "delayed",
    "reordered": "reordered",
    "twice": "duplicated",
    "refused": "refused",
}


@dataclass(frozen=True, slots=True)
class _Owned:
    subnets: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


def describe(ledger: Ledger) -> dict[str, Any]:
    """Return what is known of a lab, ready for JSON."""
    record = ledger.read()
    if record is None:
        return {"name": ledger.name, "complete": False}
    owned = _owned(ledger, record.plan)
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
                "subnets": list(owned[node.name].subnets),
                "addresses": list(owned[node.name].addresses),
                "router_pid": _router_pid(ledger, node),
                "socket": str(ledger.node_path(node.name) / "router.sock"),
                "log": str(ledger.node_path(node.name) / "router.log"),
            }
            for node in record.plan.nodes
        ],
        "store": _store(ledger, record.plan),
        "links": [link.to_json() for link in Links(ledger, record.plan).read().values()],
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
    owned = _owned(ledger, plan)
    boxes: list[RenderableType] = [_node(ledger, record, node, owned[node.name]) for node in plan.nodes]
    if plan.store == "etcd":
        boxes.append(_store_box(_store(ledger, plan)))
    if plan.with_outside:
        boxes.append(Panel(f"eth0 {plan.gateway[0].ip}\n     {plan.gateway[1].ip}", title="outside", box=ROUNDED))
    wrong = Links(ledger, plan).read()
    cut, impaired = sum(link.cut for link in wrong.values()), sum(not link.cut for link in wrong.values())
    links = f" · [red]{cut} links cut, {impaired} impaired[/] (podwire lab links)" if wrong else ""
    return Group(
        Text.from_markup(f"[bold]lab {escape(plan.name)}[/]{state} · cluster {' '.join(plan.networks)}{links}"),
        Columns(boxes, padding=(0, 1)),
        Rule(f"underlay · bridge br0 · IPv{plan.underlay_family} · MTU {plan.underlay_mtu_bytes}", characters="═"),
        *([Text(f"{text}: {', '.join(pairs)}", "red") for text, pairs in _faults(wrong).items()]),
    )


def _faults(wrong: Mapping[Pair, Link]) -> dict[str, list[str]]:
    """Return what is wrong, and with which links: each once, with an arrow where only one direction is meant."""
    found: dict[str, list[str]] = {}
    for (source, target), link in wrong.items():
        text = "cut" if link.cut else str(link.faults)
        back = wrong.get((target, source))
        both = back is not None and (back.cut, back.faults) == (link.cut, link.faults)
        if not both or source < target:
            found.setdefault(text, []).append(f"{source} {'↔' if both else '→'} {target}")
    return {
        text: pairs if len(pairs) <= _SHOWN_LINKS else [*pairs[:_SHOWN_LINKS], f"and {len(pairs) - _SHOWN_LINKS} more"]
        for text, pairs in found.items()
    }


def links_table(state: LinksState) -> RenderableType:
    """Return what is wrong with links as a table, one row a direction."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("from", "to", "fault"):
        table.add_column(title)
    for title in _COUNTS:
        table.add_column(title, justify="right")
    for found in state.links:
        link, counts = found.link, found.counts
        if link.cut:
            felt = f" [dim]({link.faults})[/]" if link.faults else ""
            cells = [
                f"[red]cut[/]{felt}",
                str(found.cut_frames),
                "0",
                str(found.cut_frames),
                *[""] * (len(_COUNTS) - 3),
            ]
        elif counts is None:
            cells = [f"{link.faults} [red](the relay is dead)[/]", *[""] * len(_COUNTS)]
        else:
            cells = [str(link.faults), *(f"{getattr(counts, _COUNTS[title]):,}" for title in _COUNTS)]
        table.add_row(link.source, link.target, *cells)
    missed = ", ".join(f"{frames:,} from {name}" for name, frames in state.missed.items() if frames)
    return Group(table, f"[red]The relay was too slow, and missed frames: {missed}[/]") if missed else table


def _owned(ledger: Ledger, plan: LabPlan) -> dict[str, _Owned]:
    """Return what each node owns: as planned, or as its router says."""
    if plan.store == "file":
        return {
            node.name: _Owned(tuple(map(str, node.subnets)), tuple(map(str, node.addresses))) for node in plan.nodes
        }
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(
            zip((node.name for node in plan.nodes), pool.map(lambda n: _leased(ledger, n), plan.nodes), strict=True)
        )


def _leased(ledger: Ledger, node: NodePlan) -> _Owned:
    from shim.client import Client, ClientError

    if _router_pid(ledger, node) is not None:
        try:
            with Client(str(ledger.node_path(node.name) / "router.sock"), _ASK_TIMEOUT_S) as client:
                status = client.status()
        except ClientError:
            return _Owned()
        return _Owned(status.subnets, status.node_addresses)
    return _Owned()


def _store(ledger: Ledger, plan: LabPlan) -> dict[str, Any]:
    if plan.store == "file":
        return {"kind": "file"}
    etcd = LabStore(ledger, plan)
    return {
        "kind": "etcd",
        "url": etcd.url,
        "netns": etcd.netns,
        "pid": etcd.pid,
        "paused": etcd.paused,
        "ttl_s": plan.etcd_ttl_s,
        "log": str(etcd.log_path),
    }


def _store_box(store: Mapping[str, Any]) -> Panel:
    state = (
        "[red]dead[/]" if store["pid"] is None else f"{store['pid']}{' [red](paused)[/]' if store['paused'] else ''}"
    )
    return Panel(f"{store['url']}\nleases of {store['ttl_s']} s", title="store", subtitle=f"etcd {state}", box=ROUNDED)


def _node(ledger: Ledger, record: LabRecord, node: NodePlan, owned: _Owned) -> Panel:
    pid = _router_pid(ledger, node)
    grid = Table.grid(padding=(0, 1))
    for pod in record.pods:
        if pod.node == node.name:
            grid.add_row(f"[green]{pod.name}[/]", *pod.addresses or ("[red]not attached[/]",))
    grid.add_row("podwire0", *owned.addresses or ("[red]unknown[/]",))
    router = f"router {pid}" if pid else "[red]router dead[/]"
    return Panel(grid, title=f"[bold]{node.name}[/]", subtitle=f"{router} · {node.endpoint}", box=ROUNDED)


def _router_pid(ledger: Ledger, node: NodePlan) -> int | None:
    found = ledger.router_process(node.name)
    return found.pid if found and found.alive else None
