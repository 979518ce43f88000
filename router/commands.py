"""`podwire router`: run the daemon."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from router.config import Settings
    from router.daemon import Daemon
    from router.takeover.inherited import Inherited
    from router.takeover.successor import Successor
    from router.web.server import WebServer
    from shim.runtimes.reconciler import Reconciler

_PATHS = (
    "subnets", "socket", "state_dir", "tls.cert", "tls.key", "tls.ca",
    "etcd.ca", "etcd.cert", "etcd.key", "etcd.password_file", "kubernetes.config",
)  # fmt: skip
IN_CLUSTER = "in-cluster"
_GRACE_S, _RELIEVED_GRACE_S = 1.0, 10.0
"""For calls under way when the router ends."""
_SWITCH = click.Choice(["auto", "on", "off"])


@click.group("router")
def router() -> None:
    """Run the router daemon of this node, or take what it made off the node."""


@router.command("run")
@click.option("--node", metavar="NAME", help="This node's name in the subnet table.")
@click.option("--network", "network", metavar="CIDR", multiple=True, help="Cluster range; repeat for IPv4 and IPv6.")
@click.option("--underlay", metavar="ADDR[:PORT]", help="Where other routers reach this one. Port 6081 unless given.")
@click.option("--subnets", "subnets", metavar="FILE", help="Subnet table in TOML; re-read when it changes.")
@click.option("--etcd", "etcd__endpoints", metavar="URL", multiple=True, help="Or: lease subnets in etcd; repeat.")
@click.option("--etcd-prefix", "etcd__prefix", metavar="KEY", help="What keys there begin with. [default: /podwire]")
@click.option("--etcd-ttl-s", "etcd__ttl_s", metavar="S", help="How long a lease outlives its router. [default: 30]")
@click.option("--etcd-ipv4-length", "etcd__ipv4_length", metavar="N", help="Prefix length of a subnet. [default: 24]")
@click.option("--etcd-ipv6-length", "etcd__ipv6_length", metavar="N", help="… of an IPv6 one. [default: 64]")
@click.option("--etcd-reserve/--no-etcd-reserve", "etcd__reserve", default=None, help="Keep the subnets for good.")
@click.option("--etcd-ca", "etcd__ca", metavar="FILE", help="Authority that signed etcd's certificates (PEM).")
@click.option("--etcd-cert", "etcd__cert", metavar="FILE", help="Certificate to show to etcd (PEM).")
@click.option("--etcd-key", "etcd__key", metavar="FILE", help="Its private key (PEM).")
@click.option("--etcd-user", "etcd__user", metavar="NAME", help="User of etcd.")
@click.option("--etcd-password-file", "etcd__password_file", metavar="FILE", help="File with the user's password.")
@click.option(
    "--kubernetes",
    "kubernetes__config",
    metavar="FILE",
    help="Or: what Kubernetes allots; a kubeconfig, or in-cluster.",
)
@click.option("--kubernetes-context", "kubernetes__context", metavar="NAME", help="Context of the kubeconfig.")
@click.option("--socket", "socket", metavar="PATH", help="Control socket. [default: /run/podwire/router.sock]")
@click.option("--state-dir", metavar="DIR", help="Journal of addresses and attachments. [default: /var/lib/podwire]")
@click.option("--engine", metavar="NAME", help="What carries the packets: auto, native or python. [default: auto]")
@click.option("--engine-threads", metavar="N", help="1: both directions in one; 2: one each. [default: by processors]")
@click.option("--spin-us", metavar="US", help="How long to look for packets before sleeping (native). [default: 0]")
@click.option("--spin-percent", metavar="N", help="Most of a core that looking may take. [default: 50]")
@click.option("--config", "config_file", metavar="FILE", type=click.Path(path_type=Path), help="Settings in TOML.")
@click.option("--vni", metavar="N", help="Network id on the wire; the same on all nodes. [default: 1]")
@click.option("--mtu-bytes", metavar="BYTES", help="Overlay MTU. [default: the underlay's less the tunnel's headers]")
@click.option("--egress/--no-egress", default=None, help="Let Pods reach what is outside the cluster. [default: yes]")
@click.option("--masquerade/--no-masquerade", default=None, help="… with the node's address. [default: yes]")
@click.option("--address-rest-s", metavar="S", help="Rest of a freed address before another Pod gets it. [default: 60]")
@click.option("--confine", type=_SWITCH, help="Give up rights that a router does not need. [default: auto]")
@click.option(
    "--reconcile",
    metavar="RUNTIME",
    multiple=True,
    help="Release Pods it does not know any more: containerd:SOCKET or podman.",
)
@click.option("--reconcile-every-s", metavar="S", help="How often to ask it. [default: 30]")
@click.option("--reconcile-grace-s", metavar="S", help="… about Pods attached at least so long ago. [default: 60]")
@click.option("--tun-tso", "offloads__tun_tso", type=_SWITCH, help="TCP super-packets on TUNs. [default: auto]")
@click.option("--tun-uso", "offloads__tun_uso", type=_SWITCH, help="UDP super-packets on TUNs. [default: auto]")
@click.option("--tun-checksum", "offloads__tun_checksum", type=_SWITCH, help="Partial checksums. [default: auto]")
@click.option("--udp-segment", "offloads__udp_segment", type=_SWITCH, help="Trains sent at once. [default: auto]")
@click.option("--udp-gro", "offloads__udp_gro", type=_SWITCH, help="Trains received at once. [default: auto]")
@click.option(
    "--max-segments", "offloads__max_segments", metavar="N", help="Most datagrams in a train. [default: kernel's]"
)
@click.option("--listen", "tls__listen", metavar="ADDR:PORT", help="Also serve control over TCP, with mutual TLS only.")
@click.option("--tls-cert", "tls__cert", metavar="FILE", help="Certificate (PEM) for --listen.")
@click.option("--tls-key", "tls__key", metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--tls-client-ca", "tls__ca", metavar="FILE", help="Authority that signed the clients' certificates (PEM)."
)
@click.option("--web-listen", "web__listen", metavar="ADDR:PORT", help="Serve a page and metrics, for reading only.")
@click.option(
    "--web-remote/--no-web-remote", "web__remote", default=None, help="… to other machines too. [default: no]"
)
@click.option(
    "--web-host", "web__hosts", metavar="NAME", multiple=True, help="Name by which people reach it; may be repeated."
)
@click.option("--log-level", "log__level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
@click.option("--log-format", "log__format", metavar="FORMAT", help="text or json. [default: text]")
@click.option("--takeover", is_flag=True, help="Take over from the router that runs here, and lose no packet.")
def run(config_file: Path | None, takeover: bool, **flags: object) -> None:
    """Run the router daemon of this node in the foreground.

    It carries packets between this node's Pods and over UDP tunnels to the routers of other nodes, and is told what to
    do over its control socket. Every setting can also stand in --config FILE or the environment; flags go before
    environment, environment before file. docs/configuration.md names them all: `[offloads] tun_tso` in the file is
    PODWIRE_OFFLOADS_TUN_TSO in the environment.

    \b
    Example, on node alpha:
      podwire router run --node alpha --network 10.32.0.0/16 --network fd00:32::/48 \\
          --underlay 192.0.2.1 --subnets /etc/podwire/subnets.toml

    \b
    The subnet table is the same file on all nodes:
      [[node]]
      name = "alpha"
      endpoint = "192.0.2.1"
      subnets = ["10.32.1.0/24", "fd00:32:0:1::/64"]

    With --takeover and otherwise the same settings it takes over from the router that runs, which ends then: Pods notice nothing,
    and when it fails the other goes on (docs/restarts.md).

    SIGTERM and SIGINT end it; Pods keep their interfaces and addresses, and the next router takes them up.
    Exit status: 0 ended by a signal, 1 could not start, 2 wrong flags.
    """
    _run(flags, config_file, takeover)


@router.command("clean")
@click.option("--state-dir", metavar="DIR", default="/var/lib/podwire", show_default=True, help="Its state directory.")
def clean(state_dir: str) -> None:
    """Take what a router that no longer runs has left off this node.

    Removes every Pod interface in its journal, podwire0, the masquerade rules and the journal itself. Refused while the
    router runs.
    """
    from router.cleaning import clean as clean_node

    for line in clean_node(Path(state_dir).absolute()):
        click.echo(line)


def _run(flags: dict[str, object], config_file: Path | None, takeover: bool) -> None:
    from router.config import load_settings
    from router.kernel import rights

    flags = {name.replace("__", "."): value for name, value in flags.items()}
    for name in _PATHS:
        if isinstance(path := flags.get(name), str) and path != IN_CLUSTER:
            flags[name] = str(Path(path).absolute())
    settings = load_settings(flags, os.environ, config_file)
    _log_to_stderr(settings)
    rights.check()
    _confine(settings)

    # numpy's BLAS, which nothing here uses, would start threads that spin and keep 30 MB.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from router import collector
    from router.control.listen import TcpListener, UnixSocket
    from router.daemon import Daemon
    from router.takeover.fdstore import FdStore
    from router.takeover.fdstore import inherited as from_systemd
    from router.takeover.inherited import Relief
    from router.takeover.predecessor import Predecessor

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    tls = settings.tls
    tcp = (
        TcpListener(str(tls.listen.address), tls.listen.port, str(tls.cert), str(tls.key), str(tls.ca)) if tls else None
    )
    store = FdStore(os.environ)
    inherited = from_systemd(os.environ, store)
    successor, left = _take_over(settings) if takeover else (None, None)
    # Looked at before anything is made, so that what is refused is refused in one line.
    if successor is None:
        UnixSocket(str(settings.socket_path)).check_free()
    if left is not None:
        inherited.close()  # systemd's are of an older process; those that we keep go into its store anew
    if tcp is not None:
        tcp.read()
        if left is None or str(tcp) not in left.listens:
            tcp.check_free()
    if left is not None and settings.web is not None and str(settings.web.listen) not in left.listens:
        from router.web.server import listen

        listen(settings.web.listen).close()
    daemon = Daemon(settings, left or inherited, successor or Relief(), store)
    relieved = threading.Event()

    def leave(stop_control: bool) -> None:
        """Let go of what a successor cannot share; it takes the control socket's place by itself."""
        if web is not None:
            web.stop()
        if stop_control:
            server.stop()

    def relieve() -> None:
        relieved.set()
        ended.set()

    predecessor = Predecessor(settings.socket_path, daemon.owner, leave, relieve)
    try:
        from router.control.server import serve  # only now: packets flow by now, and gRPC takes long to import

        if successor is not None:
            successor.leave(stop_control=tcp is not None)
            daemon.gate.open()
        web = _web(settings, daemon)
        predecessor.claim()
        server = serve(daemon, socket_path=str(settings.socket_path), tcp=tcp, replacing=successor is not None)
    except BaseException:
        predecessor.stop()
        daemon.withdraw()
        raise
    try:
        server.start()
        predecessor.start()
        if successor is not None:
            successor.close()  # only now: both sockets' paths are ours, and the other does not unlink them when it ends
        store.started()
        reconciler = _reconcile(settings)
        logging.getLogger("router").info("control at unix:%s", settings.socket_path)
        if web is not None:
            web.start()
        collector.settle()
        collector.keep_until(ended)
        if reconciler is not None:
            reconciler.stop()
        store.stopping()
        predecessor.stop()
        daemon.announce_stop()
        if web is not None:
            web.stop()
        # Nobody waits for one that was relieved: what is asked of it may be answered to the end.
        server.stop(_RELIEVED_GRACE_S if relieved.is_set() else _GRACE_S)
    finally:
        predecessor.stop()
        daemon.close()


def _confine(settings: Settings) -> None:
    """Give up rights before there is a thread that would keep them."""
    from router.kernel import confine

    listens = (settings.tls, settings.web)
    ports = [settings.underlay.port, *(each.listen.port for each in listens if each)]
    low_ports = min(ports) < confine.LOWEST_FREE_PORT
    for failure in confine.confine(settings.confine, low_ports=low_ports, runtimes=settings.reconcile):
        logging.getLogger("router").warning("%s", failure)


def _web(settings: Settings, daemon: Daemon) -> WebServer | None:
    """Bind the page's server, where one is asked for."""
    if settings.web is None:
        return None
    from router.web.app import App
    from router.web.server import WebServer

    return WebServer(App(daemon, settings.web.hosts), settings.web.listen)


def _take_over(settings: Settings) -> tuple[Successor | None, Inherited | None]:
    """Ask the router that runs here for all it has; None when there is no such router. Raise Refusal."""
    from dataclasses import asdict

    # All that is imported late else: from now on until we serve, the other refuses changes.
    from router.control import server  # noqa: F401
    from router.engine.choose import choose
    from router.kernel import conntrack  # noqa: F401
    from router.observe.trace import tracer  # noqa: F401
    from router.owner import identity
    from router.takeover.successor import Successor

    choose(settings.engine)
    if settings.etcd is not None:
        from router.subnets.etcd import source  # noqa: F401
    successor = Successor.knock(settings.socket_path)
    if successor is None:
        logging.getLogger("router").info(
            "no router runs at %s to take over from: starting as ever", settings.socket_path
        )
        return None, None
    inherited = successor.inherit(identity(settings), asdict(settings.offloads))
    return (successor, inherited) if inherited is not None else (None, None)


def _reconcile(settings: Settings) -> Reconciler | None:
    """Ask the runtimes that were named from now on; None when there are none."""
    if not settings.reconcile:
        return None
    from shim.runtimes.known import open_source
    from shim.runtimes.reconciler import Reconciler

    made = Reconciler(
        str(settings.socket_path),
        [open_source(text) for text in settings.reconcile],
        max(1.0, settings.reconcile_every_s),
        settings.reconcile_grace_s,
    )
    made.start()
    return made


def _log_to_stderr(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        from importlib.metadata import version

        from router.logs import JsonFormatter, resource

        whose = resource(settings.node, version("podwire"), os.environ, kubernetes=settings.kubernetes is not None)
        handler.setFormatter(JsonFormatter(whose))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("router").setLevel(settings.log_level.upper())
