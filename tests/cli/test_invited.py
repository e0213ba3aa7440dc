"""`join` with a code: the token is on the disk before it is confirmed, and a restart asks nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import invited, join
from federation.config import Settings
from federation.errors import StateDirUnusable
from federation.mesh import token_store
from federation.mesh.invite_codes import InviteCode
from federation.mesh.tokens import Token
from federation.net.identity import peer_id_of
from federation.state import StateDir

if TYPE_CHECKING:
    from pathlib import Path

CODE = InviteCode.new(1_800_000_000, ())
TOKEN = Token.new("home")


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    state.lock()
    return state


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """An inviter that says wait, goes away, is back, and hands the token over."""
    calls: list[dict[str, Any]] = []

    async def redeem(code: InviteCode, **how: Any) -> None:
        calls.append({"code": code, **how})
        how["on_wait"]("ada")
        how["on_wait"]("ada")
        how["on_break"]()
        how["on_break"]()
        how["on_wait"]("ada")
        how["keep"](TOKEN)

    monkeypatch.setattr(invited, "redeem", redeem)
    return calls


def settings(state: StateDir, **fields: Any) -> Settings:
    return Settings(**{"state_dir": state.path, "name": "bergen", **fields})


def exchange(code: InviteCode, state: StateDir) -> None:
    invited.exchange(code, settings(state), state, take_up=join.take_up)


def test_the_token_is_saved_and_the_code_remembered(
    state: StateDir, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    exchange(CODE, state)
    assert token_store.saved_token(state) == TOKEN
    said = capsys.readouterr().err
    assert said.count("waiting for somebody's yes on ada: `federation approve` there") == 1
    assert peer_id_of(state.identity()) in said
    assert said.count("went away") == 1
    assert said.count("is there again") == 1
    assert (calls[0]["name"], calls[0]["seed"]) == ("bergen", state.identity())
    exchange(CODE, state)
    assert len(calls) == 1, "a restart asks nobody"
    assert "the saved one is used" in capsys.readouterr().err
    exchange(InviteCode.new(0, ()), state)
    assert len(calls) == 2, "another code is another matter"


def test_a_node_that_left_asks_again(state: StateDir, calls: list[dict[str, Any]]) -> None:
    exchange(CODE, state)
    state.forget_network(TOKEN.is_same_network)
    exchange(CODE, state)
    assert len(calls) == 2


def test_a_full_disk_is_no_confirmation(
    state: StateDir, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StateDirUnusable("full")

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_token", full)
        with pytest.raises(StateDirUnusable):
            exchange(CODE, state)
    assert not state.was_invited_by(CODE.id.hex())


def test_a_move_to_another_network_keeps_the_former_token(
    state: StateDir, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    former = Token.new("lab")
    state.save_token(former.encode())
    exchange(CODE, state)
    assert (state.path / "token.previous").read_text().strip() == former.encode()
    assert "moves to network" in capsys.readouterr().err


def test_two_ways_in_are_one_too_many(state: StateDir) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        settings(state, invite="x", token="y")
    assert CODE.encode()[8:] not in repr(settings(state, invite=CODE.encode()))


def test_a_service_manager_is_asked_for_patience(
    state: StateDir, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation import daemon

    told: list[str] = []
    monkeypatch.setattr(daemon, "notify", told.append)
    exchange(CODE, state)
    assert len(told) == 3
    assert all("EXTEND_TIMEOUT_USEC=60000000" in message for message in told)
    assert "ada" in told[0]
