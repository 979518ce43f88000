"""What the conformance tests share. They run only when asked for by name: `make conformance`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shim.lab import Lab
from tests.accounts import assert_balanced
from tests.conformance import images, network, parts
from tests.conformance.cni_sides import Side, both
from tests.conformance.containerd import Containerd
from tests.conformance.kubelet import Kubelet
from tests.conformance.network import Network
from tests.conformance.remnants import Census

_HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer Pods and kills in the churn")
    parser.addoption("--write-faults", action="store_true", help="make docs/faults.md of the answers")
    parser.addoption("--write-screenshots", action="store_true", help="make the pictures of docs/web.md")
    parser.addoption("--seed", type=int, default=None, help="seed of the churn; printed when it starts")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out of a run of all tests: they install runtimes, and take minutes."""
    asked = any(
        _HERE in (path := Path(word.partition("::")[0]).absolute()).parents or path == _HERE for word in config.args
    )
    return None if asked else True


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, as a file."""
    return images.build(tmp_path_factory.mktemp("image") / "busybox.tar")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Lab nodes with a containerd and a kubelet each."""

    lab: Lab
    kubelets: list[Kubelet]

    def census(self) -> Census:
        return Census(self.lab.nodes)


ClusterMaker = Callable[..., Cluster]


@pytest.fixture
def make_cluster(image: Path) -> Iterator[ClusterMaker]:
    """Make clusters of a containerd's version, with the router's network unless another is given."""
    with ExitStack() as stack:
        labs = []

        def make(
            version: str = "1.6",
            nodes: int = 2,
            cni_version: str = "1.0.0",
            networked: bool = True,
            outside: bool = False,
        ) -> Cluster:
            try:
                release = parts.release(version)
            except parts.MissingPart as missing:
                pytest.skip(str(missing))
            lab = stack.enter_context(
                Lab(nodes=nodes, pods=0, outside=outside, name=f"cf{os.getpid()}-{secrets.token_hex(2)}")
            )
            labs.append(lab)
            kubelets = []
            for node in lab.nodes:
                wanted: Network = network.podwire(node.socket, cni_version) if networked else network.NONE
                containerd = stack.enter_context(Containerd(node, release, wanted, image))
                kubelets.append(stack.enter_context(Kubelet(containerd)))
            return Cluster(lab, kubelets)

        yield make
        for lab in labs:
            assert_balanced(lab)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    with both(tmp_path_factory) as made:
        yield made


@pytest.fixture
def native(sides: list[Side]) -> Side:
    return next(side for side in sides if side.client == "native")
