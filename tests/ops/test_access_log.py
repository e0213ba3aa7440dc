from __future__ import annotations

import io
import json
import logging
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio

from federation import logs
from federation.forward.counters import Answer, Ending, Flow
from federation.forward.http.usage import Tokens
from federation.forward.route import Route
from federation.ops.access_log import AccessLog

if TYPE_CHECKING:
    from collections.abc import Iterator

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
FIRST = Ending(Flow(1), Route("default"), "192.0.2.1:5000", "12D3a", 1, 10.0, 2.34567, 123, 4567, None)
KEYS = [
    "timestamp",
    "level",
    "event",
    "id",
    "request",
    "client",
    "service",
    "peer",
    "name",
    "attempts",
    "received",
    "delivered",
    "seconds",
    "why",
]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.setattr(logs, "recent", logs.Recent())
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions, logging.lastResort
    yield io.StringIO()
    root.handlers[:], root.level, logging.raiseExceptions, logging.lastResort = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def journal(name: str = "athens") -> AccessLog:
    return AccessLog(name_of=lambda _peer: name, utc_of=lambda at: START + timedelta(seconds=at))


async def test_a_line_a_connection(out: io.StringIO, autojump_clock: trio.testing.MockClock) -> None:
    logs.configure("info", "json", stream=out)
    book = journal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        for number in (1, 2):
            book.ended(FIRST._replace(flow=Flow(number)))
        await trio.sleep(1)
        book.ended(FIRST._replace(flow=Flow(3), error="reset by peer", peer_id=""))
        nursery.cancel_scope.cancel()  # what is there at the end is written too
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [list(line) for line in lines] == [KEYS] * 3
    assert [line["id"] for line in lines] == [1, 2, 3]
    assert lines[0] == {
        "timestamp": "2026-01-01T00:00:10.000Z", "level": "info", "event": "connection", "id": 1, "request": 1,
        "client": "192.0.2.1:5000", "service": "default", "peer": "12D3a", "name": "athens", "attempts": 1,
        "received": 123, "delivered": 4567, "seconds": 2.346, "why": "done",
    }  # fmt: skip
    assert lines[2]["why"] == "reset by peer"
    kept = logs.recent.after(0, 100)
    assert [(line["number"], line["id"]) for line in kept] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_request_has_its_model_and_its_tokens(out: io.StringIO, style: str) -> None:
    logs.configure("info", style, stream=out)
    book = journal()
    answer = Answer(200, 1.5, 0.1234, is_stream=True, tokens=Tokens(9, 12, None))
    book.ended(FIRST._replace(flow=Flow(3, 2), route=Route("default", "a b\n"), answer=answer))
    book.ended(FIRST._replace(answer=Answer(502)))
    book.write()
    first, second = out.getvalue().splitlines()
    if style == "json":
        told = json.loads(first)
        assert list(told) == [*KEYS[:-1], "model", "status", "queued", "first", "tokens_in", "tokens_out", "why"]
        assert (told["event"], told["request"], told["model"], told["first"]) == ("request", 2, "a b\\n", 0.123)
        assert "model" not in json.loads(second)
    else:
        assert "request=2 model='a b\\\\n' status=200 queued=1.5 first=0.123 tokens_in=9 tokens_out=12 why=done" in first
        assert "status=502 why=done" in second


@pytest.mark.parametrize("style", ["console", "json"])
def test_others_words_forge_no_line_and_tell_no_secret(out: io.StringIO, style: str) -> None:
    logs.configure("info", style, stream=out)
    book = journal(name="a\nb\x1b[2J")
    book.ended(FIRST._replace(error="no: fed1_abcdefghijklmnop\r\nforged"))
    book.write()
    (line,) = out.getvalue().splitlines()
    assert "\x1b" not in line
    assert "abcdefgh" not in line
    assert "192.0.2.1:5000" in line
    assert "4567" in line


def test_below_its_level_nothing_is_written_but_it_is_kept(out: io.StringIO) -> None:
    logs.configure("warning", "console", stream=out)
    book = journal()
    book.ended(FIRST)
    book.write()
    assert out.getvalue() == ""
    assert len(logs.recent.after(0, 10)) == 1


def test_a_stream_that_is_closed_ends_nothing(out: io.StringIO) -> None:
    logs.configure("info", "console", stream=out)
    out.close()
    book = journal()
    book.ended(FIRST)
    book.write()
