"""Two hundred Pods made and removed, with containerd or the router killed in between: nothing is left of any."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.conformance.churn import Churn, plan
from tests.conformance.conftest import ClusterMaker

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]


def test_nothing_is_left_of_pods_whose_runtime_and_router_were_killed(
    make_cluster: ClusterMaker, quick: bool, request: pytest.FixtureRequest
) -> None:
    cluster = make_cluster()
    census = cluster.census()
    seed = request.config.getoption("--seed")
    seed = random.randrange(1 << 32) if seed is None else seed
    print(f"churn with --seed {seed}")
    fates = plan(seed, *(40, 6) if quick else (200, 20))
    churn = Churn(cluster.kubelets)
    churn.run(fates)
    print(f"{len(fates)} Pods, {sum(fate.kill is not None for fate in fates)} kills, {churn.retries} calls made again")
    for kubelet in cluster.kubelets:
        assert not kubelet.pod_ids()
    # What a containerd forgot that was killed before it wrote a sandbox down: only its list of sandboxes tells.
    syncs = [
        kubelet.node.popen(
            [
                *(sys.executable, "-m", "router", "sync", "--socket", str(kubelet.node.socket)),
                *("--containerd", str(kubelet.containerd.socket), "--grace", "5", "--every", "1"),
            ],
            cwd=ROOT,
        )
        for kubelet in cluster.kubelets
    ]
    try:
        census.assert_nothing_left()
    finally:
        for sync in syncs:
            sync.terminate()
            sync.wait()
