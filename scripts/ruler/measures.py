"""The measures: each sends one kind of load through one target and says what came of it.

Units are in the keys: ms, s, mib (2**20), mbs (10**6 bytes a second), us of CPU. CPU is that of the target's processes,
entry and exit together, all their threads; `direct` has none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import wrk
from .backends import bring_into_memory, file_in
from .procs import Meter, die_with_parent, resident_mib

if TYPE_CHECKING:
    from collections.abc import Callable

    from .procs import Cost, Supervisor
    from .targets import Target

MIB = 1 << 20
BESIDE_CLIENTS = 10  # one stream alone gives too few chunks for a p99 in a few seconds


class LoadFailed(Exception):
    """The load did not get through at all."""


@dataclass(frozen=True)
class Sizes:
    """How much load: the full run and the quick one differ in nothing else."""

    wrk_s: int = 4
    bulk_one_mib: int = 256
    bulk_four_mib: int = 128  # each of the four
    sse_clients: int = 200
    sse_chunks: int = 300
    beside_chunks: int = 250


QUICK = Sizes(wrk_s=1, bulk_one_mib=96, bulk_four_mib=32, sse_chunks=100, beside_chunks=75)


@dataclass
class Sample:
    """One measure of one target in one round."""

    values: dict[str, float] = field(default_factory=dict)
    errors: int = 0
    wall_s: float = 0.0
    others_cores: float = 0.0
    stolen_cores: float = 0.0


class Bench:
    def __init__(self, supervisor: Supervisor, sizes: Sizes) -> None:
        self.supervisor = supervisor
        self.sizes = sizes

    def measure(self, name: str, target: Target) -> Sample:
        """Raises LoadFailed where there is nothing to report."""
        self._sample = Sample()
        MEASURES[name](self, target)
        if not target.pids:  # direct: there is nobody whose CPU it could be
            self._sample.values = {key: value for key, value in self._sample.values.items() if "_cpu_" not in key}
        return self._sample

    def _meter(self, target: Target) -> Meter:
        return Meter(target.pids, self.supervisor.pids())

    def _account(self, cost: Cost) -> None:
        """A measure may have several metered stretches: the noise of the sample is their mean."""
        sample = self._sample
        wall = sample.wall_s + cost.wall_s
        sample.others_cores = (sample.others_cores * sample.wall_s + cost.others_cores * cost.wall_s) / wall
        sample.stolen_cores = (sample.stolen_cores * sample.wall_s + cost.stolen_cores * cost.wall_s) / wall
        sample.wall_s = wall

    def _wrk(self, target: Target, connections: int, *, close: bool = False) -> tuple[wrk.WrkReport, float]:
        """(report, CPU us of the target for each request)"""
        meter = self._meter(target)
        report = wrk.run(target.entry["web"], connections=connections, seconds=self.sizes.wrk_s, close=close)
        cost = meter.stop()
        self._account(cost)
        self._sample.errors += report.errors
        return report, cost.cpu_s * 1e6 / max(1, report.requests)

    def connections(self, target: Target) -> None:
        report, cpu_us = self._wrk(target, 8, close=True)
        self._sample.values = {"conn_per_s": report.requests_per_s, "conn_cpu_us": cpu_us, "conn_p99_ms": report.p99_ms}

    def keepalive(self, target: Target) -> None:
        report, cpu_us = self._wrk(target, 1)
        self._sample.values = {"ka1_p50_ms": report.p50_ms, "ka1_p99_ms": report.p99_ms, "ka1_cpu_us": cpu_us}

    def requests32(self, target: Target) -> None:
        report, cpu_us = self._wrk(target, 32)
        self._sample.values = {"rps32": report.requests_per_s, "rps32_cpu_us": cpu_us, "rps32_p99_ms": report.p99_ms}

    def requests256(self, target: Target) -> None:
        report, cpu_us = self._wrk(target, 256)
        self._sample.values = {"rps256": report.requests_per_s, "rps256_cpu_us": cpu_us, "rps256_p99_ms": report.p99_ms}

    def bulk(self, target: Target) -> None:
        moved = cpu_s = 0.0
        for streams, mib in ((1, self.sizes.bulk_one_mib), (4, self.sizes.bulk_four_mib)):
            size = max(1, int(mib * target.bulk_share)) * MIB
            for way, service in (("down", "web"), ("up", "sink")):
                if service == "web":
                    bring_into_memory(file_in(self.supervisor.directory))
                meter = self._meter(target)
                said = _load("bulk", way, target.entry[service], streams=streams, size=size)
                cost = meter.stop()
                self._account(cost)
                self._sample.errors += int(said["errors"])
                if said["bytes"] < streams * size:
                    continue  # what did not arrive whole has no rate
                moved += said["bytes"]
                cpu_s += cost.cpu_s
                self._sample.values[f"{way}{streams}_mbs"] = said["bytes"] / said["seconds"] / 1e6
                self._sample.values[f"{way}{streams}_cpu_s_per_gib"] = cost.cpu_s / said["bytes"] * 2**30
        if moved:
            self._sample.values["bulk_cpu_s_per_gib"] = cpu_s / moved * 2**30

    def sse(self, target: Target) -> None:
        meter = self._meter(target)
        said = self._streams(target, self.sizes.sse_clients, self.sizes.sse_chunks)
        cost = meter.stop()
        self._account(cost)
        self._sample.values = {
            "sse_p50_ms": said["p50_us"] / 1e3,
            "sse_p99_ms": said["p99_us"] / 1e3,
            "sse_full_percent": 100.0 * said["full"] / said["clients"],
            "sse_lost_chunks": said["chunks_expected"] - said["chunks"],
            "sse_cpu_us": cost.cpu_s * 1e6 / max(1, said["chunks"]),
            "sse_nice": said["nice"],
            "sse_server_late_ms": said["server_late_ms"],
        }

    def beside(self, target: Target) -> None:
        """A few token streams alone, then beside one bulk upload of the same pair; a download is for information."""
        seconds = self.sizes.beside_chunks / 50
        for way, service in (("alone", ""), ("up", "sink"), ("down", "web")):
            if service == "web":
                bring_into_memory(file_in(self.supervisor.directory))
            meter = self._meter(target)
            options = {"size": 16 * MIB, "seconds": seconds + 0.5}
            with _spawn("bulk", way, target.entry[service], **options) if service else nullcontext() as bulk:
                said = self._streams(target, BESIDE_CLIENTS, self.sizes.beside_chunks)
                moved = _answer(bulk) if bulk else None
            self._sample.values[f"beside_{way}_p50_ms"] = said["p50_us"] / 1e3
            self._sample.values[f"beside_{way}_p99_ms"] = said["p99_us"] / 1e3
            if moved is not None:
                self._sample.errors += int(moved["errors"])
                self._sample.values[f"beside_{way}_mbs"] = moved["bytes"] / max(1e-9, moved["seconds"]) / 1e6
            self._account(meter.stop())

    def _streams(self, target: Target, clients: int, chunks: int) -> dict[str, float]:
        said = _load("sse", "load", target.entry["sse"], clients=clients, chunks=chunks)
        self._sample.errors += int(said["errors"])
        if not said["full"]:
            raise LoadFailed("no stream came to its end")
        return said

    def rss(self, target: Target) -> None:
        meter = self._meter(target)
        idle = resident_mib(target.pids)
        with _spawn("hold", "", target.entry["web"], connections=target.connections) as holder:
            assert holder.stdout is not None
            held = int(json.loads(holder.stdout.readline() or '{"held": 0}')["held"])
            full = resident_mib(target.pids)
            lost = int(_answer(holder)["lost"])
        self._account(meter.stop())
        self._sample.errors += target.connections - held + lost
        if target.connections == 1000 and held == target.connections:
            self._sample.values["rss_1000_mib"] = full
        self._sample.values |= {"rss_idle_mib": idle, "rss_conn_kib": (full - idle) * 1024 / max(1, held)}


MEASURES: dict[str, Callable[[Bench, Target], None]] = {
    "connections": Bench.connections,
    "keepalive": Bench.keepalive,
    "rps32": Bench.requests32,
    "rps256": Bench.requests256,
    "bulk": Bench.bulk,
    "sse": Bench.sse,
    "beside": Bench.beside,
    "rss": Bench.rss,
}


def _spawn(module: str, mode: str, port: int, **options: float) -> subprocess.Popen[str]:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", f"ruler.{module}", *([mode] if mode else []), "--port", str(port), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=die_with_parent)


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """Ends its stdin, and reads the line of JSON that it prints last."""
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LoadFailed("the load took longer than two minutes") from None
    if process.returncode:
        raise LoadFailed(err.strip()[-300:])
    said: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return said


def _load(module: str, mode: str, port: int, **options: float) -> dict[str, float]:
    with _spawn(module, mode, port, **options) as process:
        return _answer(process)
