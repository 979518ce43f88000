"""`containerd-shim-podwire-v2`: what containerd asks of a shim, handed on to the stock runc shim.

    start    a sandbox or a container of its own? → its namespace, made or adopted → attach → the stock shim's start
    delete   the stock shim's delete → detach → the namespace we made
    else     the stock shim

containerd takes what start prints, on either stream, for an address: only the stock shim prints. It calls delete once for
every shim that has started, however that ended, and never for a start that failed: so what fails here undoes itself.
"""

from __future__ import annotations

import os
import sys

from shim.containerd import netns
from shim.containerd.arguments import Arguments
from shim.lean import router
from shim.lean.bundle import Bundle
from shim.lean.errors import RouterError
from shim.lean.logbook import note

TYPE_CHECKING = False  # `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_STOCK = "containerd-shim-runc-v2"
_CRI = "io.kubernetes.cri."
_CRI_NAMESPACE = "k8s.io"
_IF_NAME = "eth0"


def main() -> int:
    """Do what containerd asks; return the exit status."""
    arguments = Arguments(sys.argv[1:])
    if arguments.verb == "start":
        return _start(arguments)
    if arguments.verb == "delete":
        return _delete(arguments)
    return _become_stock()


def _start(arguments: Arguments) -> int:
    try:
        bundle = Bundle(".")
    except (OSError, ValueError) as error:
        _log(f"{arguments.container_id}: {error}")
        _become_stock()  # which has words of its own for it
    namespace = bundle.namespace
    if namespace is None or not _is_ours(bundle):
        _become_stock()
    undo: list[Callable[[], object]] = []
    status = 1
    try:
        path = namespace.get("path") or ""
        if not path:
            path = _own_netns(arguments)
            netns.make(path)
            undo.append(lambda: netns.remove(path))
            bundle.join(path)
            undo.append(lambda: bundle.join(""))
        sandbox_id = _sandbox_id(arguments, bundle)
        wanted = {"labels": _labels(bundle, arguments), **bundle.wishes}
        try:
            owner = f"containerd:{arguments.namespace}"
            found = router.attach(_socket_path(), sandbox_id, _IF_NAME, path, owner=owner, **wanted)
        except RouterError as error:
            # Without an answer it may have been made, or may be yet. What was refused is somebody else's to keep.
            if error.nobody_answered:
                undo.append(lambda: router.detach(_socket_path(), sandbox_id, _IF_NAME))
            raise
        undo.append(lambda: router.detach(_socket_path(), sandbox_id, _IF_NAME))
        _log(f"{sandbox_id}: attached with {', '.join(found['addresses'])} in {path}")
        status = _run_stock()
    except (RouterError, OSError, ValueError) as error:
        why = getattr(error, "message", "") or str(error)
        _log(f"{arguments.container_id}: cannot start: {why}")
        sys.stderr.write(f"podwire: {why}\n")
    finally:
        for step in reversed(undo) if status else ():
            _try(step)
    return status


def _delete(arguments: Arguments) -> int:
    try:
        bundle = Bundle(arguments.flags.get("bundle") or ".")
    except (OSError, ValueError):
        bundle = None  # gone already; the ids say enough
    status = _run_stock()
    if bundle is None or (bundle.namespace is not None and _is_ours(bundle)):
        sandbox_id = _sandbox_id(arguments, bundle)
        _try(lambda: _log(f"{sandbox_id}: detached {router.detach(_socket_path(), sandbox_id, _IF_NAME)}"))
        _try(lambda: netns.remove(_own_netns(arguments)))
    return status


def _own_netns(arguments: Arguments) -> str:
    return netns.path_of(arguments.address, arguments.namespace, arguments.container_id)


def _is_ours(bundle: Bundle) -> bool:
    """Tell whether a container has a network of its own; within a Pod only the sandbox has."""
    return bundle.annotations.get(f"{_CRI}container-type", "sandbox") == "sandbox"


def _sandbox_id(arguments: Arguments, bundle: Bundle | None) -> str:
    """Return the router's id of a container: a Pod's sandbox is known by the id that its CNI plugins are given."""
    cri = f"{_CRI}container-type" in bundle.annotations if bundle else arguments.namespace == _CRI_NAMESPACE
    return arguments.container_id if cri else f"{arguments.namespace}:{arguments.container_id}"


def _labels(bundle: Bundle, arguments: Arguments) -> dict[str, str]:
    known = {"name": f"{_CRI}sandbox-name", "namespace": f"{_CRI}sandbox-namespace", "uid": f"{_CRI}sandbox-uid"}
    found = {label: bundle.annotations[name] for label, name in known.items() if bundle.annotations.get(name)}
    return found or {"name": arguments.container_id}


def _run_stock() -> int:
    """Run the stock shim with the same words, streams and directory; return its exit status."""
    child = os.fork()
    if not child:
        _become_stock()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


def _become_stock() -> NoReturn:
    stock = os.environ.get("PODWIRE_STOCK_SHIM", _STOCK)
    why = ""
    # On PATH, or beside containerd, as containerd itself looks for shims.
    for path in (stock, os.path.join(os.path.dirname(Arguments(sys.argv[1:]).publisher), stock)):  # noqa: PTH118, PTH120
        try:
            os.execvp(path, [path, *sys.argv[1:]])  # noqa: S606
        except OSError as error:
            why = why or f"cannot run {stock}: {error.strerror}"
    _log(why)
    sys.stderr.write(f"podwire: {why}; it comes with containerd\n")
    os._exit(127)


def _try(step: Callable[[], object]) -> None:
    try:
        step()
    except (RouterError, OSError) as error:
        _log(f"left behind: {error}")


def _socket_path() -> str:
    return os.environ.get("PODWIRE_SOCKET", router.DEFAULT_SOCKET)


def _log(message: str) -> None:
    note(os.environ.get("PODWIRE_SHIM_LOG", "/var/log/podwire/shim.log"), message)
