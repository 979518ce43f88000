"""`podwire why` and `podwire capture`: what was dropped, and every packet as it passes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from shim.commands import Failure, asks, print_json

if TYPE_CHECKING:
    from shim.observe.client import ObserverClient
    from shim.observe.filter import Instruction
    from shim.observe.pcapng import Packet

ANY = "any"
"""Stands for every Pod and peer."""
_STDOUT = "-"


@click.command()
@click.argument("subject", metavar="[POD|PEER]", default="")
@asks(
    "{drops: [Drop message]}",
    "podwire why\npodwire why default/web-1\npodwire why node-2 --json | jq '.drops[].reason'",
)
def why(client: ObserverClient, as_json: bool, subject: str) -> None:
    """Show what was dropped lately: who sent it, which flow, why, how many packets, and what to do.

    Of a Pod (name, namespace/name, sandbox id or address) or a peer (name or endpoint of its node): what it sent, and what
    was for it. Of any other address: what has it as source or destination. Without one: everything, what strangers sent to
    the router too.

    The router remembers the last few hundred flows that were dropped; podwire counters has the count of all.
    """
    found = client.drops(subject)
    if as_json:
        print_json(found)
        return
    from shim import render

    render.drops(render.console(), found.drops, subject, client.status().started_at_s)


@click.command()
@click.argument("subject", metavar="POD|PEER|any")
@click.argument("words", metavar="[FILTER]...", nargs=-1)
@click.option("-w", "--write", "file", metavar="FILE", help="Write a pcapng file; - is standard output.")
@click.option(
    "-s",
    "--snaplen",
    "snap_bytes",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="BYTES",
    help="Most bytes of a packet to record; 0, the default: all.",
)
@click.option("--dropped", "dropped_only", is_flag=True, help="Only packets that are dropped or rejected.")
@click.option("-c", "--count", "most", type=click.IntRange(min=1), metavar="COUNT", help="End after so many packets.")
@asks(
    "{time_s, interface, flow, details, packet_bytes, captured_bytes, fate}, a line a packet",
    "podwire capture default/web-1\n"
    "podwire capture web-1 tcp port 80 -c 10\n"
    "podwire capture node-2 -w node-2.pcapng --snaplen 128\n"
    "podwire capture any --dropped\n"
    "podwire capture web-1 -w - | wireshark -k -i -",
)
def capture(
    client: ObserverClient,
    as_json: bool,
    subject: str,
    words: tuple[str, ...],
    file: str | None,
    snap_bytes: int,
    dropped_only: bool,
    most: int | None,
) -> None:
    """Record packets of a Pod or peer as they pass the router: as they came, as they went, and what became of them.

    POD|PEER is as for podwire why; "any" stands for all. A FILTER is in the language of pcap-filter(7), over packets from
    their IP header on: host, net, port, tcp, udp, icmp6, greater … A packet is seen before the router, on the interface of
    who sent it, and after the router, on that of who got it. Before the router a super-packet is still whole, and a checksum
    may be left for later, as in any capture on a machine that offloads.

    Without -w each packet is a line. The pcapng file has an interface for each Pod or peer and side, and in a comment what
    became of each packet. Ctrl-C ends the capture; how many packets were recorded and how many lost (they came too fast) is
    said on standard error.
    """
    if as_json and file is not None:
        raise click.UsageError("--json and -w say two ways to print packets; leave one away.")
    program = _program(" ".join(words))
    from shim.client import ClientError
    from shim.observe.pcapng import Capture

    found, lost, failure, begun = Capture(), 0, None, False
    with ExitStack() as stack:
        out = stack.enter_context(_output(file))
        print_packet = _printer(as_json)
        pieces = client.capture(
            "" if subject == ANY else subject, program=program, snap_bytes=snap_bytes, dropped_only=dropped_only
        )
        try:
            with _interruptible():
                for chunk in pieces:
                    if not begun:
                        begun = True
                        click.echo(f"capturing {subject}; Ctrl-C ends it", err=True)
                    lost = chunk.lost
                    if out is not None:
                        _write(out, chunk.pcapng[: found.count(chunk.pcapng, most)])
                    else:
                        for packet in found.take(chunk.pcapng, most):
                            print_packet(packet)
                        sys.stdout.flush()
                    if most is not None and found.packets >= most:
                        break
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:  # who looked at it has seen enough
            _abandon_stdout()
            out = None
        except ValueError as error:
            failure = Failure(f"the router sent no pcapng: {error}", 70)
        except OSError as error:
            failure, out = Failure(f"cannot write {file}: {error.strerror}"), None
        except ClientError as error:
            failure = Failure(error.message, error.exit_status)
        if out is not None:
            try:
                _write(out, found.end(lost))
            except BrokenPipeError:
                _abandon_stdout()
            except OSError as error:
                failure = failure or Failure(f"cannot write {file}: {error.strerror}")
    said = f"{found.packets} packet{'' if found.packets == 1 else 's'} captured, {lost} lost"
    click.echo(said, err=True)
    if failure is not None:
        raise failure


def _program(text: str) -> tuple[Instruction, ...]:
    if not text.strip():
        return ()
    from shim.observe.filter import FilterError, compile_filter

    try:
        return compile_filter(text)
    except FilterError as error:
        raise Failure(str(error), 2) from None


@contextmanager
def _output(file: str | None) -> Iterator[IO[bytes] | None]:
    """Open where the file goes, before anything is asked; None when packets are printed."""
    if file is None:
        yield None
    elif file == _STDOUT:
        if sys.stdout.isatty():
            raise Failure(
                "standard output is a terminal, and pcapng is not for reading: use a pipe, or leave -w away", 2
            )
        yield sys.stdout.buffer
    else:
        try:
            out = Path(file).open("wb")  # noqa: SIM115 - closed below, and its errors are not those of the block
        except OSError as error:
            raise Failure(f"cannot write {file}: {error.strerror}") from None
        with closing(out):
            yield out


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that the file gets its end."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(out: IO[bytes], piece: bytes) -> None:
    out.write(piece)
    out.flush()  # who reads a pipe sees packets as they pass


def _abandon_stdout() -> None:
    """Let nothing more be written to a pipe that nobody reads, not even at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printer(as_json: bool) -> Callable[[Packet], None]:
    from shim.observe.packet import details, flow

    def print_object(packet: Packet) -> None:
        row = {
            "time_s": packet.time_ns / 1e9,
            "interface": packet.interface,
            "flow": flow(packet.captured),
            "details": details(packet.captured),
            "packet_bytes": packet.packet_bytes,
            "captured_bytes": len(packet.captured),
            "fate": packet.comment,
        }
        print_json(row, indent=None)

    def print_line(packet: Packet) -> None:
        seconds, rest_ns = divmod(packet.time_ns, 10**9)
        when = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest_ns // 1000:06}"
        what = " ".join(filter(None, (str(flow(packet.captured) or "no IP packet"), details(packet.captured))))
        sys.stdout.write(f"{when}  {packet.interface}  {what}  {packet.packet_bytes} bytes  {packet.comment}\n")

    return print_object if as_json else print_line
