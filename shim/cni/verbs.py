"""The verbs, each a call or none of the router."""

from __future__ import annotations

from shim.cni.config import NEWEST, VERSIONS, Config
from shim.cni.environment import Environment
from shim.cni.errors import (
    IO,
    LIMITED,
    MISSING,
    UNAVAILABLE,
    UNKNOWN_CONTAINER,
    CniError,
    of_router,
)
from shim.cni.result import checked_mac, own_part, result, synthetic_mac
from shim.lean import router
from shim.lean.call import call
from shim.lean.errors import RouterError

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT_S = 10.0
_GC_TIMEOUT_S = 60.0
_POD_LABELS = {"K8S_POD_NAMESPACE": "namespace", "K8S_POD_NAME": "name", "K8S_POD_UID": "uid"}


def add(environment: Environment, config: Config) -> dict[str, Any]:
    """Give the sandbox its interface."""
    config.check_own()
    container_id, if_name = environment.container_id, environment.if_name
    arguments = environment.arguments
    mac = checked_mac(config.mac or arguments.get("MAC", "")) if config.mac or arguments.get("MAC") else ""
    labels = {ours: arguments[theirs] for theirs, ours in _POD_LABELS.items() if arguments.get(theirs)}
    asked = config.addresses or [text.partition("/")[0] for text in arguments.get("IP", "").split(",") if text]
    previous, dns = config.previous, config.dns
    try:
        attachment = router.attach(
            config.socket_path,
            container_id,
            if_name,
            environment.netns_path,
            wait_s=config.wait_s,
            addresses=asked,
            mtu_bytes=config.mtu_bytes,
            labels={**config.labels, **labels},
            owner=config.owner,
            ports=config.ports,
            limits=config.limits,
        )
    except RouterError as error:
        raise of_router(error) from None
    return result(config.version, attachment, mac or synthetic_mac(container_id, if_name), dns, previous)


def delete(environment: Environment, config: Config) -> None:
    """Take the sandbox's interface away, whatever there is of it; when no router answers, the next one does it."""
    try:
        router.detach(config.socket_path, environment.container_id, environment.if_name)
    except RouterError as error:
        raise of_router(error) from None
    except OSError as error:
        why = f"no router answers, and {error.filename or 'a tombstone'} cannot be written: {error.strerror}"
        raise CniError(IO, f"cannot note the detachment: {why}") from None


def check(environment: Environment, config: Config) -> None:
    """Look whether all that ADD answered is still so."""
    container_id, if_name, netns_path = environment.container_id, environment.if_name, environment.netns_path
    addresses, routes = own_part(config.previous, if_name, netns_path)
    request = {
        "key": {"sandbox_id": container_id, "if_name": if_name},
        "netns_path": netns_path,
        "addresses": addresses,
        "routes": routes,
    }
    try:
        call(config.socket_path, "Check", request, timeout_s=_TIMEOUT_S)
    except RouterError as error:
        code = {"NOT_FOUND": UNKNOWN_CONTAINER, "FAILED_PRECONDITION": MISSING}.get(error.code)
        raise (CniError(code, error.message) if code else of_router(error)) from None


def status(config: Config) -> str:
    """Raise CniError when an ADD could not be served; return a note for the log, if there is one.

    One unreachable peer of many does not make a node unready: it would take down every node for one that is dead.
    """
    try:
        found = call(config.socket_path, "GetStatus", {}, timeout_s=_TIMEOUT_S)
    except RouterError as error:
        raise CniError(UNAVAILABLE, error.message) from None
    if not found["subnets"]:
        raise CniError(UNAVAILABLE, f"the subnet table gives node {found['node']} no subnet: no Pod can be attached")
    lease = (found["source"] or {}).get("lease")
    if lease is not None and not lease["held"]:
        said = f"the lease of node {found['node']} is not held ({lease['why']}): no address is given out"
        raise CniError(UNAVAILABLE, said)
    by_family: dict[bool, list[dict[str, Any]]] = {}
    for each in found["free_addresses"]:
        by_family.setdefault(":" in each["subnet"], []).append(each)
    for subnets in by_family.values():
        if not any(each["free"] for each in subnets):
            names = ", ".join(each["subnet"] for each in subnets)
            raise CniError(UNAVAILABLE, f"no address is free in {names}: detach Pods, or give the node another subnet")
    count = found["peers_unreachable"]
    if not count:
        return ""
    said = f"{count} of {found['peers']} peers cannot be reached: {'; '.join(found['unreachable'])}"
    if count == found["peers"]:
        raise CniError(LIMITED, said)
    return said


def collect(config: Config) -> None:
    """Release every attachment of the network that the runtime does not name (GC)."""
    request = {"live": config.valid_attachments, "owner": config.owner, "as_of_ns": router.BEGAN_NS}
    try:
        call(config.socket_path, "Sync", request, timeout_s=_GC_TIMEOUT_S)
    except RouterError as error:
        # Some were released, and others could not be: which, the router says.
        raise of_router(error) from None


def version(config: Config) -> dict[str, Any]:
    """Say what is spoken, in the version that was asked in if it is one of them."""
    asked = config.version
    return {"cniVersion": asked if asked in VERSIONS else NEWEST, "supportedVersions": list(VERSIONS)}
