"""A whole cluster on one machine: nodes, routers and Pods in namespaces of their own. Root is needed.

with Lab(nodes=3, pods=2) as lab:
    lab.pods[0].run(["ping", "-c1", str(lab.pods[5].addresses[0])])
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_interface
from types import TracebackType

from shim.client import ClientError
from shim.lab import netns, plan, wiring
from shim.lab.errors import LabError
from shim.lab.ledger import LabRecord, Ledger, PodRecord, write_whole
from shim.lab.links import REST, Group, Links, LinksState
from shim.lab.node import LabNode
from shim.lab.plan import LabPlan
from shim.lab.pod import IF_NAME, LabPod
from shim.lab.process import ProcessId
from shim.lab.relay.faults import Faults
from shim.lab.starting import start_all, wait_known
from shim.lab.store import LabStore, need_etcd
from shim.lab.teardown import end_inside, remove

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
        store: str = "file",
        etcd_ttl_s: int = 10,
        networks: Sequence[str] = (),
        router_args: Sequence[str] = (),
        lent: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Plan a lab of `pods` Pods on each of `nodes` nodes; MTU in bytes, underlay family 4 or 6.

        `outside` adds a host beyond the cluster; `store="etcd"` an etcd of which the nodes lease their subnets, for
        `etcd_ttl_s`, of `networks` if they are given; `router_args` go to every router. A lent lab belongs to this process: `lab down --all` leaves it
        alone while the process lives.
        """
        name = name or f"lab{secrets.token_hex(3)}"
        self._say: Progress = progress or (lambda _text: None)
        maker = ProcessId.of(os.getpid())
        assert maker is not None
        self.name = name
        self.plan = LabPlan(
            name, nodes, pods, underlay_mtu, underlay_family, outside, tuple(router_args), store, etcd_ttl_s
        )
        if networks:
            self.plan = replace(self.plan, networks=tuple(networks))
        self._record = LabRecord(self.plan, maker, lent)
        self._ledger = Ledger(name)
        self._links = Links(self._ledger, self.plan)
        self._store = LabStore(self._ledger, self.plan)
        self._claimed = False
        self._changing = threading.Lock()
        self.nodes = [LabNode(self._ledger, self.plan, node) for node in self.plan.nodes]
        self.pods: list[LabPod] = []

    @classmethod
    def open(cls, name: str) -> Lab:
        """Return a lab that is up, whoever brought it up. LabError when there is none of that name, or only half of it."""
        record = Ledger(name).read()
        if record is None or not record.complete:
            raise LabError(f"lab {name} is half made: remove it with `podwire lab down --name {name}`")
        lab = cls(name=name, store=record.plan.store)
        lab.nodes.clear()
        lab._adopt(record)
        lab._claimed = True
        return lab

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
        """Return the node of that name. LabError says what there is."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabError(f"lab {self.name} has no node {name!r} (it has: {', '.join(node.name for node in self.nodes)})")

    def find(self, name: str) -> LabNode | LabPod:
        """Return the Pod ("n1p1") or node ("n1") of that name. LabError says what there is."""
        places: list[LabNode | LabPod] = [*self.nodes, *self.pods]
        for place in places:
            if place.name == name:
                return place
        known = ", ".join(place.name for place in places)
        raise LabError(f"lab {self.name} has no Pod or node {name!r} (it has: {known})")

    @property
    def store(self) -> LabStore:
        """The etcd of a lab made with `store="etcd"`. LabError when it has none."""
        if self.plan.store != "etcd":
            raise LabError(f"lab {self.name} has no etcd: its subnet table is a file (--store etcd makes one)")
        return self._store

    @property
    def outside_path(self) -> os.PathLike[str]:
        """Namespace of the host beyond the cluster."""
        return netns.path_of(self.plan.outside_netns)

    def up(self) -> None:
        """Make it all. Whatever goes wrong, nothing is left."""
        netns.need_root()
        if self.plan.store == "etcd":
            need_etcd()
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
            self._links.forget(pod.name)
            self._write(replace(self._record, pods=tuple(p for p in self._record.pods if p.name != pod.name)))
            self.pods.remove(pod)

    def attach_again(self, pod: LabPod, ip: Sequence[str] = ()) -> None:
        """Detach a Pod and attach it anew, with these addresses if any are given. Attached or not before, it is then."""
        with self._changed():
            with pod.node.client() as client:
                client.detach(pod.sandbox_id, IF_NAME)
            self._attach(pod.node, [pod], ip)
            self._write(self._record.with_pod(pod.record))
            self._links.look_again(pod.name)

    def add_node(self) -> LabNode:
        """Have one more node join, without Pods; return it when its router answers. LabError leaves nothing.

        Several threads may do so at once: only what comes before the router's start is done one by one.
        """
        with self._changed():
            without = self._record
            more = without.plan.with_one_more()
            self._write(replace(without, plan=more))
            self._adopt(self._record)
            node = self.nodes[-1]
            try:
                wiring.add_node(more, node.plan)
                self._ledger.node_path(node.name).mkdir()
                if more.store == "file":
                    self.write_subnets()
                node.start(wait=False)
            except BaseException:
                self._remove_node(node, without)
                raise
        try:
            node.wait_ready()
        except BaseException:
            self.remove_node(node)
            raise
        return node

    def remove_node(self, node: LabNode) -> None:
        """Have a node leave with all its Pods. A lease of its subnets ends by itself, in its own time."""
        with self._changed():
            pods = tuple(pod for pod in self._record.pods if pod.node != node.name)
            self._remove_node(node, replace(self._record, plan=self._record.plan.without(node.name), pods=pods))

    def partition(self, left: Group, right: Group, *, one_way: bool = False) -> None:
        """Cut every link between two groups ("n1", "n1,n2", ["n1", "store"], "rest"), or only from left to right."""
        with self._changed():
            self._links.partition(left, right, one_way=one_way)

    def heal(self, left: Group = REST, right: Group = REST, *, only_partitions: bool = False) -> None:
        """Make links between two groups as good as new, without groups all; or end partitions, and leave faults."""
        with self._changed():
            self._links.heal(left, right, only_partitions=only_partitions)

    def link(
        self,
        left: Group,
        right: Group,
        *,
        loss: float = 0.0,
        delay_s: float = 0.0,
        jitter_s: float = 0.0,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        rate_bits_per_s: int = 0,
        mtu_hole_bytes: int = 0,
        one_way: bool = False,
        seed: int = 0,
    ) -> None:
        """Give every link between two groups these faults, as `Faults` has them, in place of those it had.

        Groups of Pods ("n1p1", "n2p1,n2p2") have them in what they say to each other only.
        """
        faults = Faults(loss, delay_s, jitter_s, reorder, duplicate, rate_bits_per_s, mtu_hole_bytes)
        with self._changed():
            self._links.impair(left, right, faults, one_way=one_way, seed=seed)

    def links(self) -> LinksState:
        """Return what is wrong with links, and what was counted on them."""
        return self._links.state()

    def write_subnets(
        self, subnets: Mapping[str, tuple[str, Sequence[str]]] | None = None, nodes: Iterable[LabNode] | None = None
    ) -> None:
        """Write the subnet table, node name to (endpoint, subnets), for these nodes' routers.

        Without a table: the lab's own. Without nodes: all. Only where the table is a file.
        """
        if self.plan.store != "file":
            raise LabError(f"the nodes of lab {self.name} lease their subnets: there is no table to write")
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
        wiring.make_namespaces(self.plan, first)
        self._say("linking the underlay")
        wiring.wire(self.plan)
        for node in self.nodes:
            self._ledger.node_path(node.name).mkdir()
        if self.plan.store == "etcd":
            self._say("starting etcd")
            self.store.start()
        else:
            self.write_subnets()
        start_all(self.nodes, self._say)
        if self.plan.store == "etcd":
            wait_known(self.nodes)
        self._say(f"attaching {len(first)} Pods")
        self._attach_all([LabPod(record, self.node(record.node)) for record in first])
        self._write(replace(self._record, pods=tuple(pod.record for pod in self.pods), complete=True))

    def _attach_all(self, pods: Sequence[LabPod]) -> None:
        groups = [[pod for pod in pods if pod.node is node] for node in self.nodes]
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._attach, self.nodes, groups))
        self.pods[:] = pods

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

    def _adopt(self, record: LabRecord) -> None:
        """Take a record for what there is. Nodes and Pods that stay are the same objects as before."""
        self._record, self.plan = record, record.plan
        self._links.plan = record.plan
        nodes = {node.name: node for node in self.nodes}
        self.nodes[:] = [nodes.get(each.name) or LabNode(self._ledger, record.plan, each) for each in record.plan.nodes]
        for name in nodes.keys() - {node.name for node in self.nodes}:
            nodes[name].kill9()  # it is dead; its exit status is ours to collect
        pods = {pod.name: pod for pod in self.pods}
        self.pods[:] = [
            pods.get(each.name) or LabPod(each, self.node(each.node)) for each in record.pods if each.addresses
        ]

    def _remove_node(self, node: LabNode, rest: LabRecord) -> None:
        """Remove a node, whatever there is of it, and leave the rest as the record says."""
        pods = [pod for pod in self._record.pods if pod.node == node.name]
        gone = (node.netns, *(pod.netns for pod in pods))
        self._links.forget(node.name, *(pod.name for pod in pods))
        node.kill9()
        end_inside(gone)
        wiring.remove_node(self.plan, node.plan, gone)
        shutil.rmtree(self._ledger.node_path(node.name), ignore_errors=True)
        self._write(rest)
        self._adopt(rest)
        if rest.plan.store == "file":
            self.write_subnets()

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
        self._store.kill9()
        self._links.kill9()

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with self._changing, self._ledger.locked():
            if (record := self._ledger.read()) is not None:  # another program may have changed it meanwhile
                self._adopt(record)
            yield
