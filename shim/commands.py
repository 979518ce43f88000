"""The client commands: one question to one router each, answered as a table or as JSON.

gRPC and rich are imported when a command runs, so that help stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from shim.answers import Endpoint, PortMapping
    from shim.client import Client

DEFAULT_SOCKET = "/run/podwire/router.sock"
EXIT_STATUS = """\b
Exit status:
  0   done
  1   the router refused
  2   the command line is wrong
  69  the router cannot be reached, is stopping, or did not answer in time
  70  the router failed (a bug; its log has the details)"""

_Command = Callable[..., None]


class Failure(click.ClickException):
    """What went wrong, in one line on standard error."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance's first

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"podwire: {self.message}", file=file or sys.stderr)


def asks(answer: str, examples: str) -> Callable[[_Command], _Command]:
    """Make a command of a function that takes a client and whether to answer in JSON; complete its help."""

    def make(function: _Command) -> _Command:
        @click.option(
            "--socket",
            "socket_path",
            default=DEFAULT_SOCKET,
            show_default=True,
            envvar="PODWIRE_SOCKET",
            show_envvar=True,
            metavar="PATH",
            help="Unix socket of the router.",
        )
        @click.option("--json", "as_json", is_flag=True, help=f"Print JSON: {answer}.")
        @functools.wraps(function)
        def run(socket_path: str, as_json: bool, **arguments: Any) -> None:
            from shim.client import ClientError
            from shim.observe.client import ObserverClient

            try:
                with ObserverClient(socket_path) as client:
                    function(client, as_json, **arguments)
            except ClientError as error:
                raise Failure(error.message, error.exit_status) from None
            except KeyboardInterrupt:
                sys.exit(130)

        help_text = (function.__doc__ or "").replace("\n    ", "\n")
        examples_text = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.splitlines())
        fields = "Fields in JSON are named and explained in docs/reference/api.md."
        run.__doc__ = f"{help_text}\n\n{fields}\n\n{examples_text}\n\n{EXIT_STATUS}"
        return run

    return make


@click.command()
@click.option("--id", "sandbox_id", required=True, metavar="ID", help="Id of the sandbox, the runtime's own.")
@click.option("--netns", "netns_path", required=True, metavar="PATH", help="Its network namespace, absolute.")
@click.option("--ifname", "if_name", default="eth0", show_default=True, metavar="NAME", help="Interface to make in it.")
@click.option("--ip", "addresses", multiple=True, metavar="ADDR", help="Address to give it; may be repeated.")
@click.option("--mtu", "mtu_bytes", type=int, default=0, metavar="BYTES", help="MTU; 0, the default: the overlay's.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Note on the Pod; may be repeated.")
@click.option(
    "--port", "ports", multiple=True, metavar="[ADDR:]PORT:PORT[/PROTO]", help="Node's port to the Pod's; repeat."
)
@click.option("--ingress-rate", default="0", metavar="BITS", help="Most bits a second to the Pod, as 20M; 0: no limit.")
@click.option("--egress-rate", default="0", metavar="BITS", help="Most bits a second from the Pod; 0: no limit.")
@asks(
    "the attachment",
    "podwire attach --id web-1 --netns /run/netns/web-1\n"
    "podwire attach --id web-3 --netns /run/netns/web-3 --port 8080:80 --egress-rate 20M\n"
    "podwire attach --id web-2 --netns /run/netns/web-2 --ip 10.1.2.7 --label name=web",
)
def attach(
    client: Client,
    as_json: bool,
    labels: tuple[str, ...],
    ports: tuple[str, ...],
    ingress_rate: str,
    egress_rate: str,
    **wanted: Any,
) -> None:
    """Give a sandbox an interface with addresses of this node's subnets.

    The router makes a TUN device in the network namespace and gives it the addresses asked for, or free ones. The same
    command again changes nothing and prints the same; another one with the same id and interface is refused.
    """
    pairs = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{label!r} is no KEY=VALUE", param_hint="--label")
        pairs[key] = value
    from shim.answers import Limits

    limits = Limits(_bits("--ingress-rate", ingress_rate), 0, _bits("--egress-rate", egress_rate), 0)
    found = client.attach(
        wanted.pop("sandbox_id"), wanted.pop("if_name"), **wanted, labels=pairs, ports=_ports(ports), limits=limits
    )
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.key}: {', '.join(found.addresses)}, MTU {found.mtu_bytes}, in {found.netns_path}")


@click.command()
@click.option("--id", "sandbox_id", required=True, metavar="ID", help="Id of the sandbox.")
@click.option("--ifname", "if_name", default="eth0", show_default=True, metavar="NAME", help="Interface to take away.")
@asks("{detached}", "podwire detach --id web-1")
def detach(client: Client, as_json: bool, sandbox_id: str, if_name: str) -> None:
    """Take an interface away from a sandbox and free its addresses.

    What is not there is no error: the command says so and exits with 0.
    """
    was_there = client.detach(sandbox_id, if_name)
    if as_json:
        print_json({"detached": was_there})
    else:
        click.echo(f"{sandbox_id}/{if_name}: {'detached' if was_there else 'was not attached'}")


@click.command()
@asks("the Status message", "podwire status\npodwire status --json | jq .free_addresses")
def status(client: Client, as_json: bool) -> None:
    """Show what the router is and how it stands.

    Node, engine, cluster range, own subnets, MTU, offloads and why some are off, free addresses, memory, and why the
    newest subnet table was refused, if it was.
    """
    _show("status", client.status(), as_json)


@click.command()
@asks("{attachments}", "podwire pods\npodwire pods --json | jq -r '.attachments[].addresses[]'")
def pods(client: Client, as_json: bool) -> None:
    """List the Pods attached to this node."""
    found = client.attachments()
    _show("pods", {"attachments": found} if as_json else found, as_json)


@click.command()
@asks("{version, routes: [{prefix, node, endpoint, offload, via}]}; via is local or tunnel", "podwire routes")
def routes(client: Client, as_json: bool) -> None:
    """Show which prefix leads where: to this node's own Pods, or through the tunnel to which node."""
    own, table = client.status().node, client.subnets()
    rows = [
        {
            "prefix": prefix,
            "node": node.name,
            "endpoint": str(node.endpoint),
            "offload": node.offload,
            "via": "local" if node.name == own else "tunnel",
        }
        for node in table.nodes
        for prefix in node.subnets
    ]
    _show("routes", {"version": table.version, "routes": rows} if as_json else rows, as_json)


@click.command()
@asks(
    "{version, peers: [Peer message]}", "podwire peers\npodwire peers --json | jq '.peers[] | select(.state != \"up\")'"
)
def peers(client: Client, as_json: bool) -> None:
    """List the other nodes: where their routers are, what they own, how they answer, and packets to and from them.

    Each peer is asked once a second by a probe through the tunnel, which its data path answers. AGE is how long ago it was
    last heard of, RTT the round trip, LOSS the share of the last 64 probes that no answer came to, MTU the largest packet
    between Pods that the path was found to carry. A peer that does not answer for 2.5 s is down: packets to its Pods
    are rejected with an ICMP error until it answers again. In a cluster of over 500 nodes all of this takes longer.
    """
    found = client.peers()
    _show("peers", found if as_json else found.peers, as_json)


@click.command()
@asks("the Counters message", "podwire counters\npodwire counters --json | jq '.attachments[].tally.dropped'")
def counters(client: Client, as_json: bool) -> None:
    """Show the fate of every packet, for each Pod and peer, and what was dropped why.

    received = delivered + tunnelled + dropped; the balance is what is missing, and anything but 0 is a bug. KERNEL is what
    the kernel dropped at the Pod's TUN because its ring was full; like the drops at the underlay socket it never reached
    the router and is no part of the balance. SENT is the other direction: written to the Pod, sent to the peer.
    "strangers" sent from an address that is no node's; "gone" is the sum of Pods and peers that are no more.
    """
    _show("counters", client.counters(), as_json)


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on, until interrupted.")
@click.option("--after", type=int, default=0, metavar="SEQUENCE", help="Leave away events up to this one.")
@asks("one Event message a line", "podwire events\npodwire events --follow --json")
def events(client: Client, as_json: bool, follow: bool, after: int) -> None:
    """Show what happened in the router lately: Pods attached, detached and lost, tables changed and refused, failures.

    The router holds the last 1024 events. A gap in the sequence means some were lost because they were read too slowly.
    With --follow the command ends when interrupted (exit status 130) or when the router stops (69).
    """
    from shim import render

    out = render.console()
    for event in client.watch_events(after, follow=follow):
        if as_json:
            print_json(event, indent=None)
        else:
            render.event(out, event)


@click.group()
def subnets() -> None:
    """Read and change the subnet table: which node owns which Pod range.

    Only for a router that runs without --subnets; with it, change that file. Tables in which two nodes share a name, an
    endpoint or a part of a subnet are refused, and the one in force stays.
    """


@subnets.command("list")
@asks("the SubnetTable message", "podwire subnets list --json")
def list_subnets(client: Client, as_json: bool) -> None:
    """List all nodes of the table, this one included."""
    _show_table(client.subnets(), as_json)


@subnets.command("set")
@click.argument("name")
@click.option(
    "--endpoint", required=True, metavar="ADDR[:PORT]", help="Where its router receives; port 6081 if left away."
)
@click.option("--subnet", "prefixes", multiple=True, metavar="PREFIX", help="Pod range it owns; may be repeated.")
@click.option("--offload/--no-offload", default=True, help="Whether its router understands Podwire's Geneve option.")
@asks(
    "the SubnetTable message",
    "podwire subnets set node-2 --endpoint 192.0.2.2 --subnet 10.1.2.0/24 --subnet fd00:0:0:2::/64",
)
def set_subnets(
    client: Client, as_json: bool, name: str, endpoint: str, prefixes: tuple[str, ...], offload: bool
) -> None:
    """Add node NAME, or put this in the place of what the table has of it."""
    from shim.answers import Node

    _show_table(client.upsert_subnets(Node(name, _endpoint(endpoint), prefixes, offload)), as_json)


@subnets.command("remove")
@click.argument("name")
@asks("the SubnetTable message", "podwire subnets remove node-2")
def remove_subnets(client: Client, as_json: bool, name: str) -> None:
    """Remove node NAME."""
    _show_table(client.remove_subnets(name), as_json)


def _ports(texts: tuple[str, ...]) -> list[PortMapping]:
    from shim.answers import PortMapping
    from shim.lean import portspec

    try:
        return [PortMapping(**portspec.parse(text)) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--port") from None


def _bits(flag: str, text: str) -> int:
    """Read a rate in bits a second with a decimal unit, as 800k, 20M or 1G."""
    units = {"k": 10**3, "M": 10**6, "G": 10**9}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    if not number.isdecimal() or len(number) > 18:
        raise click.BadParameter(f"{text!r} is no rate: write bits a second, as 800k, 20M or 1G", param_hint=flag)
    return int(number) * unit


def _endpoint(text: str) -> Endpoint:
    """Split ADDR, ADDR:PORT, [ADDR6]:PORT or ADDR6; the router checks the parts."""
    from shim.answers import Endpoint

    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")) or text.endswith("]"):
        return Endpoint(text.strip("[]"))
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise click.BadParameter(f"{text!r} has no port of 1 to 65535 after its last colon", param_hint="--endpoint")
    return Endpoint(host.strip("[]"), int(port))


def _show_table(table: Any, as_json: bool) -> None:
    _show("table", table if as_json else table.nodes, as_json)


def _show(what: str, answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        from shim import render

        getattr(render, what)(render.console(), answer)


def print_json(answer: Any, indent: int | None = 2) -> None:
    """Print an answer as JSON; on one line without an indent."""
    click.echo(json.dumps(answer, default=_plain, indent=indent, ensure_ascii=False))


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
