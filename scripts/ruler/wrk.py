"""Runs wrk and reads what it prints."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3}


class WrkFailed(Exception):
    """wrk did not run, or printed something else than a report."""


@dataclass(frozen=True)
class WrkReport:
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int  # connect, read, write and time-out errors, and answers other than 2xx and 3xx


def parse(text: str) -> WrkReport:
    total = re.search(r"^\s*(\d+) requests in ", text, re.M)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    if not total or not rate:
        raise WrkFailed(text.strip()[-300:] or "no output")
    errors = 0
    if found := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        errors += sum(map(int, found.groups()))
    if found := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        errors += int(found.group(1))
    return WrkReport(int(total.group(1)), float(rate.group(1)), _latency(text, 50), _latency(text, 99), errors)


def _latency(text: str, percent: int) -> float:
    found = re.search(rf"^\s*{percent}(?:\.0+)?%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.M)
    if not found:
        raise WrkFailed(f"no {percent} % latency in: {text.strip()[-300:]}")
    return float(found.group(1)) * _MS[found.group(2)]


def run(
    port: int,
    *,
    connections: int,
    seconds: int,
    close: bool = False,
    path: str = "/body",
    script: Path | None = None,
) -> WrkReport:
    """`script`: of Lua; it makes the request. One thread: on two cores a second one would take time from the forwarders."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if close:
        command += ["-H", "Connection: close"]
    if script is not None:
        command += ["-s", str(script)]
    command.append(f"http://127.0.0.1:{port}{path}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    if done.returncode:
        raise WrkFailed((done.stderr or done.stdout).strip()[-300:])
    return parse(done.stdout)
