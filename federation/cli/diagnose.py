"""Commands for the person who looks after a node: ping, logs, doctor, netcheck."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from federation.cli import client
from federation.cli.ask import Asker, positive
from federation.cli.render import connections as render_connections
from federation.cli.render import netcheck as render_netcheck
from federation.cli.render.text import plain
from federation.cli.terminal import Progress, colorful, say
from federation.errors import ControlUnreachable, FederationError, StateDirBusy, TokenError, UsageError
from federation.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

FOLLOW_S = 0.5
PING_PAUSE_S = 0.2
MAX_PINGS = 1000
MAX_LOG_LINES = 3000  # as many as a node keeps
BULK_TIMEOUT_S = 45.0  # 10 s each way, and as long again for bytes on the way; see probe.py
EXAMINE_TIMEOUT_S = 30.0
NOTICE_TIMEOUT_S = 20.0  # twice what the node gives the address


def ping(args: Namespace) -> None:
    """Round trips one by one as they come, then the bulk."""
    asker = Asker(args)
    count = min(positive(args.count, "--count"), MAX_PINGS)
    bulk_bytes = 0 if args.bulk is None else _size(args.bulk)
    times: list[float] = []
    answer: dict[str, Any] = {}
    with Progress() as progress:
        for number in range(1, count + 1):
            answer = json.loads(asker.post("ping", {"peer": args.peer}))
            if number == 1 and not args.json:
                say(render_connections.ping_title(answer))
            times += answer["rtt_ms"]
            if not args.json:
                say(f"  {number:>3}  {answer['rtt_ms'][0]:.2f} ms")
            if number < count:
                time.sleep(PING_PAUSE_S)
        if bulk_bytes:
            progress.show("moving bulk, up and down, 10 s each way at most")
            body = {"peer": args.peer, "bulk_bytes": bulk_bytes}
            answer = json.loads(asker.post("ping", body, timeout_s=BULK_TIMEOUT_S))
    if args.json:
        say(json.dumps({**answer, "rtt_ms": times}))
        return
    trips = "round trip" if count == 1 else "round trips"
    say(f"{count} {trips}: least {min(times):.2f}, median {statistics.median(times):.2f}, most {max(times):.2f} ms")
    for way in ("up", "down"):
        if answer[way]:
            say(f"  {way:<4}  {render_connections.rate(answer[way])}")


def logs(args: Namespace) -> None:
    asker = Asker(args)
    last = min(positive(args.last, "--last"), MAX_LOG_LINES)
    color = colorful(sys.stdout)
    path = f"logs?last={last}"
    while True:
        answer = json.loads(asker.post(path, method="GET"))
        for line in answer["lines"]:
            say(json.dumps(line) if args.json else render_connections.log_line(line, color=color))
        if not args.follow:
            return
        path = f"logs?after={answer['next']}&last={MAX_LOG_LINES}"
        time.sleep(FOLLOW_S)


def netcheck(args: Namespace) -> None:
    text = Asker(args).get("netcheck")
    say(text if args.json else render_netcheck.netcheck(json.loads(text), color=colorful(sys.stdout)))


def doctor(args: Namespace) -> int:
    """0 when nothing is wrong, 1 when something is."""
    try:
        asker = Asker(args)
        with Progress() as progress:
            progress.show("asking the node, and through it its peers")
            answer = json.loads(asker.post("doctor", timeout_s=EXAMINE_TIMEOUT_S))
    except ControlUnreachable as error:
        answer = {"findings": [*_without_a_daemon(args, error)]}
    failed = any(finding["severity"] == "fail" for finding in answer["findings"])
    say(json.dumps(answer) if args.json else render_connections.findings(answer, color=colorful(sys.stdout)))
    return FederationError.exit_code if failed else 0


def notify(args: Namespace) -> None:
    text = Asker(args).post("notices/test", timeout_s=NOTICE_TIMEOUT_S)
    say(text if args.json else f"{plain(json.loads(text)['to'])} took the test message")


def _without_a_daemon(args: Namespace, error: ControlUnreachable) -> list[dict[str, str]]:
    """Findings about a node that does not answer."""
    from federation.mesh import token_store

    findings = [_finding("daemon", "fail", f"does not answer ({error.detail})", "start it: federation join")]
    state = client.state_dir(args.state_dir)
    try:
        token = token_store.saved_token(state)
    except TokenError as broken:
        fix = "get a fresh one: `federation invite` on a member, then `federation join --token-file -` here"
        findings.append(_finding("token", "fail", str(broken), fix))
    else:
        if token is None:
            fix = "`federation invite` on a member prints one; without one, `federation join` begins a new network"
            findings.append(_finding("token", "info", f"none is saved in {state.path}", fix))
        else:
            network = token.name or token.network_id
            findings.append(_finding("token", "ok", f"saved in {state.path}; the network is {network}"))
    if state.path.is_dir():
        try:
            state.lock()
        except StateDirBusy as busy:
            fix = "it may be starting or hang: look at its log (journalctl -u federation)"
            findings.append(_finding("state directory", "fail", f"in use by a silent daemon: {busy.detail}", fix))
        except FederationError as unusable:
            findings.append(_finding("state directory", "fail", str(unusable), "correct its owner and mode"))
        else:
            state.unlock()
            findings.append(_finding("state directory", "ok", f"{state.path} is free and can be written"))
    return findings


def _finding(check: str, severity: str, finding: str, fix: str = "") -> dict[str, str]:
    return {"check": check, "severity": severity, "finding": finding, "fix": fix}


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--bulk {text!r}: {error}") from None
