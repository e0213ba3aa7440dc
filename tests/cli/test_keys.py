"""key add, list and revoke, against a control API that notes what it is told."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import keys
from federation.cli.grammar.parser import parse
from federation.errors import UsageError
from federation.state import StateDir
from tests.support.local_server import Handler, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROW = {
    "name": "phone", "id": "01234567", "models": ["m", "n"], "made_at": "2026-01-02T03:04:05+00:00", "made_by": "12D3abcdef",
    "made_by_name": "ada", "expires_at": None, "rate": "60/m", "last_used": None, "requests": 0,
}  # fmt: skip
USED = {
    **ROW, "name": "b\x1b[31mx", "models": [], "made_by_name": "", "expires_at": "2026-02-01T00:00:00+00:00", "rate": None,
    "last_used": "2026-01-03T04:05:06+00:00", "requests": 1234,
}  # fmt: skip


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[StateDir, list[tuple[str, Any]]]]:
    told: list[tuple[str, Any]] = []

    class Api(Handler):
        def reply(self, body: Any) -> tuple[int, Any]:
            if self.command == "POST":
                told.append((self.path, body))
            if self.path == "/api/v1/keys/add":
                return 200, {"key": "fedk_new", **ROW}
            return 200, {"keys": [ROW, USED], "asked_off_loopback": True, "asked_on_loopback": False}

    state = StateDir(tmp_path)
    with daemon(state, Api):
        yield state, told


def args(state: StateDir, *words: str) -> Namespace:
    return parse(["key", *words, "--state-dir", str(state.path)], "1")


def test_the_key_alone_is_printed(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state, told = running
    keys.add(args(state, "add", " phone"))
    assert capsys.readouterr() == ("fedk_new\n", "")
    keys.add(args(state, "add", "b", "--models", "m, n", "--expires", "30d", "--rate", "60/m", "--json"))
    assert json.loads(capsys.readouterr().out)["key"] == "fedk_new"
    assert told == [
        ("/api/v1/keys/add", {"name": "phone"}),
        ("/api/v1/keys/add", {"name": "b", "models": ["m", "n"], "lifetime_s": 30 * 86400.0, "requests": 60, "seconds": 60}),
    ]


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb"])
def test_a_name_that_is_none_is_refused(running: Any, name: str) -> None:
    state, told = running
    with pytest.raises(UsageError, match="NAME"):
        keys.add(args(state, "add", name))
    assert told == []


@pytest.mark.parametrize(
    "words", [("--models", " , "), ("--expires", "soon"), ("--rate", "60"), ("--rate", "0/m"), ("--rate", "6/y")]
)
def test_what_cannot_be_meant_is_refused(running: Any, words: tuple[str, ...]) -> None:
    state, told = running
    with pytest.raises(UsageError, match=words[0]):
        keys.add(args(state, "add", "phone", *words))
    assert told == []


def test_the_list(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = running
    keys.list_keys(args(state, "list"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["phone", "m,", "n", "never", "60/m", "2026-01-02", "at", "ada", "not", "yet", "0"],
        ["b?[31mx", "all", "2026-02-01", "any", "2026-01-02", "at", "abcdef", "2026-01-03", "04:05", "1234"],
    ]
    assert lines[3].startswith("use: at 1 of several nodes")  # a daemon from before others were asked
    assert lines[4].startswith("ports that other machines reach ask for a key")
    keys.list_keys(args(state, "list", "--json"))
    assert len(json.loads(capsys.readouterr().out)["keys"]) == 2


def test_none_yet_and_all_ports() -> None:
    assert keys.shown({"keys": [], "asked_off_loopback": False, "asked_on_loopback": False}, color=False) == (
        "no client keys\nno port asks for a key"
    )
    assert "every port" in keys.shown({"keys": [], "asked_off_loopback": True, "asked_on_loopback": True}, color=False)


@pytest.mark.parametrize(
    ("entries", "counted", "says"),
    [
        (3, 3, "use: at all nodes, since each started"),
        (3, 2, "use: at 2 of 3 nodes, since each started; the others did not"),
    ],
)
def test_it_says_where_the_use_was_counted(entries: int, counted: int, says: str) -> None:
    asked = {"asked_off_loopback": False, "asked_on_loopback": False}
    answer = {"keys": [ROW], **asked, "entries": entries, "entries_counted": counted}
    assert says in keys.shown(answer, color=False)
    assert "use:" not in keys.shown({**answer, "keys": []}, color=False)


def test_revoke(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state, told = running
    keys.revoke(args(state, "revoke", "phone"))
    assert capsys.readouterr().out == "revoked the key phone: all nodes refuse it from now on\n"
    assert told == [("/api/v1/keys/revoke", {"name": "phone"})]
