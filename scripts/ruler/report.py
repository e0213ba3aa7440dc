"""The tables that people read and the document that machines read. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .stats import Summary, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .measures import Sample
    from .verdict import Change, Row

# What the table shows, in its order; samples hold more, and the JSON has all of it.
METRICS = (
    ("conn_per_s", "new connections/s, 8 at a time", 0),
    ("conn_cpu_us", "  CPU us per connection", 0),
    ("ka1_p50_ms", "keep-alive, 1 connection, p50 ms", 3),
    ("ka1_p99_ms", "  p99 ms", 3),
    ("ka1_cpu_us", "  CPU us per request", 0),
    ("rps32", "requests/s, 32 connections", 0),
    ("rps32_p99_ms", "  p99 ms", 2),
    ("rps32_cpu_us", "  CPU us per request (= ms per 1,000)", 1),
    ("rps256", "requests/s, 256 connections", 0),
    ("rps256_p99_ms", "  p99 ms", 2),
    ("rps256_cpu_us", "  CPU us per request", 1),
    ("down1_mbs", "bulk down, 1 stream, MB/s", 0),
    ("up1_mbs", "bulk up, 1 stream, MB/s", 0),
    ("down4_mbs", "bulk down, 4 streams, MB/s", 0),
    ("up4_mbs", "bulk up, 4 streams, MB/s", 0),
    ("bulk_cpu_s_per_gib", "  CPU s per GiB, the four together", 2),
    ("sse_p50_ms", "200 SSE streams, chunk delay p50 ms", 3),
    ("sse_p99_ms", "  p99 ms", 3),
    ("sse_added_p50_ms", "  added to direct, p50 ms", 3),
    ("sse_added_p99_ms", "  added to direct, p99 ms", 3),
    ("sse_full_percent", "  clients served in full, %", 1),
    ("sse_cpu_us", "  CPU us per chunk", 1),
    ("beside_alone_p99_ms", "10 SSE streams alone, chunk p99 ms", 3),
    ("beside_up_p99_ms", "  beside a bulk upload, p99 ms", 3),
    ("beside_ratio", "  beside the upload / alone", 2),
    ("beside_up_mbs", "  that upload, MB/s", 0),
    ("beside_down_p99_ms", "  beside a bulk download, p99 ms", 3),
    ("beside_down_mbs", "  that download, MB/s", 0),
    ("rss_idle_mib", "RSS MiB after the load, no connection open", 0),
    ("rss_1000_mib", "  1,000 connections open", 0),
    ("rss_conn_kib", "  more, KiB per connection", 1),
)


@dataclass(frozen=True)
class Taken:
    """A sample with its place in the run."""

    round: int
    measure: str
    target: str
    sample: Sample


def summaries(taken: Sequence[Taken]) -> dict[str, dict[str, Summary]]:
    """target -> metric -> summary over the rounds"""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in taken:
        for metric, value in one.sample.values.items():
            values[one.target][metric].append(value)
    found: dict[str, dict[str, Summary]] = {}
    for target, metrics in values.items():
        found[target] = {}
        for metric, samples in metrics.items():
            if summary := summarise(samples):
                found[target][metric] = summary
    return found


def errors_by_target(taken: Sequence[Taken]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in taken:
        found[one.target] = found.get(one.target, 0) + one.sample.errors
    return found


def lost_chunks(taken: Sequence[Taken]) -> dict[str, float]:
    """The worst round's."""
    found: dict[str, float] = {}
    for one in taken:
        if one.measure == "sse" and "sse_lost_chunks" in one.sample.values:
            found[one.target] = max(found.get(one.target, 0), one.sample.values["sse_lost_chunks"])
    return found


def _cell(median: float | None, summary: Summary | None, digits: int) -> str:
    if median is None:
        return "-"
    text = f"{median:,.{digits}f}"
    return f"{text} ±{summary.spread:4.0%}" if summary and summary.count > 1 else f"{text}      "


def _grid(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


def table(
    labels: dict[str, str],
    medians: dict[str, dict[str, float]],
    spread: dict[str, dict[str, Summary]],
    errors: dict[str, int],
) -> str:
    """`labels`: target -> heading, in the order of the columns."""
    lines = [["median of the rounds ± half the range", *labels.values()]]
    for metric, label, digits in METRICS:
        if any(metric in medians.get(target, {}) for target in labels):
            cells = [
                _cell(medians.get(target, {}).get(metric), spread.get(target, {}).get(metric), digits) for target in labels
            ]
            lines.append([label, *cells])
    lines.append(["connection errors, all rounds", *(f"{errors.get(target, 0)}      " for target in labels)])
    return _grid(lines)


def verdict_table(rows: Sequence[Row]) -> str:
    lines = [["requirement", "against", "required", "measured", "", ""]]
    for row in rows:
        if row.measured is None:
            measured = "-"
        else:
            measured = f"{row.measured:.2f}x" if row.required.endswith("x") else f"{row.measured:g}"
        lines.append([row.label, row.against, row.required, measured, row.status, row.note])
    return _grid(lines)


def comparison_table(changes: Sequence[Change]) -> str:
    labels = {metric: label.strip() for metric, label, _ in METRICS} | {"sse_added_p99_ms": "added p99"}
    lines = [["this checkout beside the other (1.00x: the same; less: worse)", "median", "rounds", ""]]
    for change in changes:
        label = f"{labels.get(change.metric, change.metric)} ({change.metric})"
        rounds = " ".join(f"{share:.2f}" for share in change.better)
        lines.append([label, f"{change.median:.3f}x", rounds, change.status])
    return _grid(lines)


def noise(taken: Sequence[Taken]) -> dict[str, Any]:
    """Cores used by processes that are none of the bench's, cores that the hypervisor took, the streams' priority."""
    if not taken:
        return {}
    worst = max(taken, key=lambda one: one.sample.others_cores)
    others = summarise([one.sample.others_cores for one in taken])
    stolen = summarise([one.sample.stolen_cores for one in taken])
    assert others is not None
    assert stolen is not None
    return {
        "others_cores": others.as_dict(),
        "stolen_cores": stolen.as_dict(),
        "sse_nice": sorted({one.sample.values["sse_nice"] for one in taken if "sse_nice" in one.sample.values}),
        "worst": f"{worst.measure} of {worst.target} in round {worst.round}",
    }


NOISY_CORES = 0.25  # an eighth of the two: from there on a verdict may be the neighbours'


def noise_line(found: dict[str, Any]) -> str:
    others, stolen = found["others_cores"], found["stolen_cores"]
    return (
        f"noise: others used {others['median']:.0%} of a core (median of all measures), at most {others['high']:.0%} "
        f"({found['worst']}); the hypervisor took {stolen['median']:.0%}, at most {stolen['high']:.0%}"
        + ("; TOO MUCH to trust a close verdict" if others["median"] > NOISY_CORES else "")
        + "".join(f"; the ends of the token streams ran at nice {nice:g}" for nice in found["sse_nice"])
    )


def document(
    taken: Sequence[Taken], medians: dict[str, dict[str, float]], rows: Sequence[Row], about: dict[str, Any]
) -> dict[str, Any]:
    spread = summaries(taken)
    return {
        "schema": 1,
        **about,
        "noise": noise(taken),
        "medians": medians,
        "summaries": {
            target: {metric: summary.as_dict() for metric, summary in metrics.items()} for target, metrics in spread.items()
        },
        "errors": errors_by_target(taken),
        "requirements": [asdict(row) for row in rows],
        "samples": [
            {"round": one.round, "measure": one.measure, "target": one.target, **asdict(one.sample)} for one in taken
        ],
    }
