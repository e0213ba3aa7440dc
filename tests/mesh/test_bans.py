from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from federation.errors import NotFound, StateDirUnusable, UsageError
from federation.mesh import bans as module
from federation.mesh.bans import Bans, find_peer
from federation.state import StateDir

if TYPE_CHECKING:
    from pathlib import Path

A, B = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
NAMES = {A: "athens", B: "bergen", "12D3KooWshort1abcdef": "twin", "12D3KooWshort2abcdef": "twin"}


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def test_a_ban_is_there_after_a_restart_for_the_owner_alone(state: StateDir) -> None:
    Bans(state).ban(A, "athens")
    assert stat.S_IMODE((state.path / "banned.json").stat().st_mode) == 0o600
    again = Bans(StateDir(state.path))
    assert A in again
    assert B not in again
    assert again.names == {A: "athens"}
    again.unban(A)
    assert A not in again
    assert A not in Bans(state)


def test_they_are_listed_as_they_were_banned_and_each_once(state: StateDir) -> None:
    bans = Bans(state)
    bans.ban(B, "")
    bans.ban(A, "athens")
    since = bans.rows()[0].since
    bans.ban(B, "renamed")
    assert [(row.peer_id, row.name) for row in bans.rows()] == [(B, ""), (A, "athens")]
    assert bans.rows()[0].since == since


def test_a_ban_that_cannot_be_kept_is_none(state: StateDir) -> None:
    (state.path / "banned.json").mkdir()
    with pytest.raises(StateDirUnusable):
        Bans(state)
    (state.path / "banned.json").rmdir()
    bans = Bans(state)
    (state.path / "banned.json").mkdir()
    with pytest.raises(StateDirUnusable, match=r"banned\.json"):
        bans.ban(A, "")
    assert A not in bans


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"x": 1}', '{"x": {}}', '{"x": {"name": 1}}'])
def test_a_damaged_list_lets_nobody_in_unnoticed(state: StateDir, damaged: str) -> None:
    (state.path / "banned.json").write_text(damaged)
    with pytest.raises(StateDirUnusable, match="delete it to start without bans"):
        Bans(state)


def test_there_is_an_end_to_it(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BANS", 1)
    bans = Bans(state)
    bans.ban(A, "")
    with pytest.raises(UsageError, match="token rotate"):
        bans.ban(B, "")


@pytest.mark.parametrize(
    ("text", "found"),
    [(A, A), ("athens", A), (" bergen ", B), ("BBBBBB", B), ("short1abcdef", "12D3KooWshort1abcdef")],
)
def test_whom_a_person_means(text: str, found: str) -> None:
    assert find_peer(text, NAMES, among="these") == found


def test_a_whole_id_need_not_be_known() -> None:
    assert find_peer(A, {}, among="these") == A


@pytest.mark.parametrize("text", [A[:-20], A[:-1], A[:-4], "12D3KooW"])
def test_the_beginning_of_an_id_is_none(text: str) -> None:
    with pytest.raises(NotFound, match="is the beginning of an id"):
        find_peer(text, NAMES, among="these")


@pytest.mark.parametrize("text", [A[:-4], A + "A", "Qm" + "A" * 44, "12D3KooX" + "A" * 44])
def test_only_a_whole_id_need_not_be_known(text: str) -> None:
    with pytest.raises(NotFound):
        find_peer(text, {}, among="these")


@pytest.mark.parametrize("text", ["nobody", "", "BBBBB"])
def test_who_is_not_there_is_said(text: str) -> None:
    with pytest.raises(NotFound, match="among these; give its name or id"):
        find_peer(text, NAMES, among="these")


@pytest.mark.parametrize("text", ["twin", "abcdef"])
def test_two_of_a_name_are_told_apart_by_the_person(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"2 peers are called .*12D3KooWshort1abcdef \(named 'twin'\), 12D3KooWshort2abcdef"
    ):
        find_peer(text, NAMES, among="these")


def test_a_name_that_is_the_end_of_anothers_id_is_not_guessed() -> None:
    """Whoever is to be put out may call another node of its own so."""
    decoy = "12D3KooW" + "C" * 44
    with pytest.raises(UsageError, match="give the id of one") as caught:
        find_peer("BBBBBB", {**NAMES, decoy: "BBBBBB"}, among="these")
    assert B in str(caught.value)
    assert decoy in str(caught.value)
    assert find_peer(B, {**NAMES, decoy: B}, among="these") == B  # a whole id is one
