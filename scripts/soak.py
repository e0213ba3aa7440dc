"""Twenty real daemons on loopback: what each costs while idle, then minutes of traffic and churn. Run by scripts/soak.

Idle: bytes are TCP payload on the links between nodes, as the kernel counts them (`ss -ti`), both directions added;
CPU is user and system time of the process. Then clients make new connections at three entries that stay, while every ten
seconds one of the other nodes is killed, leaves, or comes back. Fails if a connection failed or memory went on growing.

Everything started here is ended here, and nothing is left on disk.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integration"))

import harness
from fleet import Fleet
from harness import wait_until
from load import Load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness import Daemon

ENTRIES = 3  # they stay: their clients must not notice anything
BACKENDS = 4  # processes; each serves several nodes
STARTED_AT_ONCE = 4
MOST_AWAY = 5  # of the nodes that come and go
CHURN_S = 10.0
SAMPLE_S = 5.0
WARM_UP = 0.4  # of the samples: caches fill and the first churn is new to everybody
MAX_SLOPE_KB_MIN = 600.0  # 1,200 connections a minute and entry: half a KiB each
_BYTES = re.compile(r"bytes_(?:sent|received):(\d+)")


def say(text: str) -> None:
    print(text, flush=True)


class Meter(NamedTuple):
    at: float
    cpu_s: float
    bytes: int  # over links that stayed, both directions


class Idle(NamedTuple):
    bytes_s: float
    cpu: float  # share of one core


def link_bytes(daemons: Sequence[Daemon]) -> dict[int, int]:
    """By pid: bytes sent and received on its links. Loopback shows each connection from both ends."""
    ports = {daemon.p2p[1] for daemon in daemons}
    found = dict.fromkeys((daemon.pid for daemon in daemons), 0)
    lines = subprocess.run(["ss", "-tinpHO", "state", "established"], capture_output=True, text=True, check=True).stdout
    for line in lines.splitlines():
        pid = re.search(r"pid=(\d+)", line)
        ends = [int(field.rpartition(":")[2]) for field in line.split()[2:4]]
        if pid and int(pid[1]) in found and ports.intersection(ends):
            found[int(pid[1])] += sum(map(int, _BYTES.findall(line)))
    return found


def measure_idle(daemons: Sequence[Daemon], seconds: float) -> list[Idle]:
    def meters() -> list[Meter]:
        moved = link_bytes(daemons)
        return [Meter(time.monotonic(), daemon.cpu_s(), moved[daemon.pid]) for daemon in daemons]

    before = meters()
    time.sleep(seconds)
    return [
        Idle((b.bytes - a.bytes) / (b.at - a.at), (b.cpu_s - a.cpu_s) / (b.at - a.at))
        for a, b in zip(before, meters(), strict=True)
    ]


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Least squares: value a second."""
    t_mean, v_mean = mean(t for t, _ in samples), mean(v for _, v in samples)
    spread = sum((t - t_mean) ** 2 for t, _ in samples)
    return sum((t - t_mean) * (v - v_mean) for t, v in samples) / spread if spread else 0.0


def start(fleet: Fleet, nodes: int) -> list[Daemon]:
    backends = [fleet.backend("http", f"backend{n}", "--delay", "0.01") for n in range(BACKENDS)]
    daemons: list[Daemon] = []
    for n in range(nodes):
        # A replayed request does no harm to these backends, so nobody need see that a peer was killed.
        daemons.append(
            fleet.daemon(
                f"node{n:02}", "--replay", "first-byte", "--vram", "8GB", "--log-level", "warning",
                backend=backends[n % BACKENDS], peer=daemons[0] if daemons else None, wait=not daemons,
            )
        )  # fmt: skip
        if n % STARTED_AT_ONCE == 0:
            daemons[-1].wait_ready()
    for daemon in daemons:
        daemon.wait_ready()
    wait_whole(daemons)
    return daemons


def wait_whole(daemons: Sequence[Daemon]) -> None:
    for daemon in daemons:
        wait_until(lambda d=daemon: len(d.offers()) == len(daemons), within=60, what=f"{daemon.name} reaches everybody")


class Churn:
    """Every `CHURN_S` a node goes, with or without good-bye, or one that went comes back."""

    def __init__(self, daemons: Sequence[Daemon], rng: random.Random) -> None:
        self._here = list(daemons)
        self._away: list[Daemon] = []
        self._rng = rng
        self.killed = self.left = self.came_back = 0

    def step(self) -> None:
        back = bool(self._away) and (len(self._away) >= MOST_AWAY or self._rng.random() < 0.5)
        pool, other = (self._away, self._here) if back else (self._here, self._away)
        daemon = pool.pop(self._rng.randrange(len(pool)))
        other.append(daemon)
        if back:
            daemon.launch()
            self.came_back += 1
        elif self._rng.random() < 0.5:
            daemon.wait_ready()
            daemon.kill()
            self.killed += 1
        else:
            daemon.wait_ready()
            daemon.stop()
            self.left += 1

    def all_back(self) -> None:
        for daemon in self._away:
            daemon.launch()
        for daemon in [*self._away, *self._here]:
            daemon.wait_ready()


def soak(daemons: list[Daemon], minutes: float, rng: random.Random, every_s: float) -> bool:
    entries, others = daemons[:ENTRIES], daemons[ENTRIES:]
    churn = Churn(others, rng)
    memory: dict[str, list[tuple[float, float]]] = {entry.name: [] for entry in entries}
    loads = [Load(entry.entry(), clients=2, every_s=every_s) for entry in entries]
    began = time.monotonic()
    for load in loads:
        load.__enter__()
    try:
        next_churn = began + CHURN_S
        while (now := time.monotonic()) < began + minutes * 60:
            for entry in entries:
                memory[entry.name].append((now - began, entry.rss_bytes() / 1024))
            if now >= next_churn:
                churn.step()
                next_churn += CHURN_S
            time.sleep(max(0.0, min(now + SAMPLE_S, next_churn) - time.monotonic()))
    finally:
        for load in loads:
            load.__exit__(None, None, None)
    files = [entry.open_files() for entry in entries]
    churn.all_back()
    wait_whole(daemons)

    requests = [request for load in loads for request in load.requests]
    failed = [request for request in requests if request.failed]
    took = sorted(request.took_s for request in requests)
    say(
        f"churn: {churn.killed} killed, {churn.left} left, {churn.came_back} came back; in the end all were back and reached"
    )
    say(
        f"new connections: {len(requests)}, failed: {len(failed)}; p50 {median(took) * 1e3:.1f} ms, "
        f"p99 {took[int(len(took) * 0.99)] * 1e3:.1f} ms, slowest {took[-1]:.2f} s"
    )
    for request in failed[:10]:
        say(f"  failed after {request.took_s:.2f} s at {request.started - began:.1f} s: {request.error}")
    steady = True
    for (name, samples), count in zip(memory.items(), files, strict=True):
        settled = samples[int(len(samples) * WARM_UP) :]
        grows = slope(settled) * 60
        steady = steady and (minutes < 5 or grows < MAX_SLOPE_KB_MIN)
        say(
            f"memory of {name}: {settled[0][1] / 1024:.1f} MiB, in the end {settled[-1][1] / 1024:.1f} MiB, "
            f"slope {grows:+.0f} kB/min over the last {settled[-1][0] - settled[0][0]:.0f} s; {count} descriptors"
        )
    if minutes < 5:
        say("a slope over less than five minutes is no verdict")
    return not failed and steady


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of traffic and churn; 0: only the idle part (default 10)"
    )
    parser.add_argument("--nodes", type=int, default=20, help="daemons (default 20)")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to measure idle nodes for (default 30)")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two connections of a client (default 0.1)")
    parser.add_argument("--seed", type=int, default=1, help="of the churn (default 1)")
    options = parser.parse_args()
    if options.nodes <= ENTRIES:
        parser.error(f"--nodes must be at least {ENTRIES + 1}")
    os.nice(5)
    harness.START_S = 90.0  # several at once, on a machine that may be busy
    with tempfile.TemporaryDirectory(prefix="federation-soak-") as directory:
        fleet = Fleet(Path(directory) / "fleet")
        fleet.directory.mkdir()
        ok = False
        try:
            daemons = start(fleet, options.nodes)
            if options.idle:
                time.sleep(10.0)  # what joining stirred up settles
                idle = measure_idle(daemons, options.idle)
                say(
                    f"idle, {options.nodes} nodes: {mean(i.bytes_s for i in idle) / 1e3:.2f} kB/s a node "
                    f"(most {max(i.bytes_s for i in idle) / 1e3:.2f}), {mean(i.cpu for i in idle):.2%} of a core "
                    f"(most {max(i.cpu for i in idle):.2%}), {daemons[0].rss_bytes() / 2**20:.0f} MiB"
                )
            ok = soak(daemons, options.minutes, random.Random(options.seed), options.every) if options.minutes else True
        finally:
            wrong = fleet.close()
        for complaint in wrong:
            say(f"wrong: {complaint}")
    return 0 if ok and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
