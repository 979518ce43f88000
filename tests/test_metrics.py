"""Metrics: every count, by whom, under names that Prometheus likes; and alerts and dashboard that ask for what is there."""

from __future__ import annotations

import json
import logging
import random
import re
import sys
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from router.engine.interface import BATCH_BOUNDS, EngineCounters
from router.logs import JsonFormatter, resource
from router.metrics.collector import MOST_PEERS, OTHERS, Collector, Metrics
from router.metrics.histograms import Histogram
from router.metrics.series import Series
from router.model import NODE_KEY, Attachment, AttachmentKey, DropReason, Endpoint, Node, SubnetTable, Tally
from router.peers.health import Health, PeerState
from router.peers.prober import NO_ROUND_TRIPS, Report
from router.status import Counters, PeerStatus, Status
from tests.control_daemon import THERE, MemoryDaemon

MONITORING = Path(__file__).resolve().parent.parent / "docs/monitoring"
POD = {"pod": "pod", "sandbox_id": "pod", "ifname": "eth0"}
PEER = {"node": "there", "endpoint": "[2001:db8::2]:7000"}


def scraped(facts: object) -> dict[str, Metric]:
    text, content_type = Metrics(facts).scrape("text/plain")
    assert content_type.startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) == 1, f"{name}{labels}: {len(found)} samples"
    return found[0]


class BusyDaemon(MemoryDaemon):
    """Has counted something of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.pod = Tally(10, 1000, 9, 3, 4, {DropReason.NO_ROUTE: 2, DropReason.SPOOFED_SOURCE: 1}, 5, 500, 1)
        self.peer = Tally(70, 7000, 17, 60, 8, {DropReason.TOO_BIG: 2}, 6, 600, 2, 30)

    def counters(self) -> Counters:
        engine = EngineCounters(
            {AttachmentKey("pod", "eth0"): self.pod, NODE_KEY: Tally()},
            {THERE.endpoint: self.peer},
            Tally(4, 400, 4, dropped={DropReason.UNKNOWN_PEER: 4}),
            Tally(20, 2000, 10, 19, dropped={DropReason.TOO_BIG: 1}),
            icmp_suppressed=8,
            socket_drops=9,
            restarts=10,
            batches=(5, 0, 3, 0, 0, 0, 1),
        )
        return Counters(engine, {AttachmentKey("pod", "eth0"): 6}, "epoch-1")

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        trips = NO_ROUND_TRIPS.plus(0.0001).plus(0.002).plus(7.0)
        report = Report(PeerState.UP, 0.5, 0.0015, 0.001, 0.25, 1400, "", trips)
        return self.table, (PeerStatus(THERE, report, self.peer),)


def test_every_count_of_a_tally_is_there_for_pod_peer_stranger_and_gone() -> None:
    daemon = BusyDaemon()
    families, engine = scraped(daemon), daemon.counters().engine
    whose = {
        "attachment": (daemon.pod, POD),
        "peer": (daemon.peer, PEER),
        "stranger": (engine.strangers, {}),
        "gone": (engine.gone, {}),
    }
    for kind, (tally, labels) in whose.items():
        for name in Tally.__slots__:
            if name == "dropped":
                for reason, packets in tally.dropped.items():
                    found = value(families, f"podwire_{kind}_dropped_packets_total", reason=str(reason), **labels)
                    assert found == packets
            elif name != "control_packets" or kind == "peer":
                assert value(families, f"podwire_{kind}_{name}_total", **labels) == getattr(tally, name), (kind, name)
    assert value(families, "podwire_attachment_kernel_dropped_packets_total", **POD) == 6
    assert value(families, "podwire_icmp_suppressed_total") == 8
    assert value(families, "podwire_socket_dropped_trains_total") == 9
    assert value(families, "podwire_engine_restarts_total") == 10


def test_drops_of_everybody_add_up_and_every_reason_is_there_from_the_start() -> None:
    families = scraped(BusyDaemon())
    found = {s.labels["reason"]: s.value for s in families["podwire_dropped_packets"].samples}
    assert {reason: n for reason, n in found.items() if n} == {
        "no_route": 2, "spoofed_source": 1, "too_big": 3, "unknown_peer": 4,
    }  # fmt: skip
    assert set(found) == set(map(str, DropReason))


def test_state_of_router_table_and_peers() -> None:
    families = scraped(BusyDaemon())
    assert value(families, "podwire_router_info", node="here", version="0.1.0", engine="python", epoch="epoch-1") == 1
    assert value(families, "podwire_free_addresses", subnet="10.1.1.0/24") == 253
    assert value(families, "podwire_table_version") == 1
    assert value(families, "podwire_table_age_seconds") == 2.5
    assert value(families, "podwire_table_refused") == 1
    assert value(families, "podwire_source_connected", kind="etcd") == 0
    assert value(families, "podwire_lease_held") == 0
    assert value(families, "podwire_lease_epoch") == 7
    assert value(families, "podwire_peer_up", **PEER) == 1
    assert value(families, "podwire_peer_loss_ratio", **PEER) == 0.25
    assert value(families, "podwire_peer_mtu_bytes", **PEER) == 1400
    assert [value(families, "podwire_peers", state=state) for state in ("up", "down", "unknown")] == [1, 0, 0]
    assert value(families, "process_resident_memory_bytes") > 1e6


def test_histograms_have_their_classes_sum_and_count() -> None:
    families = scraped(BusyDaemon())
    trips = {
        sample.labels["le"]: sample.value
        for sample in families["podwire_peer_round_trip_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (trips["0.0001"], trips["0.001"], trips["0.0025"], trips["1.0"], trips["+Inf"]) == (1, 1, 2, 2, 3)
    assert value(families, "podwire_peer_round_trip_seconds_count", **PEER) == 3
    assert value(families, "podwire_peer_round_trip_seconds_sum", **PEER) == pytest.approx(7.0021)
    batches = [value(families, "podwire_engine_batch_frames_bucket", le=f"{bound}.0") for bound in BATCH_BOUNDS]
    assert batches == [5, 5, 8, 8, 8, 8, 9]
    assert value(families, "podwire_engine_batch_frames_bucket", le="+Inf") == 9
    assert value(families, "podwire_engine_batch_frames_sum") == 9 + 17 + 4 + 10


def test_both_formats_say_the_same_and_are_read_at_most_once_a_second() -> None:
    asked: list[float] = []
    now = [0.0]
    daemon = BusyDaemon()
    daemon.on_status = lambda: asked.append(now[0])
    metrics = Metrics(daemon, clock=lambda: now[0])
    plain, _ = metrics.scrape("text/plain;version=0.0.4")
    opened, content_type = metrics.scrape("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")

    def podwires(families: object) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        return sorted(
            (sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in families  # type: ignore[attr-defined]
            for sample in family.samples
            if sample.name.startswith("podwire_") and "age_seconds" not in sample.name
        )

    assert podwires(parse_openmetrics(opened.decode())) == podwires(text_string_to_metric_families(plain.decode()))
    assert len(asked) == 2
    assert metrics.scrape("text/plain;version=0.0.4")[0] is plain
    now[0] = 1.5
    assert metrics.scrape("text/plain;version=0.0.4")[0] is not plain
    assert len(asked) == 3


@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_whatever_a_header_asks_for_is_one_of_two_formats(kind: str) -> None:
    asked: list[None] = []
    daemon = BusyDaemon()
    daemon.on_status = lambda: asked.append(None)
    metrics = Metrics(daemon, clock=lambda: 0.0)
    found = {metrics.scrape(f"{kind}; version={version}") for version in ("1.0.0", *map(str, range(50)), "x", "", "é")}
    assert len(found) == len(asked) == 1, "the same body, read once"


def test_names_follow_prometheus_conventions() -> None:
    for name, family in scraped(BusyDaemon()).items():
        assert family.documentation, name
        if not name.startswith("podwire_"):
            continue
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
        assert not re.search(r"_(ms|us|ns|s|kb|mb|milliseconds|bits)(_|$)", name), name
        assert family.type == "counter" or not name.endswith("_total"), name
        assert {s.name.removeprefix(name) for s in family.samples} <= (
            {"_total"} if family.type == "counter" else {"_bucket", "_sum", "_count"} if family.type == "histogram" else {""}
        )  # fmt: skip


def test_a_label_that_wants_to_break_out_stays_a_label() -> None:
    daemon = BusyDaemon()
    evil = 'x"} 1\npodwire_fake_total{a="\\' + "y" * 1000
    key = AttachmentKey("pod", "eth0")
    daemon.held[key] = Attachment(key, "/run/netns/pod", (), 1452, (("name", evil),))
    families = scraped(daemon)
    assert "podwire_fake" not in families
    samples = families["podwire_attachment_received_packets"].samples
    (name,) = [sample.labels["pod"] for sample in samples if sample.labels["sandbox_id"] == "pod"]
    assert evil.startswith(name)
    assert len(name) == 253


# Many


def test_everyone_is_counted_once_and_the_rest_only_grows() -> None:
    """Seeded lives of many keys beside a plain sum: what is told apart and the rest, less who of it is gone, add up."""
    rng = random.Random(7)
    series: Series[int] = Series(5)
    alive: dict[int, int] = {}
    others_before, retained_before = 0.0, 0.0
    places: set[int] = set()
    crowded = 0
    for _ in range(3000):
        if rng.random() < 0.3 and len(alive) < 20:
            alive[rng.randrange(40)] = 0  # new; or gone and back since the last look
        for key in alive:
            alive[key] += rng.randrange(3)
        if alive and rng.random() < 0.2:
            del alive[rng.choice(list(alive))]
        split = series.split({key: {"n": float(count)} for key, count in alive.items()})
        assert {key: counts["n"] for key, counts in split.own.items()} == {key: alive[key] for key in split.own}
        others, retained = split.others.get("n", 0.0), split.retained.get("n", 0.0)
        assert others >= others_before
        assert retained >= retained_before
        assert sum(alive.values()) == sum(counts["n"] for counts in split.own.values()) + others - retained
        assert len(split.own) <= 5
        assert places & alive.keys() <= split.own.keys(), "who has a place keeps it"
        others_before, retained_before, places = others, retained, set(split.own)
        crowded += len(alive) > 5
    assert crowded > 1000
    assert 0 < retained_before < others_before


class Crowd:
    """Facts of a router with many peers."""

    def __init__(self, count: int) -> None:
        self.nodes = [
            Node(f"node-{i}", Endpoint(ip_address(f"10.200.{i >> 8}.{i & 255}")), (ip_network(f"10.{i >> 8}.{i & 255}.0/24"),))
            for i in range(count)
        ]  # fmt: skip
        self.tally = Tally(10, 1000, 9, 10, 0, {DropReason.TOO_BIG: 1, DropReason.NO_ROUTE: 2})

    def counters(self) -> Counters:
        return Counters(
            EngineCounters({}, dict.fromkeys((n.endpoint for n in self.nodes), self.tally), Tally(), Tally()), {}, "e"
        )

    def peers(self) -> tuple[SubnetTable, tuple[PeerStatus, ...]]:
        report = Report(PeerState.UP, 0.5, 0.0015, 0.001, 0.25, 1400, "", NO_ROUND_TRIPS.plus(0.001))
        return SubnetTable(1), tuple(PeerStatus(node, report, self.tally) for node in self.nodes)

    def status(self) -> Status:
        return MemoryDaemon().status()

    def attachments(self) -> tuple[Attachment, ...]:
        return ()


def test_five_thousand_peers_make_no_more_series_than_fit() -> None:
    crowd = Crowd(5000)
    families = {family.name: family for family in Collector(crowd).collect()}
    samples = sum(len(family.samples) for family in families.values())
    assert samples < 12_000
    for name in ("received_packets", "dropped_packets"):
        rows = families[f"podwire_peer_{name}"].samples
        assert len({row.labels["node"] for row in rows}) == MOST_PEERS + 1
    received = families["podwire_peer_received_packets"].samples
    assert sum(sample.value for sample in received) == 50_000
    assert next(s.value for s in received if s.labels["node"] == OTHERS) == 10 * (5000 - MOST_PEERS)
    assert value(families, "podwire_peers", state="up") == 5000
    trips = families["podwire_peer_round_trip_seconds"].samples
    assert sum(sample.value for sample in trips if sample.name.endswith("_count")) == 5000


# Histograms


def test_a_histogram_counts_as_a_plain_loop_does() -> None:
    rng = random.Random(3)
    bounds = (0.001, 0.01, 0.1)
    values = [rng.choice((0.001, 0.01, 0.1, rng.random() / 5)) for _ in range(500)]
    found = Histogram(bounds)
    for each in values:
        found = found.plus(each)
    expected = [(str(bound), float(sum(each <= bound for each in values))) for bound in bounds]
    assert found.cumulative() == [*expected, ("+Inf", 500.0)]
    assert found.total == pytest.approx(sum(values))
    assert Histogram(bounds).cumulative()[-1] == ("+Inf", 0.0)


def test_each_small_probe_that_is_answered_gives_one_round_trip() -> None:
    health = Health(1452, 1280, 0.0)
    (small, _), *_ = health.ask(1, 0.0)
    assert health.take_rtt_s() is None
    assert health.answered(small, 0.02)
    assert health.take_rtt_s() == pytest.approx(0.02)
    assert health.take_rtt_s() is None, "told once"
    sent = dict(health.ask(3, 1.0))
    large = next(number for number, mtu_bytes in sent.items() if mtu_bytes)
    assert health.answered(large, 1.5)
    assert health.take_rtt_s() is None, "a large probe tells of the size, not of the time"


# Alerts and dashboard


def asked_for(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and the labels that an expression of PromQL names."""
    names = set(re.findall(r"\b(?:podwire|process)_[a-z_]+", expression))
    labels = set(re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!~|!=|=)", expression))
    for group in re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",") if label.strip()}
    return names, labels


def known() -> tuple[set[str], set[str]]:
    daemon = BusyDaemon()
    samples = [sample for family in scraped(daemon).values() for sample in family.samples]
    names = {sample.name for sample in samples} | {"podwire_lease_remaining_seconds"}
    return names, {label for sample in samples for label in sample.labels} | {"instance", "job"}


def expressions() -> list[str]:
    alerts = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    return [rule["expr"] for group in alerts["groups"] for rule in group["rules"]] + [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]


def test_alerts_and_dashboard_ask_only_for_what_is_there() -> None:
    names, labels = known()
    found = expressions()
    assert len(found) > 30
    for expression in found:
        wanted, by = asked_for(expression)
        assert wanted <= names, f"{expression}: no metric {wanted - names}"
        assert by <= labels, f"{expression}: no label {by - labels}"
        assert wanted or expression.startswith("up{"), expression


def test_a_metric_that_is_not_there_would_be_noticed() -> None:
    wanted, by = asked_for('sum by (pod, nodes) (rate(podwire_attachment_lost_total{reson="x"}[5m]))')
    names, labels = known()
    assert wanted - names == {"podwire_attachment_lost_total"}
    assert by - labels == {"nodes", "reson"}


def test_reasons_and_states_that_alerts_name_exist() -> None:
    words = set(map(str, DropReason)) | set(map(str, PeerState))
    for expression in expressions():
        for choice in re.findall(r'(?:reason|state)(?:=~|!~|=)"([^"]*)"', expression):
            assert set(choice.split("|")) <= words, expression


def test_the_documentation_names_what_is_there() -> None:
    text = (MONITORING / "README.md").read_text()
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known()[0]}
    words = set(re.findall(r"`([a-z_]+[a-z])(?:{[a-z_, ]*})?`", text))
    whole = {word for word in words if word.startswith("podwire_")}
    parts = {word for word in words if word.endswith("_total") and word not in whole}
    assert whole <= names, f"not there: {whole - names}"
    of_sources = {name for name in names if re.match("podwire_(attachment|peer|stranger|gone)_.*_total$", name)}
    assert {re.sub("^podwire_[a-z]+_", "", name) for name in of_sources} == parts
    ours = {name for name in names - of_sources if name.startswith("podwire_")}
    assert ours == whole, f"not documented: {ours - whole}"


def test_every_panel_has_its_place_and_a_source() -> None:
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    taken = Counter(
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    )
    assert max(taken.values()) == 1
    assert max(x for x, _ in taken) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


# Logs


def formatted(level: int, message: str, *args: object, exc_info: object = None) -> dict[str, object]:
    whose = resource(
        "n1", "0.1.0", {"OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=router-x,k8s.namespace.name=kube%2Dsystem,bad"}
    )
    record = logging.LogRecord("router.daemon", level, __file__, 1, message, args, exc_info)  # type: ignore[arg-type]
    record.created = 1_700_000_000.25
    line = JsonFormatter(whose).format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_log_records_speak_opentelemetry() -> None:
    found = formatted(logging.WARNING, "%s from %s", AttachmentKey("web", "eth0"), Endpoint(ip_address("192.0.2.1")))
    assert found["timestamp"] == "2023-11-14T22:13:20.250000Z"
    assert found["time_unix_nano"] == 1_700_000_000_250_000_000
    assert (found["severity_text"], found["severity_number"]) == ("WARN", 13)
    assert found["body"] == "web/eth0 from 192.0.2.1:6081"
    assert found["scope"] == {"name": "router.daemon"}
    attributes, whose = found["attributes"], found["resource"]
    assert isinstance(attributes, dict)
    assert isinstance(whose, dict)
    assert attributes["podwire.sandbox.id"] == "web"
    assert attributes["network.peer.port"] == 6081
    assert whose["service.name"] == "podwire"
    assert whose["host.name"]
    assert whose["k8s.pod.name"] == "router-x"
    assert whose["k8s.namespace.name"] == "kube-system"


def test_a_log_record_of_an_exception_has_its_parts() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        found = formatted(logging.ERROR, "it failed", exc_info=sys.exc_info())
    attributes = found["attributes"]
    assert isinstance(attributes, dict)
    assert attributes["exception.type"] == "ValueError"
    assert attributes["exception.message"] == "two\nlines"
    assert "Traceback" in attributes["exception.stacktrace"]
    assert (found["severity_text"], found["severity_number"]) == ("ERROR", 17)
    assert formatted(25, "between")["severity_text"] == "INFO"
    assert resource("n1", "1", {"OTEL_SERVICE_NAME": "net"}, kubernetes=True)["k8s.node.name"] == "n1"
    assert resource("n1", "1", {"OTEL_SERVICE_NAME": "net"})["service.name"] == "net"
