from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from federation import logs
from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = Token.new("net").encode()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is the process's own: put back what `configure` changes."""
    root = logging.getLogger()
    handlers, level, last, raises = root.handlers[:], root.level, logging.lastResort, logging.raiseExceptions
    hooks = threading.excepthook, sys.unraisablehook
    let_go()  # of what another test's import of libp2p has done
    yield
    root.handlers[:], logging.lastResort, logging.raiseExceptions = handlers, last, raises
    root.setLevel(level)
    threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    structlog.reset_defaults()
    let_go()


def let_go() -> None:
    for name in logs.QUIET:
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).propagate = True


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def fail() -> None:
    raise ValueError("on purpose")


# Formats and levels


def test_json_has_a_line_an_event(out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)
    structlog.get_logger("federation.x").info("peer joined", peer="a", rtt_ms=1.5)
    logging.getLogger("federation.state").warning("%s is ignored", "file")
    first, second = lines(out)
    assert first.items() >= {"event": "peer joined", "level": "info", "logger": "federation.x", "rtt_ms": 1.5}.items()
    assert first["timestamp"].endswith("Z")
    assert second.items() >= {"event": "file is ignored", "level": "warning", "logger": "federation.state"}.items()


def test_the_console_is_for_people(out: io.StringIO) -> None:
    logs.configure("info", "console", stream=out)
    structlog.get_logger("federation.x").info("peer joined", peer="a")
    assert "[info" in out.getvalue()
    assert "peer joined" in out.getvalue()
    assert "peer=a" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_colours_only_where_asked_for(out: io.StringIO) -> None:
    logs.configure("info", "console", stream=out, colors=True)
    structlog.get_logger("federation.x").info("peer joined")
    assert "\x1b[" in out.getvalue()


def test_the_level_holds_for_both_kinds_of_loggers(out: io.StringIO) -> None:
    logs.configure("warning", "json", stream=out)
    structlog.get_logger("federation.x").info("no")
    logging.getLogger("federation.x").info("no")
    structlog.get_logger("federation.x").warning("yes")
    assert [line["event"] for line in lines(out)] == ["yes"]


def test_our_bugs_keep_their_traceback_in_one_json_line(out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)
    try:
        fail()
    except ValueError:
        structlog.get_logger("federation.x").exception("failed")
    (line,) = lines(out)
    assert line["exception"].startswith("Traceback")
    assert "on purpose" in line["exception"]


# Other people's loggers


@pytest.mark.parametrize("name", ["hypercorn.error", "zeroconf", "multiaddr", "federation_x"])
def test_libraries_are_brief(name: str, out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)
    foreign = logging.getLogger(name)
    foreign.info("chatter")
    try:
        fail()
    except ValueError:
        foreign.exception("bad peer %s\nwith a page of detail", "a", stack_info=True)
    foreign.warning("100% sure")
    first, second = lines(out)
    assert (first["event"], first["level"]) == ("bad peer a", "error")
    assert not {"exception", "stack"} & set(first)
    assert second["event"] == "100% sure"


def test_libp2p_s_errors_about_peers_are_for_debugging(out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)
    logging.getLogger("libp2p.network.swarm").error("MultiselectClient handshake: read failed")
    assert out.getvalue() == ""


def test_debug_shows_libraries_tracebacks(out: io.StringIO) -> None:
    logs.configure("debug", "json", stream=out)
    try:
        fail()
    except ValueError:
        logging.getLogger("libp2p.x").exception("bad peer")
    logging.getLogger("libp2p.x").info("chatter")
    (line,) = lines(out)
    assert "on purpose" in line["exception"]


def test_a_library_cannot_be_louder_than_asked_for(out: io.StringIO) -> None:
    logs.configure("error", "json", stream=out)
    logging.getLogger("libp2p.x").warning("no")
    assert out.getvalue() == ""


def test_a_logger_taken_off_the_root_is_caught(out: io.StringIO) -> None:
    """As py-libp2p's import does with its own. A name of ours: here libp2p may have been imported by another test."""
    logs.configure("info", "json", stream=out)
    taken = logging.getLogger("taken")
    taken.propagate = False
    taken.setLevel(logging.WARNING)
    try:
        fail()
    except ValueError:
        logging.getLogger("taken.host").exception("bad peer")
    (line,) = lines(out)
    assert line["event"] == "bad peer"
    assert "exception" not in line


def test_after_libp2ps_own_set_up_everything_still_comes_through_us() -> None:
    code = (
        "import sys, logging; from federation import logs\n"
        "logs.configure('info', 'json', stream=sys.stderr)\n"
        "import libp2p\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('libp2p.host').critical('bad peer', exc_info=True)\n"
        "logging.debug('root')\n"
        "logging.getLogger('federation').info('ours')\n"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in result.stderr.splitlines()] == ["bad peer", "ours"]


def test_warnings_and_failed_threads_are_one_line(out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings above put Python's own back
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    thread = threading.Thread(target=fail, name="zeroconf-1")
    thread.start()
    thread.join()
    warned, failed = lines(out)
    assert "old ways" in warned["event"]
    assert failed["event"] == "thread zeroconf-1 failed: ValueError('on purpose')"
    assert "exception" not in failed


def test_failures_in_clean_up_are_one_line(out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)

    class Careless:
        def __del__(self) -> None:
            fail()

    Careless()
    (line,) = lines(out)
    assert line["event"] == "failed while being cleaned up: ValueError('on purpose')"


# Secrets and forgery


@pytest.mark.parametrize("key", ["token", "secret", "key", "network_token", "admission-key", "Secret", "tokens", "password"])
@pytest.mark.parametrize("style", ["json", "console"])
def test_values_under_secret_names_are_replaced(key: str, style: str, out: io.StringIO) -> None:
    logs.configure("info", style, stream=out)
    log = structlog.get_logger("federation.x")
    log.info("at the top", **{key: "hunter2"})
    log.info("below", settings={"inner": [{key: b"hunter2"}]})
    assert "hunter2" not in out.getvalue()
    assert out.getvalue().count("[redacted]") == 2


def test_names_that_only_contain_such_words_are_not(out: io.StringIO) -> None:
    logs.configure("info", "json", stream=out)
    structlog.get_logger("federation.x").info("x", tokenizer="a", keyboard="b", monkey="c")
    assert lines(out)[0].items() >= {"tokenizer": "a", "keyboard": "b", "monkey": "c"}.items()


def test_a_token_is_replaced_wherever_it_stands(out: io.StringIO) -> None:
    logs.configure("debug", "json", stream=out)
    log = structlog.get_logger("federation.x")
    log.info(" ".join(["event with", TOKEN]))
    log.info("value", argv=["federation", "join", "--token", TOKEN], error=ValueError(f"bad {TOKEN}"))
    logging.getLogger("federation.x").warning("argument %s", TOKEN)
    logging.getLogger("libp2p").warning("foreign %s", TOKEN)
    try:
        raise ValueError(TOKEN)
    except ValueError:
        log.exception("failed")
    assert len(lines(out)) == 5
    assert TOKEN not in out.getvalue()
    assert out.getvalue().count("[redacted]") == 6


@pytest.mark.parametrize("style", ["json", "console"])
def test_remote_texts_forge_no_lines_and_move_no_cursor(style: str, out: io.StringIO) -> None:
    logs.configure("info", style, stream=out)
    evil = "box\n2026-01-01 [info] all is well\x1b[2J\u202e"
    structlog.get_logger("federation.x").info("peer joined", name=evil, peers=[evil], by={"x": evil})
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_names_in_other_scripts_stay_readable(out: io.StringIO) -> None:
    logs.configure("info", "console", stream=out)
    structlog.get_logger("federation.x").info("peer joined", name="грузовик")
    assert "грузовик" in out.getvalue()


def test_a_stream_that_broke_is_no_reason_to_fail(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    logs.configure("info", "json", stream=Broken())
    structlog.get_logger("federation.x").info("nobody hears it")
    assert capsys.readouterr() == ("", "")


# What `federation logs` reads


@pytest.fixture
def recent(monkeypatch: pytest.MonkeyPatch) -> logs.Recent:
    recent = logs.Recent()
    monkeypatch.setattr(logs, "recent", recent)
    return recent


def test_lines_are_kept_as_they_were_logged_without_secrets(out: io.StringIO, recent: logs.Recent) -> None:
    logs.configure("info", "console", stream=out)
    structlog.get_logger("federation.x").info("joined", token="s3cret", peer="a\n")
    structlog.get_logger("federation.x").debug("not at this level")
    logging.getLogger("federation.state").warning("%s is ignored", "file")
    first, second = recent.after(0, 10)
    assert (first["number"], first["event"], first["peer"], first["level"]) == (1, "joined", "a\\n", "info")
    assert "s3cret" not in str(first)
    assert (second["number"], second["event"], second["level"]) == (2, "file is ignored", "warning")
    assert json.dumps([first, second])


class Ended:
    """Connections with these ids."""

    def __init__(self, ids: range) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def line(self, at: int) -> str:
        return f"id={self._ids[at]}"

    def event(self, at: int) -> dict[str, int]:
        return {"id": self._ids[at]}


@pytest.mark.parametrize("batch", [1, 100])
def test_many_connections_push_out_connections_only(recent: logs.Recent, batch: int) -> None:
    recent.add({"event": "the one that matters"})
    for number in range(0, logs.CONNECTIONS_KEPT + 500, batch):
        recent.add_connections(Ended(range(number, number + batch)))
    recent.add({"event": "last"})
    lines = recent.after(0, 10**6)
    assert len(lines) == logs.CONNECTIONS_KEPT + 2
    assert (lines[0]["event"], lines[-1]["event"]) == ("the one that matters", "last")
    numbers = [line["number"] for line in lines]
    assert numbers == sorted(numbers)
    assert [line["number"] for line in recent.after(numbers[-3], 10)] == numbers[-2:]
    assert [line["number"] for line in recent.after(0, 2)] == numbers[-2:]
    assert recent.after(recent.last, 10) == []
