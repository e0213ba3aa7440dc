"""What this project must reach, as rows, and whether the medians of one run reach it. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .stats import ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .report import Taken

SUBJECT = "ours"

Medians = dict[str, dict[str, float]]  # target -> metric -> median


@dataclass(frozen=True)
class Limit:
    """A bound of a ratio, and, where there is one, what is hoped for beyond it."""

    bound: float
    aim: float | None = None


@dataclass(frozen=True)
class Requirement:
    label: str
    metric: str
    higher: bool  # more is better
    limits: Mapping[str, Limit]  # reference target -> limit of ours / reference


_BULK = {"kubo": Limit(1.3), "haproxy": Limit(0.9, aim=1.1)}

REQUIREMENTS = (
    Requirement("new connections/s", "conn_per_s", True, {"kubo": Limit(2.0), "haproxy": Limit(3.0)}),
    Requirement("CPU per connection", "conn_cpu_us", False, {"kubo": Limit(0.5), "haproxy": Limit(0.3)}),
    Requirement("keep-alive p50, 1 connection", "ka1_p50_ms", False, {"kubo": Limit(0.9), "haproxy": Limit(1.3, aim=1.0)}),
    Requirement("requests/s, 32 connections", "rps32", True, {"kubo": Limit(1.8), "haproxy": Limit(1.2)}),
    Requirement("requests/s, 256 connections", "rps256", True, {"kubo": Limit(1.8), "haproxy": Limit(1.2)}),
    Requirement("CPU per request, 32 connections", "rps32_cpu_us", False, {"kubo": Limit(0.5), "haproxy": Limit(1.0)}),
    Requirement("bulk down, 1 stream", "down1_mbs", True, _BULK),
    Requirement("bulk up, 1 stream", "up1_mbs", True, _BULK),
    Requirement("bulk down, 4 streams", "down4_mbs", True, _BULK),
    Requirement("bulk up, 4 streams", "up4_mbs", True, _BULK),
    Requirement("CPU per GiB", "bulk_cpu_s_per_gib", False, {"kubo": Limit(1.0)}),
    Requirement("200 SSE streams, added p99", "sse_added_p99_ms", False, {"kubo": Limit(0.8), "haproxy": Limit(1.2)}),
)

BESIDE_LIMIT = 3.0

SAME = 0.03  # a median this much worse than the other checkout's is a loss


@dataclass(frozen=True)
class Change:
    """This checkout's figure over the other's, round by round: below 1 is worse, whichever way the metric counts."""

    metric: str
    better: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.better)

    @property
    def status(self) -> str:
        return "pass" if self.median >= 1 - SAME else "FAIL"


@dataclass(frozen=True)
class Row:
    label: str
    against: str
    required: str
    measured: float | None
    status: str  # "pass", "FAIL" or "not measured"
    note: str = ""


def add_derived(medians: Medians) -> None:
    """What a target adds to the delay of the direct way, which is the generators' own and the machine's."""
    direct = medians.get("direct", {})
    for name, values in medians.items():
        for percent in ("p50", "p99"):
            key = f"sse_{percent}_ms"
            if name != "direct" and key in values and key in direct:
                values[f"sse_added_{percent}_ms"] = values[key] - direct[key]
        beside = ratio(values.get("beside_up_p99_ms"), values.get("beside_alone_p99_ms"))
        if beside is not None:
            values["beside_ratio"] = beside


# Of one metric each round has one figure of either checkout; the tails of single runs say more of the machine than of us.
COMPARED = {requirement.metric: requirement.higher for requirement in REQUIREMENTS} | {
    "rps256_cpu_us": False,
    "sse_p50_ms": False,
    "sse_cpu_us": False,
    "beside_up_mbs": True,
    "rss_idle_mib": False,
    "rss_conn_kib": False,
}


def compare(taken: Sequence[Taken], subject: str = SUBJECT, reference: str = "before") -> list[Change]:
    """How `subject` did beside `reference`, in the order of COMPARED. A round counts where both have the metric."""
    figures: dict[tuple[str, int, str], float] = {}
    for one in taken:
        for metric, value in one.sample.values.items():
            figures[metric, one.round, one.target] = value
    found = []
    for metric, higher in COMPARED.items():
        rounds = sorted({number for name, number, _ in figures if name == metric})
        pairs = ((figures.get((metric, n, subject)), figures.get((metric, n, reference))) for n in rounds)
        better = [share for ours, theirs in pairs if (share := ratio(*((ours, theirs) if higher else (theirs, ours))))]
        if better:
            found.append(Change(metric, better))
    return found


def judge(medians: Medians, errors: Mapping[str, int], lost_chunks: Mapping[str, float]) -> list[Row]:
    """`medians` with `add_derived`; `errors` and `lost_chunks` are sums and maxima over all rounds of a target."""
    ours = medians.get(SUBJECT, {})
    rows = [
        _compare(requirement, reference, limit, ours, medians.get(reference, {}))
        for requirement in REQUIREMENTS
        for reference, limit in requirement.limits.items()
    ]
    full = lost_chunks.get(SUBJECT)
    rows.append(_absolute("200 SSE streams, chunks not delivered", "= 0", full, full == 0))
    beside = ours.get("beside_ratio")
    rows.append(
        Row(
            "chunk p99 beside a bulk upload",
            "without it",
            f"<= {BESIDE_LIMIT:g}x",
            beside,
            _status(beside, beside is not None and beside <= BESIDE_LIMIT),
        )
    )
    failed = errors.get(SUBJECT)
    rows.append(_absolute("connection errors in any run", "= 0", failed, failed == 0))
    return rows


def _compare(
    requirement: Requirement, reference: str, limit: Limit, ours: dict[str, float], theirs: dict[str, float]
) -> Row:
    measured = ratio(ours.get(requirement.metric), theirs.get(requirement.metric))
    sign = ">=" if requirement.higher else "<="

    def reached(bound: float) -> bool:
        return measured is not None and (measured >= bound if requirement.higher else measured <= bound)

    note = ""
    if limit.aim is not None and measured is not None:
        note = f"aim {limit.aim:g}x {'reached' if reached(limit.aim) else 'missed'}"
    return Row(
        requirement.label,
        reference,
        f"{sign} {limit.bound:g}x",
        measured,
        _status(measured, reached(limit.bound)),
        note,
    )


def _absolute(label: str, required: str, measured: float | None, reached: bool) -> Row:
    return Row(label, "", required, measured, _status(measured, reached))


def _status(measured: float | None, reached: bool) -> str:
    if measured is None:
        return "not measured"
    return "pass" if reached else "FAIL"
