"""Processes: starts them, ends exactly those, and reads from /proc what they cost."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class StartFailed(Exception):
    """A process of the bench did not come up."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StartFailed(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.02)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def die_with_parent() -> None:
    """For `preexec_fn`, which is safe here: the bench has one thread."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Every process that the bench starts and keeps. They die with it, even where it is killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[tuple[str, subprocess.Popen[str]]] = []

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        announces: bool = False,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """What it prints goes to NAME.log, but for the stdout of one that announces itself by a line (`read_line`).

        An end of stdin tells the bench's own programs to stop.
        """
        log: IO[bytes]
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if announces else log,
                stderr=log,
                text=True,
                env=env,
                cwd=cwd,
                preexec_fn=die_with_parent,
            )
        self._running.append((name, process))
        return process

    def read_line(self, name: str, process: subprocess.Popen[str], *, seconds: float = 20.0) -> str:
        """The line by which a process says that it is ready."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        if not line:
            raise StartFailed(f"{name}: {self.log_tail(name)}")
        return line

    def log_tail(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return " | ".join(lines[-3:]) or "said nothing"

    def pids(self) -> list[int]:
        return [process.pid for _, process in self._running if process.poll() is None]

    def dead(self) -> list[str]:
        return [name for name, process in self._running if process.poll() is not None]

    def stop(self) -> None:
        for _, process in reversed(self._running):
            if process.stdin is not None:
                process.stdin.close()  # kubo's library takes SIGTERM and does nothing with it
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 5
        for _, process in self._running:
            try:
                process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._running.clear()


@dataclass(frozen=True)
class ProcessTimes:
    parent: int
    ticks: int  # user and system, of all its threads and of the children that it has waited for


def parse_stat(text: str) -> ProcessTimes:
    """One /proc/PID/stat line. The name in it may hold anything, blanks and brackets too: count from the last one."""
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessTimes(parent=int(fields[1]), ticks=sum(map(int, fields[11:15])))


def read_processes() -> dict[int, ProcessTimes]:
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                found[int(entry)] = parse_stat(file.read())
    return found


def family(roots: Iterable[int], processes: dict[int, ProcessTimes]) -> set[int]:
    """The roots and all that descends from them."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    seen: set[int] = set()
    todo = [pid for pid in roots if pid in processes]
    while todo:
        pid = todo.pop()
        if pid not in seen:
            seen.add(pid)
            todo += children.get(pid, ())
    return seen


def resident_mib(roots: Iterable[int]) -> float:
    pages = 0
    for pid in family(roots, read_processes()):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def parse_machine_ticks(text: str) -> tuple[int, int]:
    """(busy, stolen) of the `cpu` line of /proc/stat. Waiting for the disk is not busy."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq, steal


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float  # of the target's processes
    others_cores: float  # cores used by what is neither target, backend nor generator: the noise
    stolen_cores: float  # taken by the hypervisor


class Meter:
    """What a stretch of time cost: `start`, do it, `stop`."""

    def __init__(self, target: Iterable[int], kept: Iterable[int]) -> None:
        self._target = tuple(target)
        self._kept = tuple(kept)
        self._before = self._read()

    def _read(self) -> tuple[float, float, float, int, int]:
        processes = read_processes()
        target = sum(processes[pid].ticks for pid in family(self._target, processes))
        kept = sum(processes[pid].ticks for pid in family(self._kept, processes))
        # The generators have ended by now: they are in the children's account. So are kept processes, once they ended.
        own = sum(
            usage.ru_utime + usage.ru_stime
            for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        )
        busy, stolen = parse_machine_ticks(Path("/proc/stat").read_text())
        return time.monotonic(), target / TICKS_PER_S, kept / TICKS_PER_S + own, busy, stolen

    def stop(self) -> Cost:
        wall, target, ours, busy, stolen = (after - before for before, after in zip(self._before, self._read(), strict=True))
        others = max(0.0, busy / TICKS_PER_S - ours)  # the kernel counts the one by samples, the other exactly
        return Cost(wall, target, others / wall, stolen / TICKS_PER_S / wall)
