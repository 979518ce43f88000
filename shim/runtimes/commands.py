"""`podwire sync`: release attachments of Pods that are gone, as their runtime says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shim.commands import DEFAULT_SOCKET, Failure

if TYPE_CHECKING:
    from shim.client import Client
    from shim.runtimes.source import Source


@click.command("sync")
@click.option("--containerd", "containerds", multiple=True, metavar="SOCKET", help="Ask the containerd at this socket.")
@click.option("--podman", "with_podman", is_flag=True, help="Ask podman.")
@click.option(
    "--live",
    "live_file",
    metavar="FILE",
    help='A list of what is there: [{"containerID": …, "ifname": …}]; - is stdin.',
)
@click.option("--owner", default="", metavar="OWNER", help="With --live: of whose attachments, as cni:podwire or oci.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Spare the younger.",
)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="S",
    help="Again every S seconds, until interrupted.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be released once it is old enough, and release nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {released, namespaces, failures}, a line a round.")
@click.option(
    "--socket", "socket_path", default=DEFAULT_SOCKET, show_default=True, envvar="PODWIRE_SOCKET", show_envvar=True,
    metavar="PATH", help="Unix socket of the router.",
)  # fmt: skip
def sync(
    containerds: tuple[str, ...],
    with_podman: bool,
    live_file: str | None,
    owner: str,
    grace_s: float,
    every_s: float,
    dry_run: bool,
    as_json: bool,
    socket_path: str,
) -> None:
    """Release what is attached for Pods that their runtime does not know any more.

    A runtime that is killed in the middle may never ask for the removal of what it had begun. Asked here are containerd
    (by its own API: Pods of Kubernetes and containers of ctr) and podman; each judges only what was attached for it.
    Nothing is released when a runtime cannot be asked, nor while a process lives in its namespace. Name every containerd
    of this node: what any of them knows stays. Namespaces that containerd or podman left behind empty are removed.
    `podwire router run --reconcile containerd:SOCKET` does the same all the time.

    \b
    Examples:
      podwire sync --containerd /run/containerd/containerd.sock
      podwire sync --podman --dry-run
      mytool list-sandboxes --json | podwire sync --live - --owner cni:podwire

    \b
    Exit status:
      0   done
      1   a runtime could not be asked, or the router refused
      2   the command line is wrong
      69  the router cannot be reached
    """
    from shim.client import Client, ClientError
    from shim.runtimes.known import open_source

    sources = [open_source(f"containerd:{Path(path).absolute()}") for path in containerds]
    sources += [open_source("podman")] if with_podman else []
    if bool(sources) == (live_file is not None):
        raise click.UsageError("say whom to ask: --containerd SOCKET, --podman, or --live FILE.")
    if owner and live_file is None:
        raise click.UsageError("--owner goes with --live.")
    if live_file is not None and dry_run:
        raise click.UsageError("--dry-run goes with a runtime that can be asked.")
    if live_file == "-" and every_s:
        raise click.UsageError("--every goes with a FILE: standard input can be read once.")
    failed = False
    try:
        with Client(socket_path) as client:
            while True:
                try:
                    if live_file is not None:
                        released = _from_list(client, live_file, owner, grace_s)
                        found = {"released": released, "namespaces": [], "failures": []}
                    else:
                        found = _from_runtimes(client, sources, grace_s, dry_run)
                except ClientError as error:
                    if not every_s:
                        raise
                    found = {"released": [], "namespaces": [], "failures": [error.message]}  # it may come back
                _show(found, as_json, dry_run)
                failed = bool(found["failures"])
                if not every_s:
                    break
                time.sleep(every_s)
    except ClientError as error:
        raise Failure(error.message, error.exit_status) from None
    except KeyboardInterrupt:
        sys.exit(130)
    if failed:
        sys.exit(1)


def _from_runtimes(client: Client, sources: list[Source], grace_s: float, dry_run: bool) -> dict[str, list[str]]:
    from shim.runtimes.sync import sync as one_round

    found = one_round(client, sources, grace_s, dry_run=dry_run)
    return {
        "released": [str(key) for key in found.released],
        "namespaces": list(found.namespaces),
        "failures": list(found.failures),
    }


def _from_list(client: Client, file: str, owner: str, grace_s: float) -> list[str]:
    from shim.answers import AttachmentKey

    as_of_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(grace_s * 1e9)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        listed = json.loads(text)
        if not isinstance(listed, list):
            raise TypeError("no list")  # an empty object would release everything
        live = [AttachmentKey(each["containerID"], each["ifname"]) for each in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = 'a list of {"containerID": …, "ifname": …}'
        raise Failure(f"{file} is not {what}, and nothing is released: {type(error).__name__}: {error}") from None
    return [str(key) for key in client.sync(live, owner=owner, as_of_ns=as_of_ns)]


def _show(found: dict[str, Any], as_json: bool, dry_run: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for key in found["released"]:
        click.echo(f"{key}: {'would be released' if dry_run else 'released'}")
    for path in found["namespaces"]:
        click.echo(f"{path}: {'would be removed' if dry_run else 'removed'}")
    for failure in found["failures"]:
        click.echo(f"podwire: {failure}", err=True)
    if not any(found.values()):
        click.echo("all that is attached is there")
