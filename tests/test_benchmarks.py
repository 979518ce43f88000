"""The benchmark's own arithmetic, its command line, and one tiny real round of it."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import acceptance, hot_path, rounds
from benchmarks.__main__ import main
from benchmarks.comparison import compare
from benchmarks.contenders import CONTENDERS, Network, absence
from benchmarks.cpu import machine_s, process_s
from benchmarks.figures import Figures, Metric, Spread, percentile
from benchmarks.frames import TRAFFIC, Traffic
from benchmarks.machine import cpu_model, describe
from benchmarks.measures import MEASURES, MeasureFailed
from benchmarks.measures.flow import arrived
from benchmarks.measures.stream import received
from benchmarks.report import number, print_report
from benchmarks.tables import subnet_table
from router.wire.packet import VNET_BYTES, VnetHeader, parse_ip
from router.wire.segment import gso_shape

RATE = Metric("rate", "Rate", "Gbit/s", "TCP across nodes", True, "base", bound=0.35, bound_of="mine")
DELAY = Metric("delay", "Delay", "µs", "Round trip", False)


def figures_of(mine: list[float], base: list[float]) -> Figures:
    figures = Figures(titles={"mine": "Mine", "base": "Base"}, machine={"commit": "abc"}, settings={"rounds": 3})
    for contender, values in (("mine", mine), ("base", base)):
        for value in values:
            figures.add(RATE, contender, value)
    return figures


def test_spread_is_median_and_range_and_leaves_failed_rounds_out() -> None:
    assert Spread.of([3, math.nan, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([math.nan]) is None


def test_percentile_is_by_nearest_rank() -> None:
    assert percentile(range(1, 101), 50) == 50
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7], 99) == 7
    assert math.isnan(percentile([], 50))


def test_ratio_is_taken_round_by_round() -> None:
    # The machine was twice as fast in the last round, for both: the ratio does not move.
    assert figures_of([1, 1, 2], [2, 2, 4]).ratio("rate", "mine") == Spread(0.5, 0.5, 0.5)
    assert figures_of([1, math.nan, 2], [2, 2, 4]).ratio("rate", "mine") == Spread(0.5, 0.5, 0.5)
    assert figures_of([1, 2], []).ratio("rate", "mine") is None


def test_bounds() -> None:
    assert RATE.kept(0.4) is True
    assert RATE.kept(0.3) is False
    assert DELAY.kept(1) is None


def test_json_gives_the_figures_back() -> None:
    figures = figures_of([1, math.nan], [2, 2])
    figures.notes.append("left out")
    document = json.loads(json.dumps(figures.to_json(), allow_nan=False))
    assert document["metrics"]["rate"]["contenders"]["mine"]["ratio"] == 0.5
    back = Figures.from_json(document)
    assert back.metrics == figures.metrics
    assert back.values["rate"]["base"] == [2, 2]
    assert math.isnan(back.values["rate"]["mine"][1])
    with pytest.raises(ValueError, match="no result of this benchmark"):
        Figures.from_json({"format": 0})


def test_compare_is_of_ratios_and_knows_what_rounds_overlap() -> None:
    old = figures_of([1, 1.1, 0.9], [2, 2, 2])
    (change,) = compare(old, figures_of([4, 4.1, 3.9], [4, 4, 4]))
    assert (change.old, change.new, change.relative) == (0.5, 1, True)
    assert change.better
    assert change.certain
    (change,) = compare(old, figures_of([1.05, 1.2, 1], [2, 2, 2]))
    assert not change.certain
    figures = Figures()
    figures.add(DELAY, "mine", 2)
    later = Figures()
    later.add(DELAY, "mine", 1)
    (change,) = compare(figures, later)
    assert change.better
    assert not change.relative


def test_every_contender_is_first_in_its_turn() -> None:
    assert [names[0] for _, names in rounds.order(["a", "b", "c"], 4)] == ["a", "b", "c", "a"]
    assert all(sorted(names) == ["a", "b", "c"] for _, names in rounds.order(["a", "b", "c"], 4))


def test_cpu_time_is_read_out_of_proc() -> None:
    tick_s = process_s("1 (a) b) R " + "0 " * 10 + "1 0 0")
    assert process_s("12 (iperf3 (x)) S " + "0 " * 10 + "100 50 0 0") == pytest.approx(150 * tick_s)
    assert machine_s("cpu  10 20 30 9999 9999 40 50 9999 0 0\ncpu0 1") == pytest.approx(150 * tick_s)
    assert cpu_model("processor : 0\nmodel name\t: Fast One\n") == "Fast One"
    assert {"kernel", "cpu", "cores", "commit", "date"} <= describe().keys()


def test_arrivals_are_read_out_of_snmp() -> None:
    snmp = (
        "Ip: a\nIp: 1\nUdp: InDatagrams NoPorts InErrors RcvbufErrors\nUdp: 5 9 7 7\nUdpLite: InDatagrams\nUdpLite: 3\n"
    )
    assert arrived(snmp) == 12


def test_iperf3_json() -> None:
    assert received({"end": {"sum_received": {"bytes": 10, "bits_per_second": 80.0}}}) == (10, 80.0)
    with pytest.raises(MeasureFailed, match="busy"):
        received({"error": "the server is busy running a test"})
    with pytest.raises(MeasureFailed, match="nothing arrived"):
        received({"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}})


@pytest.mark.parametrize("traffic", TRAFFIC, ids=lambda traffic: traffic.name)
def test_frames_are_what_the_router_takes(traffic: Traffic) -> None:
    frame = memoryview(traffic.frame(IPv4Address("10.0.0.1"), IPv4Address("10.0.1.1")))
    packet, vnet = frame[VNET_BYTES:], VnetHeader.read(frame, 0)
    header = parse_ip(packet, 0, len(packet))
    assert header is not None
    assert bool(vnet.gso_size) == (gso_shape(packet, header, vnet) is not None)


def test_tables_hold_every_node_once() -> None:
    nodes = subnet_table(1000).nodes
    assert len({node.subnets for node in nodes}) == len({node.endpoint for node in nodes}) == len(nodes) == 1000


def test_the_hot_path_is_measured_without_root() -> None:
    figures = Figures()
    for traffic in (TRAFFIC[0], TRAFFIC[-1]):
        hot_path.measure(figures, hot_path.available()[0], traffic, 0.02)
    hot_path.measure_segments(figures, TRAFFIC[-1], 0.02)
    assert all(value > 0 for entry in figures.values.values() for values in entry.values() for value in values)


def test_report_prints_every_figure_and_failure(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of([1, 2], [2, 4])
    figures.add(DELAY, "mine", math.nan)
    figures.failures.append("nebula did not come up")
    print_report(figures, Console(width=100))
    printed = capsys.readouterr().out
    assert "0.50×" in printed
    assert "nebula did not come up" in printed
    assert [number(value) for value in (12345.6, 12.34, 1.234, 0.01234)] == ["12,346", "12.3", "1.23", "0.0123"]


def test_plot_and_comparison_of_loaded_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra `bench`")
    new, old, plot = tmp_path / "new.json", tmp_path / "old.json", tmp_path / "plot.svg"
    new.write_text(json.dumps(figures_of([1, 1], [2, 2]).to_json()))
    old.write_text(json.dumps(figures_of([1, 1], [4, 4]).to_json()))
    result = CliRunner().invoke(main, ["--load", str(new), "--compare", str(old), "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    assert "2.00" in result.output
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "tcp9"], "there is no 'tcp9'; known are hot-path"),
        (["--contenders", "calico"], "there is no 'calico'; known are podwire"),
        (["--plot", "x.gif"], "must end in one of .svg"),
        (["--json", "/nowhere/x.json"], "there is no directory /nowhere"),
        (["--rounds", "0"], "0 is not in the range"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert said in result.output


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ("{", "[]", "{}", '{"format": 1}'):
        path.write_text(content)
        result = CliRunner().invoke(main, ["--load", str(path)])
        assert result.exit_code == 1
        assert "cannot be read as a result" in result.output


@pytest.mark.netns
def test_podwire_veth_and_vxlan_take_turns() -> None:
    contenders = [contender for contender in CONTENDERS if contender.name in ("podwire", "veth", "vxlan")]
    measures = [measure for measure in MEASURES if measure.name in ("tcp1", "udp64", "rtt")]
    assert not any(map(absence, contenders))
    figures = Figures()
    rounds.run(figures, contenders, measures, 1, 0.2, lambda _text: None)
    assert not figures.failures
    for key in ("tcp1_gbps", "udp64_kpps", "rtt_udp_p50_us", "rtt_icmp_p99_us"):
        for contender in ("podwire", "veth"):
            ratio = figures.ratio(key, contender)
            assert ratio is not None, (key, contender)
            assert ratio.median > 0
    assert not list(Path("/run/netns").glob(f"pwb-{os.getpid()}-*"))


@pytest.mark.netns
def test_every_promise_is_measured() -> None:
    figures = Figures()
    acceptance.run(figures, 2, 50, 0.2, lambda _text: None)
    assert not figures.failures
    bounded = {metric.title for metric in figures.metrics.values() if not math.isnan(metric.bound)}
    assert bounded >= {"Attach p50", "Resident", "Idle CPU", "Call worst", "In no counter", "Lost meanwhile"}
    assert all(len(values["podwire"]) == 1 for values in figures.values.values())


@pytest.mark.netns
def test_a_contender_that_does_not_come_up_is_told_of() -> None:
    class Broken:
        name, title, programs, packages = "broken", "Broken", (), ()

        def open(self, stack: ExitStack) -> Network:
            veth = next(contender for contender in CONTENDERS if contender.name == "veth")
            network = veth.open(stack)
            network.across.client.ip("link", "set", "nosuch", "up")
            return network

    figures = Figures()
    rounds.run(figures, [Broken()], [], 1, 0.2, lambda _text: None)
    (failure,) = figures.failures
    assert 'Cannot find device "nosuch"' in failure
