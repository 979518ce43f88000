"""Prometheus' own tool reads what a router says, and the alerts of docs/monitoring."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shim.lab import Lab
from tests.conformance import parts
from tests.conformance.test_web_page import PORT, ask, web_lab  # noqa: F401 - a fixture

ALERTS = Path(__file__).resolve().parents[2] / "docs/monitoring/alerts.yaml"


def promtool(*arguments: str | Path, **options: object) -> str:
    assert parts.PROMTOOL.exists(), "there is no promtool: scripts/conformance-setup.sh unpacks it"
    done = subprocess.run(
        [parts.PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False, **options  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def test_metrics_pass_promtool(web_lab: Lab) -> None:  # noqa: F811 - the fixture
    near, far = web_lab.pods[0], web_lab.pods[-1]
    near.run(["ping", "-n", "-q", "-c5", "-i0.05", str(far.addresses[0])], timeout=30)
    text = ask(near.node, PORT, "/metrics").decode()
    assert "podwire_peer_round_trip_seconds_bucket" in text
    assert promtool("check", "metrics", input=text) == ""


def test_alerts_pass_promtool() -> None:
    assert "15 rules found" in promtool("check", "rules", ALERTS)


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Series as a router writes them, through Prometheus' own evaluation."""
    tests = tmp_path / "tests.yaml"
    tests.write_text(
        f"""
rule_files: [{ALERTS}]
evaluation_interval: 30s
tests:
  - interval: 30s
    input_series:
      - {{series: 'podwire_peer_up{{instance="a", node="b", endpoint="192.0.2.2:6081"}}', values: '1x4 0x20'}}
      - {{series: 'podwire_dropped_packets_total{{instance="a", reason="no_route"}}', values: '0+600x40'}}
      - {{series: 'podwire_dropped_packets_total{{instance="a", reason="not_routable"}}', values: '0+600x40'}}
      - {{series: 'podwire_peer_mtu_bytes{{instance="a", node="b", endpoint="192.0.2.2:6081"}}', values: '1300x40'}}
      - {{series: 'podwire_overlay_mtu_bytes{{instance="a"}}', values: '1452x40'}}
    alert_rule_test:
      - {{eval_time: 2m, alertname: PodwirePeerDown, exp_alerts: []}}
      - eval_time: 8m
        alertname: PodwirePeerDown
        exp_alerts:
          - exp_labels: {{severity: warning, instance: a, node: b, endpoint: "192.0.2.2:6081"}}
            exp_annotations:
              summary: a does not reach node b at 192.0.2.2:6081.
              description: Packets to its Pods are rejected. `podwire peers` says since when and why; is UDP 6081 let through both ways?
      - eval_time: 12m
        alertname: PodwireDrops
        exp_alerts:
          - exp_labels: {{severity: warning, instance: a, reason: no_route}}
            exp_annotations:
              summary: "a drops 20 packets a second: no_route."
              description: "`podwire why` on that node lists the flows, and what to do."
      - eval_time: 12m
        alertname: PodwirePathMtuSmall
        exp_alerts:
          - exp_labels: {{severity: info, instance: a, node: b, endpoint: "192.0.2.2:6081"}}
            exp_annotations:
              summary: The path from a to b carries only 1300 bytes.
              description: Pods are told, and TCP goes on; whatever on the way has the smaller MTU may be set wrong. `podwire trace` shows where.
"""
    )
    promtool("test", "rules", tests)
