"""`scripts/bench`: measures, prints, and says what of the required is reached."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ruler as package

from . import backends as backend_programs
from . import report, verdict, versions
from .integrity import check_integrity
from .measures import MEASURES, QUICK, Bench, LoadFailed, Sizes
from .ours import Before, Compiled, Ours
from .procs import StartFailed, Supervisor
from .targets import ROOT, Direct, HAProxy, Kubo, PyLibp2p
from .wrk import WrkFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .backends import Backends
    from .targets import Target

TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (Direct, Ours, Compiled, Kubo, HAProxy, PyLibp2p)}
QUICK_BUDGET_S = 108.0  # of two minutes: the rest is for the end
FILES_WANTED = 8192
BY_DEFAULT = [name for name in TARGETS if name != Compiled.name]
SETTLE_S = 0.2  # closed connections leave the path; the next measure starts from rest


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    _allow_many_files()
    started = time.monotonic()
    about: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "arguments": vars(given) | {"json": given.json and given.json.name, "before": given.before and given.before.name},
        "versions": versions.gather(ROOT),
    }
    with (
        tempfile.TemporaryDirectory(prefix="federation-bench-") as directory,
        _supervised(Path(directory)) as supervisor,
    ):
        backends = backend_programs.start(supervisor)
        wanted = [TARGETS[name]() for name in given.targets]
        if given.before is not None:
            wanted.append(Before(given.before))
        targets, left_out = _start_targets(wanted, supervisor, backends)
        bench = Bench(supervisor, QUICK if given.quick else Sizes())
        deadline = started + QUICK_BUDGET_S if given.quick else math.inf
        taken = run(bench, targets, given, deadline, left_out)
        left_out += [f"{name} ended in the middle: {supervisor.log_tail(name)}" for name in supervisor.dead()]
    about |= {"elapsed_s": round(time.monotonic() - started, 1), "left_out": left_out}
    _print(taken, targets, about, given.json)
    return 1 if left_out else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller loads, as many rounds as fit; ends in two minutes")
    parser.add_argument("--rounds", type=_positive, help="how often each is measured (default 5, with --quick up to 3)")
    parser.add_argument("--only", type=_names(MEASURES), default=list(MEASURES), metavar="MEASURE,...")
    parser.add_argument("--targets", type=_names(TARGETS), default=BY_DEFAULT, metavar="TARGET,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples, medians and verdicts there")
    parser.add_argument(
        "--before", type=_checkout, metavar="DIR", help="another checkout, with its .venv, to compare this one with"
    )
    parser.add_argument("--paths", action="store_true", help="direct, punched and relayed paths instead")
    parser.add_argument("--http", action="store_true", help="requests for models, beside gateways; see --http --help")
    parser.epilog = f"measures: {', '.join(MEASURES)}. targets: {', '.join(TARGETS)}."
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (3 if given.quick else 5)
    return given


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: not a number from 1 on")
    return int(text)


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / ".venv" / "bin" / "python").exists() or not (path / "federation").is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a checkout that scripts/setup has prepared")
    return path


def _names(known: dict[str, Any]) -> Any:
    def parse(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return [name for name in known if name in wanted]

    return parse


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_WANTED:
        print(f"bench: only {hard} open files are allowed here; 1,000 connections may not fit", file=sys.stderr)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


@contextmanager
def _supervised(directory: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(directory)
    try:
        yield supervisor
    finally:
        supervisor.stop()


def _start_targets(wanted: Sequence[Target], supervisor: Supervisor, backends: Backends) -> tuple[list[Target], list[str]]:
    """(those that came up and carry bytes unharmed, why the others are left out)"""
    targets: list[Target] = []
    left_out: list[str] = []
    for target in wanted:
        try:
            target.start(supervisor, backends)
            check_integrity(target, supervisor.directory)
        except StartFailed as error:  # noqa: PERF203  # the others are measured all the same
            left_out.append(f"{target.name}: {error}")
            print(f"bench: {target.name} is left out: {error}", file=sys.stderr)
        else:
            targets.append(target)
    return targets, left_out


def run(
    bench: Bench,
    targets: Sequence[Target],
    given: argparse.Namespace,
    deadline: float,
    left_out: list[str],
    *,
    clock: Callable[[], float] = time.monotonic,
    settle: Callable[[], None] = lambda: time.sleep(SETTLE_S),
) -> list[report.Taken]:
    """Every measure of every target, in turn. Past the first round a measure is left alone if it would end too late."""
    taken: list[report.Taken] = []
    took: dict[str, float] = {}
    for number in range(1, given.rounds + 1):
        for measure in given.only:
            began = clock()
            if began + took.get(measure, 0) >= deadline:
                if number == 1:
                    left_out.append(f"{measure}: out of time")
                continue
            # Who comes first finds a machine at rest: the order turns with the rounds.
            for target in targets if number % 2 else targets[::-1]:
                if measure in target.skips or number > target.rounds:
                    continue
                try:
                    sample = bench.measure(measure, target)
                except (LoadFailed, WrkFailed, subprocess.TimeoutExpired) as error:
                    left_out.append(f"{measure} of {target.name} in round {number}: {error}")
                    print(f"bench: {left_out[-1]}", file=sys.stderr)
                    continue
                taken.append(report.Taken(number, measure, target.name, sample))
                _progress(taken[-1], given.rounds)
                settle()
            took[measure] = clock() - began
    return taken


def _progress(one: report.Taken, rounds: int) -> None:
    shown = "  ".join(f"{key} {value:.5g}" for key, value in one.sample.values.items())
    errors = f"  errors {one.sample.errors}" if one.sample.errors else ""
    print(f"{one.round}/{rounds} {one.measure:<12}{one.target:<10}{shown}{errors}", file=sys.stderr, flush=True)


def _print(taken: Sequence[report.Taken], targets: Sequence[Target], about: dict[str, Any], path: Path | None) -> None:
    spread = report.summaries(taken)
    medians = {target: {metric: summary.median for metric, summary in metrics.items()} for target, metrics in spread.items()}
    verdict.add_derived(medians)
    errors = report.errors_by_target(taken)
    rows = verdict.judge(medians, errors, report.lost_chunks(taken))
    print(report.table({target.name: target.label for target in targets}, medians, spread, errors))
    print()
    print(report.verdict_table(rows))
    print()
    if any(target.name == Before.name for target in targets):
        print(report.comparison_table(verdict.compare(taken)))
        print()
    if taken:
        print(report.noise_line(report.noise(taken)))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    for reason in about["left_out"]:
        print(f"left out: {reason}")
    print(f"{about['elapsed_s']:.0f} s")
    if path is not None:
        path.write_text(json.dumps(report.document(taken, medians, rows, about), indent=1) + os.linesep)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except StartFailed as error:
        sys.exit(f"bench: {error}")
