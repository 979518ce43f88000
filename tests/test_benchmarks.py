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

from benchmarks import acceptance, hot_path, peers, pictures, plot, profile, rounds, scaling, tables
from benchmarks.__main__ import main
from benchmarks.comparison import compare
from benchmarks.contenders import CONTENDERS, Network, absence
from benchmarks.cpu import machine_s, process_s
from benchmarks.figures import Figures, Metric, Promise, Spread, percentile
from benchmarks.frames import TRAFFIC, Traffic
from benchmarks.machine import cpu_model, describe
from benchmarks.measures import MEASURES, MeasureFailed
from benchmarks.measures.flood import Flood
from benchmarks.measures.flow import arrived
from benchmarks.measures.stream import received
from benchmarks.report import number, print_report
from benchmarks.tables import subnet_table
from router.engine.choose import available
from router.wire.packet import VNET_BYTES, VnetHeader, parse_ip
from router.wire.segment import gso_shape

PROMISE = Promise(0.35, of="mine")
RATE = Metric("rate", "Rate", "Gbit/s", "TCP across nodes", True, "base", (PROMISE, Promise(3, "slow", "mine")))
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


def test_promises_are_of_a_ratio_to_their_own_base_or_of_a_bare_value() -> None:
    assert RATE.keeps(0.4, PROMISE)
    assert not RATE.keeps(0.3, PROMISE)
    assert DELAY.keeps(1, Promise(1))
    figures = figures_of([1, 1.2, 1.1], [2, 2, 2])
    figures.add(DELAY, "mine", 7)
    against_base, against_slow = RATE.promises
    assert figures.found(RATE, against_base) == Spread(0.55, 0.5, 0.6)
    assert figures.found(RATE, against_slow) is None
    assert figures.found(DELAY, Promise(9, of="mine")) == Spread(7, 7, 7)
    for _ in range(3):
        figures.add(RATE, "slow", 0.1)
    found = figures.found(RATE, against_slow)
    assert found is not None
    assert found.median == pytest.approx(11)


def test_promises_between_pods_are_held_against_contenders() -> None:
    metrics = [metric for measure in MEASURES for metric in measure.metrics if metric.promises]
    assert {metric.key for metric in metrics} >= {"tcp1_gbps", "udp64_kpps", "pace_machine_ns", "load_other_p99"}
    bases = {metric.base_of(promise) for metric in metrics for promise in metric.promises}
    assert bases - {""} <= {contender.name for contender in CONTENDERS}


def test_json_gives_the_figures_back() -> None:
    figures = figures_of([1, math.nan], [2, 2])
    figures.notes.append("left out")
    document = json.loads(json.dumps(figures.to_json(), allow_nan=False))
    assert document["metrics"]["rate"]["contenders"]["mine"]["ratio"] == 0.5
    assert [promise["kept"] for promise in document["metrics"]["rate"]["promises"]] == [True, None]
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
    # Two processors for ten seconds, less what they idled, waited for a disk and were stolen.
    stat = "cpu  1 2 3 100 20 4 5 30 0 0\ncpu0 1\ncpu1 1\nintr 7"
    assert machine_s(stat, 10) == pytest.approx(20 - 150 * tick_s)
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
        for engine in available():
            hot_path.measure(figures, engine, traffic, 0.02)
    hot_path.measure_segments(figures, TRAFFIC[-1], 0.02)
    assert all(value > 0 for entry in figures.values.values() for values in entry.values() for value in values)


@pytest.mark.parametrize("engine", available())
def test_peers_and_tables_are_measured_without_root(engine: str) -> None:
    figures = Figures()
    for size in (1, 100):
        peers.measure(figures, engine, size, 0.04)
    tables.measure(figures, 10, (engine,), 0.04)
    for metric in (*peers.metrics(engine).values(), *tables.engine_metrics(engine)):
        assert all(value > 0 for values in figures.values[metric.key].values() for value in values), metric
    assert figures.ratio(f"peers_{engine}_tso_in", "peers:100") is not None


PERF = """router
 ffffffff81000001 _copy_to_iter
 ffffffff81000002 tun_chr_read_iter
     7f0000000001 readv

router
     7f0000000002 forward
     7f0000000003 [unknown]

router
     7f0000000004 __memmove_avx_unaligned_erms

router
 ffffffff81000003 nf_hook_slow
 ffffffff81000004 __netif_receive_skb
 ffffffff81000005 __x64_sys_sendmsg

router
 ffffffff81000006 asm_sysvec_apic_timer_interrupt
"""


def test_samples_of_perf_are_sorted_by_innermost_copy_and_outermost_call() -> None:
    stacks = list(profile.stacks(PERF))
    assert [len(stack) for stack in stacks] == [3, 2, 1, 3, 1]
    assert [profile.part_of(stack) for stack in stacks] == ["copies", "own", "copies", "send", "kernel"]


def test_a_flood_whose_sender_bounds_the_figure_is_noted() -> None:
    figures, flood = Figures(titles={"vxlan": "kernel VXLAN", "podwire": "Podwire"}), Flood(64)
    came, offered, *_ = flood.metrics
    for name, factor in (("vxlan", 1), ("podwire", 1.5)):
        figures.add(came, name, 100)
        figures.add(offered, name, 100 * factor)
    (note,) = flood.notes(figures)
    assert "kernel VXLAN" in note
    assert "Podwire" not in note


def test_report_prints_every_figure_and_failure(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of([1, 2], [2, 4])
    figures.add(DELAY, "mine", math.nan)
    figures.failures.append("nebula did not come up")
    print_report(figures, Console(width=100))
    printed = capsys.readouterr().out
    assert "0.50×" in printed
    assert "nebula did not come up" in printed
    assert "≥ 0.35 × Base" in printed
    assert "kept" in printed
    assert "≥ 3 × slow" in printed
    assert "not measured" in printed
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


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra `bench`")
    figures = Figures(titles={"podwire": "Podwire", "vxlan": "kernel VXLAN"}, settings={"rounds": 1})
    for measure in MEASURES:
        for metric in measure.metrics:
            for name in figures.titles:
                figures.add(metric, name, 2)
    for metric in peers.metrics("python").values():
        for size in peers.SIZES:
            figures.add(metric, f"peers:{size}", size)
    for probe in scaling.PROBES:
        for size in scaling.SIZES:
            figures.add(scaling.metric("python", "idle", probe), f"attachments:{size}", size)
    written, left_out = plot.draw_all(figures, tmp_path / "benchmark.svg", "performance")
    assert {path.name for path in written} == {
        "benchmark.svg", "performance-ratios.svg", "performance-load.svg", "performance-scaling.svg",
    }  # fmt: skip
    assert left_out == ["performance-profile.svg: no profile was taken"]
    for part in profile.PARTS:
        figures.add(profile.metric(CONTENDERS[0], part), "profile:tcp1", 100 / len(profile.PARTS))
    written, left_out = plot.draw_all(figures, tmp_path / "benchmark.svg", "performance")
    assert len(written) == len(pictures.PICTURES) + 1
    assert not left_out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "tcp9"], "there is no 'tcp9'; known are hot-path"),
        (["--contenders", "calico"], "there is no 'calico'; known are podwire"),
        (["--engine", "ebpf"], "there is no 'ebpf'; known are "),
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
    measures = [measure for measure in MEASURES if measure.name in ("tcp1", "udp64x2", "pace", "rtt", "load")]
    assert not any(map(absence, contenders))
    figures = Figures()
    rounds.run(figures, contenders, measures, 1, 0.2, lambda _text: None)
    assert not figures.failures
    for key in ("load_same_p99", "load_other_p99", "pace_lost", "tcp1_machine_cpu", "udp64x2_machine_cpu"):
        assert figures.values[key].keys() == {"podwire", "veth", "vxlan"}
    for key in ("tcp1_router_cpu", "udp64x2_router_cpu", "pace_router_ns"):
        assert figures.values[key].keys() == {"podwire"}
    for key in ("tcp1_gbps", "udp64x2_kpps", "rtt_udp_p50_us", "rtt_icmp_p99_us"):
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
    bounded = {metric.title for metric in figures.metrics.values() if metric.promises}
    assert bounded >= {"Attach p50", "Resident", "Idle CPU", "Call worst", "In no counter", "Lost meanwhile"}
    assert all(len(values["podwire"]) == 1 for values in figures.values.values())


@pytest.mark.netns
def test_attachments_come_and_go_between_the_figures() -> None:
    figures, engine = Figures(), available()[0]
    scaling.run(figures, (engine,), engine, 2, 0.2, lambda _text: None, sizes=(1, 3))
    assert not figures.failures
    assert len(figures.metrics) == 2 * len(scaling.PROBES)
    assert all(
        len(values[name]) == 2 for values in figures.values.values() for name in ("attachments:1", "attachments:3")
    )
    assert sum(len(metric.promises) for metric in figures.metrics.values()) == len(scaling.PROBES)
    assert not list(Path("/run/netns").glob(f"pwb-{os.getpid()}-*"))


@pytest.mark.netns
def test_a_profile_accounts_for_all_time() -> None:
    if why := profile.missing():
        pytest.skip(why)
    figures = Figures()
    profile.run(
        figures, [contender for contender in CONTENDERS if contender.name == "podwire"], 1, 0.5, lambda _text: None
    )
    assert not figures.failures
    for traffic in ("profile:tcp1", "profile:udp64"):
        assert sum(values[traffic][0] for values in figures.values.values()) == pytest.approx(100)


@pytest.mark.netns
def test_a_contender_that_does_not_come_up_is_told_of() -> None:
    class Broken:
        name, title, programs, packages = "broken", "Broken", (), ()
        engine, only = "", ()

        def open(self, stack: ExitStack) -> Network:
            veth = next(contender for contender in CONTENDERS if contender.name == "veth")
            network = veth.open(stack)
            network.across.client.ip("link", "set", "nosuch", "up")
            return network

    figures = Figures()
    rounds.run(figures, [Broken()], [], 1, 0.2, lambda _text: None)
    (failure,) = figures.failures
    assert 'Cannot find device "nosuch"' in failure
