"""`podwire install`: show what would change, ask, do it; or undo it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from shim import launchers
from shim.commands import Failure
from shim.install import changes as compare
from shim.install import cni, containerd, manifest, plan, transaction
from shim.install.changes import Change, Kind
from shim.install.plan import Plan, Wishes
from shim.install.root import InstallError, Root

_IDLE = (Kind.SAME, Kind.GONE, Kind.LEFT)
_COLOURS = {Kind.NEW: "green", Kind.CHANGED: "yellow", Kind.BLOCKED: "red", Kind.LEFT: "yellow"}


@click.command("install")
@click.argument("runtimes", nargs=-1, type=click.Choice(plan.RUNTIMES), metavar="[containerd] [podman]")
@click.option("--remove", "removing", is_flag=True, help="Undo what was installed, and nothing else.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--overwrite", is_flag=True, help="Replace files of ours that others wrote or changed; --remove restores."
)
@click.option("--network-name", default=cni.DEFAULT_NETWORK, show_default=True, help="Name of the CNI network.")
@click.option("--socket", "socket_path", default=cni.DEFAULT_SOCKET, show_default=True, help="The router's socket.")
@click.option(
    "--mtu", "mtu_bytes", type=int, default=0, metavar="BYTES", help="MTU of Pods; 0, the default: the overlay's."
)
@click.option("--podman-default-network", is_flag=True, help="Let podman use the network where none is asked for.")
@click.option(
    "--cni-client",
    type=click.Choice(launchers.CLIENTS),
    default="auto",
    show_default=True,
    help="Which CNI plugin: the compiled one, the one in Python, or (auto) the compiled one where it is built.",
)
@click.option("--containerd-config", default=containerd.CONFIG, show_default=True, help="Where its configuration is.")
@click.option(
    "--root",
    "directory",
    default="/",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Tree to install into instead of /, such as an image's. It needs Python and Podwire where they are here.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: {changes, pastes, warnings, steps, cni_client, done}."
)
def install(removing: bool, dry_run: bool, yes: bool, directory: Path, as_json: bool, **wishes: object) -> None:
    """Make containerd and podman give their Pods the network of the router.

    Writes the executables that runtimes start, the CNI network and podman's hooks, for the runtimes that are named or else
    found. It shows each file first, and asks. No file that others wrote is edited: what belongs into one is shown to be
    pasted. Done all or not at all; done again it changes nothing.

    \b
    Examples:
      podwire install --dry-run
      podwire install containerd
      podwire install podman --podman-default-network --yes
      podwire install --remove

    \b
    Exit status:
      0  done, or nothing to do
      1  refused, and nothing has changed
    """
    root = Root(directory.resolve())
    try:
        if removing:
            if runtimes := wishes["runtimes"]:
                raise click.UsageError(f"--remove undoes all of it: leave out {' '.join(runtimes)}")  # type: ignore[arg-type]
            _remove(root, _Run(dry_run, yes, as_json))
        else:
            overwrite = bool(wishes.pop("overwrite"))
            names = {"network_name": "network"}
            asked = Wishes(**{names.get(name, name): value for name, value in wishes.items()})  # type: ignore[arg-type]
            _install(root, asked, overwrite, _Run(dry_run, yes, as_json))
    except InstallError as error:
        raise Failure(error.message) from None


class _Run:
    """How to ask and to answer."""

    def __init__(self, dry_run: bool, yes: bool, as_json: bool) -> None:
        self.dry_run = dry_run
        self.yes = yes
        self.as_json = as_json

    def go_on(self, changes: Sequence[Change], question: str) -> bool:
        """Return whether there is something to do and it may be done."""
        if self.dry_run or all(change.kind in _IDLE for change in changes):
            return False
        if not self.yes:
            if not sys.stdin.isatty():
                raise InstallError("nobody can be asked here: look at --dry-run, then give --yes")
            click.confirm(question, abort=True, err=True)
        return True

    def tell(self, changes: Sequence[Change], drawn: Plan, done: bool) -> None:
        """Print all of it as JSON."""
        files = [
            {"path": each.path, "change": each.kind, "note": each.note} | ({"diff": each.diff} if each.diff else {})
            for each in changes
        ]
        pastes = [
            {"path": each.path, "text": each.text, "purpose": each.purpose, "reason": each.reason}
            for each in drawn.pastes
        ]
        answer = {
            "changes": files, "pastes": pastes, "warnings": drawn.warnings, "steps": drawn.steps,
            "cni_client": drawn.cni_client or None, "done": done,
        }  # fmt: skip
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def _install(root: Root, wishes: Wishes, overwrite: bool, run: _Run) -> None:
    drawn = plan.draw(root, wishes)
    present = manifest.load(root)
    changes = compare.to_install(root, drawn.files, present, overwrite)
    if not run.as_json:
        _show(changes)
        for warning in drawn.warnings:
            click.secho(f"warning: {warning}", fg="yellow")
    blocked = [change for change in changes if change.kind is Kind.BLOCKED]
    if blocked and not run.dry_run:
        raise InstallError(f"nothing was installed: {blocked[0].path}: {blocked[0].note}")
    done = run.go_on(changes, "Install this?")
    unknown = {change.path for change in changes} - present.entries.keys()  # the manifest was lost
    if done or (unknown and not run.dry_run):
        transaction.install(root, changes, present)
    if not run.dry_run:
        for unwritable in launchers.precompile():
            drawn.warnings.append(
                f"{unwritable} cannot be written, so our programs are compiled at each start: run podwire install as who may"
            )
    if run.as_json:
        run.tell(changes, drawn, done)
        return
    for paste in drawn.pastes:
        click.echo(f"\nPut this into {paste.path} yourself, for {paste.purpose} ({paste.reason}):\n")
        click.echo("\n".join(f"    {line}".rstrip() for line in paste.text.splitlines()))
    _close("Installed.", "Nothing to do: all of it is there.", done, run)
    if not run.dry_run:
        click.echo("\n".join(f"Next: {step}" for step in drawn.steps))


def _remove(root: Root, run: _Run) -> None:
    present = manifest.load(root)
    changes = compare.to_remove(root, present)
    if not run.as_json:
        _show(changes)
    # What is left or gone alone still leaves the manifest to be removed.
    done = run.go_on(changes, "Remove this?") or (not run.dry_run and bool(changes))
    if done:
        transaction.remove(root, changes, present)
    left = [f"{change.path} is left: {change.note}" for change in changes if change.kind is Kind.LEFT]
    if run.as_json:
        run.tell(changes, Plan(warnings=left), done)
    else:
        _close("Removed.", "Nothing to do: nothing is installed.", done, run)


def _show(changes: Sequence[Change]) -> None:
    for change in changes:
        click.secho(f"{change.kind:<9}", nl=False, fg=_COLOURS.get(change.kind))
        click.echo(f" {change.path}" + (f"  ({change.note})" if change.note else ""))
        for line in change.diff.splitlines():
            click.echo(f"          {line}")


def _close(words: str, otherwise: str, done: bool, run: _Run) -> None:
    if run.dry_run:
        click.echo("\nThis was a dry run: nothing has changed.")
    else:
        click.echo("\n" + (words if done else otherwise))
