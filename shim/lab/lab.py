"""A whole cluster on one machine: nodes, routers and Pods in namespaces of their own. Root is needed.

with Lab(nodes=3, pods=2) as lab:
    lab.pods[0].run(["ping", "-c1", str(lab.pods[5].addresses[0])])
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_interface
from types import TracebackType

from shim.client import ClientError
from shim.lab import netns, plan
from shim.lab.errors import LabError
from shim.lab.ledger import LabRecord, Ledger, PodRecord, write_whole
from shim.lab.node import LabNode
from shim.lab.plan import LabPlan
from shim.lab.pod import IF_NAME, LabPod
from shim.lab.process import ProcessId
from shim.lab.teardown import remove

Progress = Callable[[str], None]


class Lab:
    """One lab. As a context manager it is up inside the block; `up` and `down` do the same by hand."""

    def __init__(
        self,
        nodes: int = 2,
        pods: int = 1,
        *,
        name: str | None = None,
        underlay_mtu: int = 1500,
        underlay_family: int = 4,
        outside: bool = False,
        router_args: Sequence[str] = (),
        lent: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Plan a lab of `pods` Pods on each of `nodes` nodes; MTU in bytes, underlay family 4 or 6.

        `outside` adds a host beyond the cluster; `router_args` go to every router. A lent lab belongs to this
        process: `lab down --all` leaves it alone while the process lives.
        """
        name = name or f"lab{secrets.token_hex(3)}"
        self._say: Progress = progress or (lambda _text: None)
        maker = ProcessId.of(os.getpid())
        assert maker is not None
        self.name = name
        self.plan = LabPlan(name, nodes, pods, underlay_mtu, underlay_family, outside, tuple(router_args))
        self._record = LabRecord(self.plan, maker, lent)
        self._ledger = Ledger(name)
        self._claimed = False
        self._changing = threading.Lock()
        self.nodes = [LabNode(self._ledger, self.plan, node) for node in self.plan.nodes]
        self.pods: list[LabPod] = []

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def record(self) -> LabRecord:
        """What is written down of it."""
        return self._record

    def node(self, name: str) -> LabNode:
        """Return the node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def find(self, name: str) -> LabNode | LabPod:
        """Return the Pod ("n1p1") or node ("n1") of that name. LabError says what there is."""
        places: list[LabNode | LabPod] = [*self.nodes, *self.pods]
        for place in places:
            if place.name == name:
                return place
        known = ", ".join(place.name for place in places)
        raise LabError(f"lab {self.name} has no Pod or node {name!r} (it has: {known})")

    @property
    def outside_path(self) -> os.PathLike[str]:
        """Namespace of the host beyond the cluster."""
        return netns.path_of(self.plan.outside_netns)

    def up(self) -> None:
        """Make it all. Whatever goes wrong, nothing is left."""
        netns.need_root()
        self._ledger.claim()
        self._claimed = True
        with self._ledger.locked():
            try:
                self._build()
            except BaseException:
                self._remove()
                raise

    def down(self) -> None:
        """Remove it all. Never up, or down already: nothing to do."""
        if not self._claimed:
            return
        with self._changing:
            if self._ledger.path.exists():
                with self._ledger.locked():
                    self._remove()
            else:  # `podwire lab down` was faster
                self._forget()

    def add_pod(self, node: LabNode, ip: Sequence[str] = ()) -> LabPod:
        """Make one more Pod on a node and attach it, with these addresses if any are given; LabError leaves nothing."""
        with self._changed():
            record = self._new_pod(node)
            without = self._record
            self._write(without.with_pod(record))
            try:
                netns.create(record.netns, plan.POD_SYSCTLS)
                pod = LabPod(record, node)
                self._attach(node, [pod], ip)
            except BaseException:
                netns.delete(record.netns)
                self._write(without)
                raise
            self._write(without.with_pod(pod.record))
            self.pods.append(pod)
        return pod

    def remove_pod(self, pod: LabPod) -> None:
        """Detach a Pod and remove its namespace."""
        with self._changed():
            with pod.node.client() as client:
                client.detach(pod.sandbox_id, IF_NAME)
            netns.delete(pod.netns)
            self._write(replace(self._record, pods=tuple(p for p in self._record.pods if p.name != pod.name)))
            self.pods.remove(pod)

    def write_subnets(
        self, subnets: Mapping[str, tuple[str, Sequence[str]]] | None = None, nodes: Iterable[LabNode] | None = None
    ) -> None:
        """Write the subnet table, node name to (endpoint, subnets), for these nodes' routers.

        Without a table: the lab's own. Without nodes: all.
        """
        if subnets is None:
            subnets = {node.name: (node.endpoint, [str(s) for s in node.plan.subnets]) for node in self.nodes}
        rows = (
            f"[[node]]\nname = {json.dumps(name)}\nendpoint = {json.dumps(endpoint)}\nsubnets = {json.dumps(list(own))}\n"
            for name, (endpoint, own) in subnets.items()
        )
        content = "\n".join(rows)
        for node in self.nodes if nodes is None else nodes:
            write_whole(node.subnets_path, content)

    def _build(self) -> None:
        # The ledger comes first, whole: from here on `down` knows every name.
        first = [
            PodRecord(f"{node.name}p{number}", node.name, self.plan.pod_netns(f"{node.name}p{number}"))
            for node in self.nodes
            for number in range(1, self.plan.pods_per_node + 1)
        ]
        self._write(replace(self._record, pods=tuple(first)))
        self._say(f"making {len(self.plan.namespaces) + len(first)} namespaces")
        self._make_namespaces(first)
        self._say("linking the underlay")
        netns.ip_batch(netns.path_of(self.plan.underlay_netns), plan.underlay_links(self.plan))
        for node in self.nodes:
            netns.ip_batch(node.netns_path, plan.node_links(self.plan, node.plan))
            self._ledger.node_path(node.name).mkdir()
        if self.plan.with_outside:
            netns.ip_batch(netns.path_of(self.plan.outside_netns), plan.outside_links(self.plan))
        self.write_subnets()
        self._say(f"starting {len(self.nodes)} routers")
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_ready()
        self._say(f"attaching {len(first)} Pods")
        self._attach_all([LabPod(record, self.node(record.node)) for record in first])
        self._write(replace(self._record, pods=tuple(pod.record for pod in self.pods), complete=True))

    def _make_namespaces(self, pods: Iterable[PodRecord]) -> None:
        netns.create(self.plan.underlay_netns, plan.UNDERLAY_SYSCTLS)
        if self.plan.with_outside:
            netns.create(self.plan.outside_netns, plan.POD_SYSCTLS)
        for node in self.nodes:
            netns.create(node.netns, plan.NODE_SYSCTLS)
        for pod in pods:
            netns.create(pod.netns, plan.POD_SYSCTLS)

    def _attach_all(self, pods: Sequence[LabPod]) -> None:
        self.pods = list(pods)
        groups = [[pod for pod in pods if pod.node is node] for node in self.nodes]
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._attach, self.nodes, groups))

    def _attach(self, node: LabNode, pods: Sequence[LabPod], ip: Sequence[str] = ()) -> None:
        """Have the router of a node attach these Pods, and note their addresses."""
        if not pods:
            return
        try:
            with node.client() as client:
                for pod in pods:
                    answer = client.attach(
                        pod.sandbox_id,
                        IF_NAME,
                        str(pod.netns_path),
                        addresses=ip,
                        labels={"namespace": self.name, "name": pod.name},
                    )
                    own = tuple(str(ip_interface(address).ip) for address in answer.addresses)
                    pod.record = replace(pod.record, addresses=own)
        except ClientError as error:
            raise LabError(f"{node.name} did not attach a Pod: {error}") from error

    def _new_pod(self, node: LabNode) -> PodRecord:
        taken = {pod.name for pod in self._record.pods}
        number = next(n for n in range(1, len(taken) + 2) if f"{node.name}p{n}" not in taken)
        name = f"{node.name}p{number}"
        return PodRecord(name, node.name, self.plan.pod_netns(name))

    def _write(self, record: LabRecord) -> None:
        self._ledger.write(record)
        self._record = record

    def _remove(self) -> None:
        remove(self._ledger, self._record)
        self._forget()

    def _forget(self) -> None:
        self._claimed = False
        for node in self.nodes:
            node.kill9()

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with self._changing, self._ledger.locked():
            yield
