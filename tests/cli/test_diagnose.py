from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import diagnose
from federation.mesh.tokens import Token
from tests.support.cli import Api

if TYPE_CHECKING:
    from federation.state import StateDir


PONG = {
    "peer_id": "12D3KooWabcdef", "name": "bergen", "path": "direct", "address": "192.0.2.1:4484", "rtt_ms": [1.5],
    "up": None, "down": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "PING_PAUSE_S", 0.0)
    monkeypatch.setattr(diagnose, "FOLLOW_S", 0.0)


def test_ping_shows_each_round_trip_and_their_sum(api: Api, run: Any) -> None:
    api.answers["POST ping"] = [{**PONG, "rtt_ms": [ms]} for ms in (1.5, 9.0, 2.0)]
    code, out, _ = run("ping", "bergen", "--count", "3")
    assert code == 0
    title, *lines, total = out.splitlines()
    assert title == "bergen (abcdef), direct, 192.0.2.1:4484"
    assert [line.split() for line in lines] == [["1", "1.50", "ms"], ["2", "9.00", "ms"], ["3", "2.00", "ms"]]
    assert total == "3 round trips: least 1.50, median 2.00, most 9.00 ms"
    assert api.seen[-1] == ("POST ping", {"peer": "bergen"})


def test_ping_with_bulk(api: Api, run: Any) -> None:
    bulk = {**PONG, "up": {"bytes": 2_000_000, "seconds": 0.5}, "down": {"bytes": 1_000_000, "seconds": 0.5}}
    api.answers["POST ping"] = [PONG, bulk]
    _, out, _ = run("ping", "bergen", "--count", "1", "--bulk")
    assert "up    4.0 MB/s" in out
    assert "down  2.0 MB/s" in out
    assert api.seen[-1][1] == {"peer": "bergen", "bulk_bytes": 64 * 1024**2}
    said = json.loads(run("ping", "bergen", "--count", "1", "--json", "--bulk", "1KiB")[1])
    assert (said["rtt_ms"], said["up"]) == ([1.5], bulk["up"])
    assert api.seen[-1][1] == {"peer": "bergen", "bulk_bytes": 1024}
    assert run("ping", "bergen", "--bulk", "much")[0] == 2
    assert run("ping")[0] == 2


LINES = [
    {
        "number": 1, "timestamp": "2026-01-01T00:00:00Z", "level": "warning", "logger": "federation.x",
        "event": "odd\x1b[2J", "peer": "a",
    },
    {
        "number": 2, "timestamp": "2026-01-01T00:00:01.5Z", "level": "info", "event": "connection", "id": 9,
        "client": "192.0.2.1:5000", "service": "chat", "peer": "12D3", "name": "bergen", "attempts": 2, "received": 100,
        "delivered": 2048, "seconds": 0.25, "why": "done",
    },
]  # fmt: skip


def test_logs_for_people_and_programs(api: Api, run: Any) -> None:
    api.answers["GET logs?last=50"] = [{"lines": LINES, "next": 2}]
    _, out, _ = run("logs")
    odd, connection = out.splitlines()
    assert odd.endswith("warning: odd?[2J  peer=a")
    assert connection.endswith("#9 192.0.2.1:5000 -> bergen (chat): 100 B up, 2.0 KiB down in 250 ms, 2 attempts, done")
    assert [json.loads(line) for line in run("logs", "--json")[1].splitlines()] == LINES
    assert run("logs", "--last", "none")[0] == 2


def test_logs_follow_where_they_stopped(api: Api, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = iter(range(3))

    def nap(_seconds: float) -> None:
        if next(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(diagnose.time, "sleep", nap)
    api.answers["GET logs?last=1"] = [{"lines": LINES[:1], "next": 1}]
    api.answers[f"GET logs?after=1&last={diagnose.MAX_LOG_LINES}"] = [{"lines": LINES[1:], "next": 2}]
    api.answers[f"GET logs?after=2&last={diagnose.MAX_LOG_LINES}"] = [{"lines": [], "next": 2}]
    code, out, _ = run("logs", "-f", "--last", "1")
    assert (code, len(out.splitlines())) == (130, 2)


def finding(severity: str, **fields: str) -> dict[str, str]:
    return {"check": "backend", "severity": severity, "finding": f"it is {severity}", "fix": "", **fields}


def test_doctor_says_by_its_exit_code_whether_something_is_wrong(api: Api, run: Any) -> None:
    api.answers["POST doctor"] = [{"findings": [finding("ok"), finding("warn", fix="do this")]}]
    code, out, _ = run("doctor")
    assert code == 0
    assert out.splitlines()[1].split() == ["warn", "backend", "it", "is", "warn"]
    assert out.splitlines()[2].strip() == "-> do this"
    assert out.endswith("0 wrong, 1 to look at\n")
    api.answers["POST doctor"] = [{"findings": [finding("fail")]}]
    assert run("doctor", "--json")[0] == 1
    api.answers["POST doctor"] = [{"findings": [finding("info")]}]
    code, out, _ = run("doctor")
    assert (code, out.endswith("nothing is wrong\n")) == (0, True)


def test_doctor_of_a_node_that_does_not_run(state: StateDir, run: Any) -> None:
    code, out, _ = run("doctor")
    assert code == 1
    assert "does not answer" in out
    assert "none is saved" in out
    state.save_token(Token.new("lab").encode())
    assert "the network is lab" in run("doctor")[1]
    (state.path / "token").write_text("fed1_broken")
    found = json.loads(run("doctor", "--json")[1])["findings"]
    assert [row["severity"] for row in found if row["check"] == "token"] == ["fail"]
    state.lock()
    try:
        assert "in use by a silent daemon" in run("doctor")[1]
    finally:
        state.unlock()
