"""The ruler's parsing, statistics and verdicts. Nothing here is timed."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from ruler import __main__ as command
from ruler import backends, bulk, http, kubo_node, ours, procs, report, sse, stats, targets, tokens, verdict, versions, wrk
from ruler.measures import LoadFailed, Sample

WRK = """\
Running 4s test @ http://127.0.0.1:8099/body
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.03ms    2.35ms  47.97ms   89.36%
    Req/Sec    20.76k     2.53k   25.38k    70.00%
  Latency Distribution
     50%  500.00us
     75%    2.45ms
     90%    4.61ms
     99%    1.04s 
  82737 requests in 4.01s, 13.57MB read
Requests/sec:  20650.15
Transfer/sec:      3.39MB
"""  # noqa: W291  (wrk ends a latency in seconds with a blank)


# wrk


def test_wrk_report_is_read_in_milliseconds() -> None:
    assert wrk.parse(WRK) == wrk.WrkReport(requests=82737, requests_per_s=20650.15, p50_ms=0.5, p99_ms=1040, errors=0)


def test_wrk_errors_are_summed() -> None:
    text = WRK.replace(
        "Requests/sec",
        "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\nRequests/sec",
    )
    assert wrk.parse(text).errors == 54321


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1 Connection refused\n", WRK.replace("99%", "98%")])
def test_what_is_no_wrk_report_is_refused(text: str) -> None:
    with pytest.raises(wrk.WrkFailed):
        wrk.parse(text)


# Statistics


def test_summary_is_the_median_with_half_the_range() -> None:
    summary = stats.summarise([10.0, 8.0, 12.0, 9.0, 30.0])
    assert summary == stats.Summary(median=10.0, low=8.0, high=30.0, count=5)
    assert summary.spread == pytest.approx(1.1)


def test_nothing_has_no_summary() -> None:
    assert stats.summarise([]) is None


def test_spread_of_zeros_is_zero() -> None:
    summary = stats.summarise([0.0, 0.0])
    assert summary is not None
    assert summary.spread == 0


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)])
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert stats.percentile(range(1, 101), share) == expected


@given(st.lists(st.integers(), min_size=1), st.floats(0, 1))
def test_percentile_is_a_sample_that_enough_others_do_not_exceed(samples: list[int], share: float) -> None:
    ordered = sorted(samples)
    value = stats.percentile(ordered, share)
    assert sum(sample <= value for sample in ordered) >= share * len(ordered) - 1e-9
    assert value in ordered


@pytest.mark.parametrize(("value", "reference"), [(None, 1.0), (1.0, None), (1.0, 0.0), (1.0, -0.2)])
def test_no_ratio_without_two_figures_and_something_to_divide_by(value: float | None, reference: float | None) -> None:
    assert stats.ratio(value, reference) is None


# /proc


def test_process_times_survive_a_name_with_brackets_and_blanks() -> None:
    fields = ["S", "7", *["0"] * 9, "100", "20", "3", "4", *["0"] * 30]  # utime stime cutime cstime
    assert procs.parse_stat(f"42 (a) R 1 (b)) {' '.join(fields)}\n") == procs.ProcessTimes(parent=7, ticks=127)


def test_own_process_is_seen_in_proc() -> None:
    processes = procs.read_processes()
    assert processes[os.getpid()].parent == os.getppid()
    assert os.getpid() in procs.family([os.getppid()], processes)
    assert procs.resident_mib([os.getpid()]) > 1


def test_family_is_the_roots_and_all_below_them() -> None:
    processes = {pid: procs.ProcessTimes(parent, 0) for pid, parent in {1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 6: 5}.items()}
    assert procs.family([2, 99], processes) == {2, 3, 4}


def test_waiting_is_not_busy() -> None:
    text = "cpu  1 20 300 4000 50000 600000 7000000 80000000 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\n"
    assert procs.parse_machine_ticks(text) == (7600321, 80000000)


def test_supervisor_ends_what_it_started_and_says_what_a_dead_one_said(tmp_path: Path) -> None:
    supervisor = procs.Supervisor(tmp_path)
    says = supervisor.start("says", [sys.executable, "-c", "print(7, flush=True); input()"], announces=True)
    dies = supervisor.start("dies", [sys.executable, "-c", "import sys; sys.exit('no such luck')"], announces=True)
    try:
        assert supervisor.read_line("says", says) == "7\n"
        with pytest.raises(procs.StartFailed, match="no such luck"):
            supervisor.read_line("dies", dies)
        dies.wait(60)
        assert supervisor.dead() == ["dies"]
        assert supervisor.pids() == [says.pid]
    finally:
        supervisor.stop()
    assert says.returncode is not None
    assert supervisor.pids() == []


# The generators


def test_chunk_is_200_bytes_and_comes_back_as_it_was() -> None:
    chunk = sse.make_chunk(123456, 98765432101234)
    assert len(chunk) == sse.CHUNK_BYTES
    assert chunk.startswith(b"data: ")
    assert chunk.endswith(b"\n\n")
    assert sse.parse_chunk(b"x" * 11 + chunk, 11) == (123456, 98765432101234)


def _client_of_stream(*pieces: bytes) -> tuple[sse.Load, sse.Client]:
    """A load whose one client received these pieces and then the end."""
    load = sse.Load(port=0, clients=1, chunks=2)
    near, far = socket.socketpair()
    client = sse.Client(near)
    load.clients_open[near.fileno()] = client
    with far:
        for piece in pieces:
            far.sendall(piece)
            load.receive(client)
    if near.fileno() >= 0:
        load.receive(client)
    return load, client


HEAD = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"


def test_stream_in_awkward_pieces_is_served_in_full() -> None:
    data = HEAD + sse.make_chunk(0, 1) + sse.make_chunk(1, 2)
    load, client = _client_of_stream(data[:10], data[10:100], data[100:300], data[300:])
    said = load.report([client], errors=0)
    assert (said["full"], said["chunks"], said["errors"]) == (1, 2, 0)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + sse.make_chunk(0, 1),
        HEAD + sse.make_chunk(1, 1) + sse.make_chunk(0, 2),
        HEAD + sse.make_chunk(0, 1) + sse.make_chunk(0, 2),
        HEAD + b"y" * 400,
        HEAD.replace(b"200", b"503") + sse.make_chunk(0, 1) + sse.make_chunk(1, 2),
    ],
    ids=["cut", "out of order", "twice", "garbage", "status"],
)
def test_stream_that_is_not_whole_is_an_error(data: bytes) -> None:
    load, client = _client_of_stream(data)
    said = load.report([client], errors=0)
    assert (said["full"], said["errors"]) == (0, 1)


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"POST / HTTP/1.1\r\ncontent-LENGTH: 17", 17),
        (b"HTTP/1.1 200 OK\r\nContent-Length:5\r\nA: b", 5),
        (b"GET /", 0),
    ],
)
def test_content_length_of_a_head(head: bytes, length: int) -> None:
    assert bulk.content_length(head) == length


# Set-up of the targets


def test_the_file_is_read_to_its_end_before_it_is_served(tmp_path: Path) -> None:
    path = backends.file_in(tmp_path)
    backends.write_file(path, 3 << 20)
    with path.open("ab") as file:
        file.write(b"and a little")
    assert backends.bring_into_memory(path) == (3 << 20) + 12


def test_nginx_serves_twelve_bytes_and_keeps_connections() -> None:
    config = backends.nginx_config(Path("/somewhere"), 1234)
    assert len(backends.BODY) == 12
    assert "listen 127.0.0.1:1234 " in config
    assert "keepalive_requests 1000000000;" in config


def test_haproxy_pair_speaks_tls_between_and_only_there() -> None:
    listens, between, behind = ({name: base + n for n, name in enumerate("ab")} for base in (100, 200, 300))
    entry = targets.haproxy_entry(listens, between, Path("c.pem"))
    exit_ = targets.haproxy_exit(between, behind, Path("c.pem"))
    assert "bind 127.0.0.1:101\n    server exit 127.0.0.1:201 ssl verify required ca-file c.pem" in entry
    assert "bind 127.0.0.1:201 ssl crt c.pem\n    server backend 127.0.0.1:301\n" in exit_


def test_kubo_may_reach_loopback_alone() -> None:
    nets = [ipaddress.ip_network(text.split("/", 2)[2].replace("/ipcidr/", "/")) for text in kubo_node.REFUSED]
    ipv4 = [net for net in nets if net.version == 4]
    loopback = ipaddress.ip_network("127.0.0.0/8")
    assert not any(net.overlaps(loopback) for net in ipv4)
    assert sum(net.num_addresses for net in ipv4) == 2**32 - loopback.num_addresses
    assert list(ipaddress.collapse_addresses(ipv4)) == sorted(ipv4)  # so none is counted twice
    assert ipaddress.ip_network("::/0") in nets


def test_peer_is_ready_only_with_all_its_services() -> None:
    peer = {"name": "ours-exit", "online": True, "services": {"web": True, "sse": True, "sink": True}}
    assert ours.ready_peer([{**peer, "name": "other", "online": False}, peer], "ours-exit")
    assert not ours.ready_peer([{**peer, "services": {"web": True, "sse": True, "sink": False}}], "ours-exit")
    assert not ours.ready_peer([{**peer, "online": False}], "ours-exit")
    assert not ours.ready_peer([peer], "another")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("nginx version: nginx/1.22.1\n", "1.22.1"),
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12-1+deb12u4"),
        ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer", "4.1.0-3+b2"),
        ("not installed", "unknown"),
    ],
)
def test_first_version(text: str, version: str) -> None:
    assert versions.first_version(text) == version


# Verdicts


def _medians(**ratios_to_kubo: float) -> verdict.Medians:
    """Both references at 100 in everything; ours where it is told to be."""
    metrics = {requirement.metric for requirement in verdict.REQUIREMENTS}
    reference = dict.fromkeys(metrics, 100.0)
    return {
        "kubo": dict(reference),
        "haproxy": dict(reference),
        "ours": {k: 100 * v for k, v in ratios_to_kubo.items()},
    }


def _row(rows: list[verdict.Row], label: str, against: str = "") -> verdict.Row:
    return next(row for row in rows if row.label == label and row.against == against)


@pytest.mark.parametrize(
    ("metric", "label", "against", "good", "bad"),
    [
        ("conn_per_s", "new connections/s", "kubo", 2.0, 1.99),
        ("conn_per_s", "new connections/s", "haproxy", 3.0, 2.99),
        ("conn_cpu_us", "CPU per connection", "kubo", 0.5, 0.51),
        ("conn_cpu_us", "CPU per connection", "haproxy", 0.3, 0.31),
        ("ka1_p50_ms", "keep-alive p50, 1 connection", "kubo", 0.9, 0.91),
        ("ka1_p50_ms", "keep-alive p50, 1 connection", "haproxy", 1.3, 1.31),
        ("rps32", "requests/s, 32 connections", "kubo", 1.8, 1.79),
        ("rps32", "requests/s, 32 connections", "haproxy", 1.2, 1.19),
        ("rps256", "requests/s, 256 connections", "kubo", 1.8, 1.79),
        ("rps256", "requests/s, 256 connections", "haproxy", 1.2, 1.19),
        ("rps32_cpu_us", "CPU per request, 32 connections", "kubo", 0.5, 0.51),
        ("rps32_cpu_us", "CPU per request, 32 connections", "haproxy", 1.0, 1.01),
        ("down1_mbs", "bulk down, 1 stream", "kubo", 1.3, 1.29),
        ("up1_mbs", "bulk up, 1 stream", "haproxy", 0.9, 0.89),
        ("down4_mbs", "bulk down, 4 streams", "haproxy", 0.9, 0.89),
        ("up4_mbs", "bulk up, 4 streams", "kubo", 1.3, 1.29),
        ("bulk_cpu_s_per_gib", "CPU per GiB", "kubo", 1.0, 1.01),
        ("sse_added_p99_ms", "200 SSE streams, added p99", "kubo", 0.8, 0.81),
        ("sse_added_p99_ms", "200 SSE streams, added p99", "haproxy", 1.2, 1.21),
    ],
)
def test_each_requirement_passes_at_its_limit_and_fails_past_it(
    metric: str, label: str, against: str, good: float, bad: float
) -> None:
    for value, status in ((good, "pass"), (bad, "FAIL")):
        row = _row(verdict.judge(_medians(**{metric: value}), {}, {}), label, against)
        assert row.status == status
        assert row.measured == pytest.approx(value)


def test_what_was_not_measured_neither_passes_nor_fails() -> None:
    rows = verdict.judge({"ours": {"rps32": 1.0}, "kubo": {"rps256": 1.0}}, {}, {})
    assert {row.status for row in rows} == {"not measured"}


def test_aim_is_noted_beside_the_limit() -> None:
    assert _row(verdict.judge(_medians(up1_mbs=1.0), {}, {}), "bulk up, 1 stream", "haproxy").note == "aim 1.1x missed"
    assert _row(verdict.judge(_medians(up1_mbs=1.1), {}, {}), "bulk up, 1 stream", "haproxy").note == "aim 1.1x reached"
    row = _row(verdict.judge(_medians(ka1_p50_ms=1.2), {}, {}), "keep-alive p50, 1 connection", "haproxy")
    assert (row.status, row.note) == ("pass", "aim 1x missed")


def test_errors_and_lost_chunks_must_be_none_at_all() -> None:
    label_errors, label_chunks = "connection errors in any run", "200 SSE streams, chunks not delivered"
    rows = verdict.judge(_medians(), {"ours": 0, "kubo": 9}, {"ours": 0, "kubo": 9})
    assert _row(rows, label_errors).status == _row(rows, label_chunks).status == "pass"
    rows = verdict.judge(_medians(), {"ours": 1}, {"ours": 1})
    assert _row(rows, label_errors).status == _row(rows, label_chunks).status == "FAIL"


def test_added_delay_is_what_direct_does_not_have() -> None:
    medians = {"direct": {"sse_p50_ms": 0.1, "sse_p99_ms": 0.5}, "kubo": {"sse_p50_ms": 0.3, "sse_p99_ms": 2.5}}
    verdict.add_derived(medians)
    assert medians["kubo"]["sse_added_p50_ms"] == pytest.approx(0.2)
    assert medians["kubo"]["sse_added_p99_ms"] == pytest.approx(2.0)
    assert "sse_added_p99_ms" not in medians["direct"]


@pytest.mark.parametrize(("with_upload", "status"), [(3.0, "pass"), (3.01, "FAIL")])
def test_stream_beside_an_upload_is_held_against_itself(with_upload: float, status: str) -> None:
    medians = {"ours": {"beside_alone_p99_ms": 1.0, "beside_up_p99_ms": with_upload}}
    verdict.add_derived(medians)
    assert _row(verdict.judge(medians, {}, {}), "chunk p99 beside a bulk upload", "without it").status == status


# Report


def _taken() -> list[report.Taken]:
    return [
        report.Taken(1, "sse", "ours", Sample({"sse_lost_chunks": 0, "rps32": 10.0}, errors=1, others_cores=0.1)),
        report.Taken(1, "sse", "kubo", Sample({"rps32": 5.0}, others_cores=0.7)),
        report.Taken(2, "sse", "ours", Sample({"sse_lost_chunks": 4, "rps32": 20.0}, errors=2, others_cores=0.2)),
    ]


def test_rounds_are_brought_together_by_target() -> None:
    taken = _taken()
    assert report.summaries(taken)["ours"]["rps32"] == stats.Summary(15.0, 10.0, 20.0, 2)
    assert report.errors_by_target(taken) == {"ours": 3, "kubo": 0}
    assert report.lost_chunks(taken) == {"ours": 4}
    noise = report.noise(taken)
    assert noise["others_cores"]["median"] == 0.2
    assert noise["worst"] == "sse of kubo in round 1"


@pytest.mark.parametrize(("others", "warned"), [(0.25, False), (0.26, True)])
def test_a_noisy_run_says_so(others: float, warned: bool) -> None:
    taken = [report.Taken(1, "sse", "ours", Sample({"sse_nice": -10}, others_cores=others))]
    line = report.noise_line(report.noise(taken))
    assert ("TOO MUCH" in line) is warned
    assert line.endswith("ran at nice -10")


def test_table_shows_medians_spread_and_gaps() -> None:
    taken = [*_taken(), report.Taken(1, "rss", "kubo", Sample({"rss_idle_mib": 61.4}))]
    spread = report.summaries(taken)
    medians = {target: {key: value.median for key, value in found.items()} for target, found in spread.items()}
    text = report.table({"ours": "federation", "kubo": "kubo"}, medians, spread, {"ours": 3, "kubo": 0})
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["requests/s, 32 connections"][-4:] == ["15", "±", "33%", "5"]
    assert lines["RSS MiB after the load, no connection open"][-2:] == ["-", "61"]
    assert lines["connection errors, all rounds"][-2:] == ["3", "0"]
    assert "requests/s, 256 connections" not in lines


def test_document_holds_every_sample() -> None:
    rows = verdict.judge({}, {}, {})
    document = report.document(_taken(), {}, rows, {"versions": {}})
    assert [(one["round"], one["target"], one["values"]["rps32"]) for one in document["samples"]] == [
        (1, "ours", 10.0),
        (1, "kubo", 5.0),
        (2, "ours", 20.0),
    ]
    assert len(document["requirements"]) == len(rows)


# Command line


def test_names_are_checked_and_come_in_the_order_of_the_run() -> None:
    given = command.parse(["--targets", "kubo,direct", "--only", "rss,bulk"])
    assert (given.targets, given.only) == (["direct", "kubo"], ["bulk", "rss"])


@pytest.mark.parametrize(("arguments", "rounds"), [([], 5), (["--quick"], 3), (["--quick", "--rounds", "1"], 1)])
def test_rounds(arguments: list[str], rounds: int) -> None:
    assert command.parse(arguments).rounds == rounds


@pytest.mark.parametrize("arguments", [["--targets", "kubo,nothing"], ["--only", ""], ["--rounds", "0"]])
def test_nonsense_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.parse(arguments)
    assert caught.value.code == 2
    assert "not one of" in capsys.readouterr().err or "--rounds" in arguments


class _FakeBench:
    """Takes a second of a clock of its own for each measurement, and cannot do the `sse` of `kubo`."""

    def __init__(self) -> None:
        self.now = 0.0

    def measure(self, name: str, target: targets.Target) -> Sample:
        if (name, target.name) == ("sse", "kubo"):
            raise LoadFailed("no luck")
        self.now += 1.0
        return Sample({"x": 1.0})


def _order(*arguments: str, deadline: float = math.inf) -> tuple[list[str], list[str]]:
    """("round measure target" of each sample, what was left out)"""
    bench = _FakeBench()
    given = command.parse(arguments)
    chosen = [command.TARGETS[name]() for name in given.targets]
    left_out: list[str] = []
    taken = command.run(bench, chosen, given, deadline, left_out, clock=lambda: bench.now, settle=lambda: None)
    return [f"{one.round} {one.measure} {one.target}" for one in taken], left_out


def test_targets_are_interleaved_and_the_small_one_is_measured_once() -> None:
    taken, left_out = _order("--targets", "direct,haproxy,pylibp2p", "--only", "keepalive,sse", "--rounds", "2")
    assert taken == [
        "1 keepalive direct",
        "1 keepalive haproxy",
        "1 keepalive pylibp2p",
        "1 sse direct",
        "1 sse haproxy",
        "2 keepalive haproxy",  # the order turns with the rounds
        "2 keepalive direct",
        "2 sse haproxy",
        "2 sse direct",
    ]
    assert left_out == []


def test_what_fails_is_told_and_the_rest_goes_on() -> None:
    taken, left_out = _order("--targets", "kubo,haproxy", "--only", "sse", "--rounds", "1")
    assert taken == ["1 sse haproxy"]
    assert left_out == ["sse of kubo in round 1: no luck"]


def test_a_further_round_takes_what_still_fits() -> None:
    taken, left_out = _order("--targets", "direct,haproxy", "--only", "keepalive,bulk,sse", "--rounds", "9", deadline=9)
    assert taken[6:] == ["2 keepalive haproxy", "2 keepalive direct"]
    assert left_out == []


def test_a_first_round_that_does_not_fit_is_told() -> None:
    taken, left_out = _order("--targets", "direct,haproxy", "--only", "keepalive,bulk", deadline=1)
    assert taken == ["1 keepalive direct", "1 keepalive haproxy"]
    assert left_out == ["bulk: out of time"]


# Requests for models (--http)


def test_the_verdicts_of_http_compare_medians_with_one_rival() -> None:
    samples = {
        "ours": {"rps32": [90.0, 130.0, 150.0], "cpu32_us": [40.0, 50.0, 60.0], "p50_1_ms": [0.2]},
        "sglang": {"rps32": [100.0], "cpu32_us": [40.0], "gap_p99_ms": [1.0]},
    }
    assert http.verdicts(samples) == [
        "requests/s, 32 connections: 1.30x of sglang, >= 1.3x wanted: pass",
        "CPU us per request: 1.25x of sglang, <= 1x wanted: FAIL",
    ]


def test_the_table_of_http_shows_what_was_measured_and_the_errors() -> None:
    samples = {"direct": {"rps32": [10.0]}, "ours": {"rps32": [900.0, 1000.0, 1100.0], "chunks_per_s": [5.0]}}
    table = http.table([("direct", "direct"), ("ours", "federation")], samples, {"ours": 3}).splitlines()
    assert table[0].split() == ["median", "of", "the", "rounds", "±", "half", "the", "range", "direct", "federation"]
    assert table[1].split() == ["requests/s,", "32", "connections", "10", "±", "0%", "1,000", "±", "10%"]
    assert table[2].split() == ["64", "token", "streams,", "chunks/s", "-", "5", "±", "0%"]
    assert table[3].split() == ["errors", "0", "3"]


def test_the_long_body_names_a_model_and_is_long() -> None:
    body = http._long_body()
    assert abs(len(body) - http.LONG) < http.LONG / 100
    assert json.loads(body)["model"] == "m"


def test_a_stream_of_the_mock_is_chunks_of_events() -> None:
    size, _, rest = tokens.CHUNK.partition(b"\r\n")
    assert len(rest) == int(size, 16) + 2
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"\n\n\r\n")


def test_the_load_of_streams_counts_what_a_server_sends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ruler.tokens", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1] / "scripts")),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = tokens.load(int(process.stdout.readline()), streams=2, seconds=0.5)
    finally:
        process.communicate()  # the end of its stdin is the server's
    assert said["errors"] == 0
    assert said["chunks"] > 0
    assert said["p99_gap_ms"] >= 0
    assert process.returncode == 0
