"""The `podwire` command: where router, shim and lab come together. A subcommand's module is imported when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import click


class _Place(NamedTuple):
    module: str
    attribute: str
    help: str


_CLIENT = "shim.commands"
_SECTIONS: dict[str, dict[str, _Place]] = {
    "Router": {"router": _Place("router.commands", "router", "Run the router of a node.")},
    "Pods": {
        "attach": _Place(_CLIENT, "attach", "Give a sandbox an interface with addresses of this node's subnets."),
        "detach": _Place(_CLIENT, "detach", "Take an interface away from a sandbox and free its addresses."),
        "pods": _Place(_CLIENT, "pods", "List the Pods attached to this node."),
    },
    "What a router knows": {
        "status": _Place(_CLIENT, "status", "Show what the router is and how it stands."),
        "routes": _Place(_CLIENT, "routes", "Show which prefix leads where."),
        "peers": _Place(_CLIENT, "peers", "List the other nodes, with packets to and from them."),
        "subnets": _Place(_CLIENT, "subnets", "Read and change the subnet table."),
        "counters": _Place(_CLIENT, "counters", "Show the fate of every packet, and what was dropped why."),
        "events": _Place(_CLIENT, "events", "Show what happened in the router lately."),
        "trace": _Place("shim.observe.trace", "trace", "Say what becomes of a packet, hop by hop, and why."),
        "why": _Place("shim.observe.commands", "why", "Show what was dropped lately, why, and what to do."),
        "capture": _Place(
            "shim.observe.commands", "capture", "Record packets as they pass the router, with their fate."
        ),
        "flows": _Place("shim.observe.flows", "flows", "Print flows as they are sampled, a line of JSON each."),
        "top": _Place("shim.observe.top", "top", "Watch Pods, peers, flows and drops live."),
    },
    "A node": {
        "sync": _Place("shim.runtimes.commands", "sync", "Release what runtimes do not know any more."),
        "install": _Place("shim.install.commands", "install", "Make containerd and podman use the router, or undo it."),
        "doctor": _Place("shim.doctor.commands", "doctor", "Look what is wrong on this node, and how to mend it."),
    },
    "A cluster on this machine": {
        "lab": _Place("shim.lab.commands", "lab", "Bring up a whole cluster of namespaces on this machine."),
        "demo": _Place("shim.lab.commands", "demo", "Show such a cluster at work, and take it down again."),
    },
}
_PLACES = {name: place for section in _SECTIONS.values() for name, place in section.items()}


class _LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is asked for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        place = _PLACES.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(importlib.import_module(place.module), place.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, places in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, place.help) for name, place in places.items()])


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    from router.engine import choose

    try:
        number = version("podwire")
    except PackageNotFoundError:
        number = "(not installed)"
    click.echo(f"podwire {number} (engines: {', '.join(choose.available())})")
    ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and the engines that are there.",
)
def podwire() -> None:
    """A Pod network in userspace.

    One router runs on each node, reads IP packets from a TUN device in every Pod's network namespace, and carries them to
    the other nodes over UDP. `podwire router run` is the router; the other commands ask it, over its Unix socket
    (--socket PATH or PODWIRE_SOCKET, /run/podwire/router.sock if neither is given).

    `podwire COMMAND --help` explains a command, with examples.
    """


def main(arguments: Iterable[str] | None = None) -> Any:
    """Run the command; does not return."""
    from router.errors import Refusal

    try:
        given = None if arguments is None else list(arguments)
        return podwire.main(args=given, prog_name="podwire", standalone_mode=False)
    except Refusal as refusal:
        click.echo(f"podwire: {refusal.message}", err=True)
        sys.exit(1)
    except click.Abort:
        sys.exit(130)
    except click.UsageError as error:
        if error.ctx is None or type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2; 8.1 exits by itself
            error.show()
        else:  # one line, as every other refusal
            click.echo(f"podwire: {error.format_message()} See `{error.ctx.command_path} --help`.", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
