"""One fault under traffic, and what it cost: strike, watch the victim leave everybody's view, cure, watch it come back.

How a connection that ended badly is judged, by the backends' own journals:
    failed   no backend had a byte of it: another peer should have served it. Must be 0.
    cut      a backend had it. `--replay opened` never sends it twice, so that the client hears of the end. Also one begun
             before the strike that its exit had just opened: whether the backend has a byte of it only the dead could say.
    own      its entry itself was away (killed, stopped), or no peer at all could be reached from there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness import clean_environment, wait_until
from lab import HERE, NAMES, Box, Lab
from switch import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

STEADY = 20  # short requests of each entry before the fault
STEADY_S = 30.0
AFTERMATH_S = 4.0  # of traffic when all is back
SETTLE_S = 30.0  # longer than a dead link is kept, so that whatever the fault left has had its chance to go
GROWTH_BYTES = 24 * 2**20  # of resident memory, in one trial: Python's heap does not shrink to the byte


@dataclass(frozen=True)
class Row:
    """Of the table. Times in seconds; None: does not apply. Leaks are sums over the daemons that lived through it."""

    fault: str
    connections: int
    failed: int
    cut: int
    own: int
    slowest_s: float  # time to first byte of a short request, begun after the strike, at entries that were not away
    out_s: float | None
    back_s: float | None
    wrong_bytes: int
    served_twice: int  # at entries with --replay opened
    open: int
    fds: int
    tasks: int
    grown_mib: float  # the worst daemon
    load: float  # of the machine: above 2 processes were starved

    @property
    def is_good(self) -> bool:
        grown = self.grown_mib * 2**20 > GROWTH_BYTES
        return not (self.failed or self.wrong_bytes or self.open or self.fds or self.tasks or grown)


class Clients:
    """client.py at the entry of each machine."""

    def __init__(self, lab: Lab, run: str) -> None:
        self._lab = lab
        self._run = run
        self._directory = lab.directory / "clients"
        self._directory.mkdir(exist_ok=True)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name, box in self._lab.boxes.items():
            command = [sys.executable, str(HERE / "client.py"), "--entry", box.facts["listens"]["default"]]
            command += ["--run", f"{self._run}-{name}", "--journal", str(self._journal(name))]
            with inside(name):
                environment = clean_environment(self._directory)
                self._processes.append(subprocess.Popen(command, env=environment, cwd=self._directory))

    def _journal(self, name: str) -> Path:
        return self._directory / f"{self._run}-{name}"

    def records(self, name: str) -> list[dict[str, Any]]:
        journal = self._journal(name)
        return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(15)


class Trial:
    """`victims`: who is expected to leave the others' view.

    `lossy`: the network loses packets, so that an exit's OPENED may not arrive and its entry sends the request elsewhere.
    """

    def __init__(self, lab: Lab, fault: str, *victims: str, number: int, lossy: bool) -> None:
        self.lossy = lossy
        self.lab = lab
        self._clients = Clients(lab, f"run{number}")
        self.fault = fault
        self.victims = set(victims)
        self.out_s: float | None = None
        self.back_s: float | None = None
        self.struck = 0.0
        self._away: list[tuple[str, float, float]] = []
        self._run = f"run{number}"

    def begin(self) -> None:
        lab = self.lab
        lab.repair()
        lab.quiet()
        self._before = lab.vitals()
        self._clients.start()

        def missing() -> list[str]:
            done = {name: self._clients.records(name) for name in lab.boxes}
            slow = [f"{name} answered {len(records)} clients" for name, records in done.items() if len(records) < STEADY]
            serving = {name for names in self._seen_by_backends().values() for name in names}
            return [*slow, *(f"nobody was sent to {name}" for name in set(lab.backends) - serving)]

        deadline = time.monotonic() + STEADY_S
        while problems := missing():
            assert time.monotonic() < deadline, f"no steady traffic: {', '.join(problems)}"
            time.sleep(0.1)

    # The fault

    def strike(self, action: Callable[..., object], *arguments: object) -> None:
        self.struck = time.monotonic()
        action(*arguments)

    def last(self, seconds: float) -> None:
        """Until the fault is so old."""
        time.sleep(max(0.0, self.struck + seconds - time.monotonic()))

    def wait_out(self, within: float = 45.0, *, observers: Iterable[Box] | None = None) -> None:
        """Until none of the observers (all but the victims) would send anybody there."""
        watching = list(self.lab.others(*self.victims) if observers is None else observers)
        wait_until(
            lambda: not any(box.takes_part() & self.victims for box in watching), within=within, what="the victim is out"
        )
        self.out_s = time.monotonic() - self.struck

    def cure(self, action: Callable[..., object], *arguments: object) -> None:
        self.cured = time.monotonic()
        action(*arguments)

    def restart(self, box: Box) -> None:
        """From when it says that it is ready: how long Python takes to import is another matter."""
        box.launch()
        self.cured = box.wait_ready()

    def wait_back(self, within: float = 60.0) -> None:
        """Until everybody, the victim included, sees everybody."""
        self.lab.wait_whole(within)
        self.back_s = time.monotonic() - self.cured

    @contextmanager
    def away(self, *names: str) -> Iterator[None]:
        """During the block clients of these entries cannot be served, whatever we do."""
        since = time.monotonic()
        yield
        now = time.monotonic()
        self._away += [(name, since, now) for name in names]

    # The verdict

    def finish(self) -> Row:
        time.sleep(AFTERMATH_S)
        load = os.getloadavg()[0]
        self._clients.stop()
        still_open = self.lab.quiet()
        fds, tasks, grown = self._leaks()
        seen = self._seen_by_backends()
        counts = {"connections": 0, "failed": 0, "cut": 0, "own": 0, "wrong_bytes": 0, "served_twice": 0}
        slowest_s = 0.0
        for name in self.lab.boxes:
            for record in self._clients.records(name):
                counts["connections"] += 1
                counts["wrong_bytes"] += record["wrong"]
                counts["served_twice"] += self._is_careful(name) and len(seen.get(record["target"], ())) > 1
                verdict = self._judge(name, record, seen)
                if verdict:
                    counts[verdict] += 1
                    if verdict == "failed":
                        sys.stderr.write(f"failed at {name}: {record}\n")
                elif record["kind"] == "short" and record["started"] >= self.struck and not self._was_away(name, record):
                    slowest_s = max(slowest_s, record["first_byte"] - record["started"])
        return Row(
            self.fault, slowest_s=slowest_s, out_s=self.out_s, back_s=self.back_s, open=sum(still_open.values()),
            fds=fds, tasks=tasks, grown_mib=grown / 2**20, load=load, **counts,
        )  # fmt: skip

    def abandon(self) -> None:
        """The trial went wrong before its end."""
        self._clients.stop()

    def _judge(self, name: str, record: dict[str, Any], seen: dict[str, list[str]]) -> str:
        if not record["error"] or (record["error"] == "unfinished" and record["kind"] == "stream"):
            return ""
        if self._was_away(name, record):
            return "own"
        was_opened = record["started"] < self.struck and self._is_careful(name)
        return "cut" if record["target"] in seen or was_opened else "failed"

    def _is_careful(self, entry: str) -> bool:
        return "first-byte" not in self.lab[entry].options

    def _was_away(self, name: str, record: dict[str, Any]) -> bool:
        return any(
            name == who and record["started"] <= end and record["finished"] >= begin for who, begin, end in self._away
        )

    def _seen_by_backends(self) -> dict[str, list[str]]:
        seen: dict[str, list[str]] = {}
        for name, backend in self.lab.backends.items():
            for target in backend.seen():
                if f"/{self._run}-" in target:
                    seen.setdefault(target, []).append(name)
        return seen

    def _leaks(self) -> tuple[int, int, int]:
        """Descriptors and tasks more than before, in all, and memory of the worst, of the daemons that lived through it."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            after = self.lab.vitals()
            lived = [(self._before[n], after[n]) for n in NAMES if self._before[n]["pid"] == after[n]["pid"]]
            fds = sum(max(0, b["fds"] - a["fds"]) for a, b in lived)
            tasks = sum(max(0, b["tasks"] - a["tasks_at_most"]) for a, b in lived)
            if not (fds or tasks) or time.monotonic() > deadline:
                return fds, tasks, max((b["rss"] - a["rss"] for a, b in lived), default=0)


HEADINGS = {
    "fault": "fault", "connections": "conns", "failed": "failed", "cut": "cut", "own": "own", "slowest_s": "slowest s",
    "out_s": "out s", "back_s": "back s", "wrong_bytes": "wrong B", "served_twice": "twice", "open": "open", "fds": "fds",
    "tasks": "tasks", "grown_mib": "MiB", "load": "load",
}  # fmt: skip


COUNTS = {"connections", "failed", "cut", "own", "wrong_bytes", "served_twice", "open", "fds", "tasks"}


def line(row: Row) -> str:
    """What is not as it should be, and the times."""
    parts = [f"{heading} {getattr(row, key)}" for key, heading in HEADINGS.items() if key in COUNTS and getattr(row, key)]
    times = [f"{h} {value:.1f}" for key, h in HEADINGS.items() if isinstance(value := getattr(row, key), float)]
    return f"{row.fault}: {', '.join([*parts, *times])}"


def table(rows: list[Row]) -> str:
    """Markdown."""

    def text(value: object) -> str:
        return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

    cells = [list(HEADINGS.values()), *[[text(asdict(row)[key]) for key in HEADINGS] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
