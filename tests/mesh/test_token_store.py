from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.errors import OwnerKeyWrong, TokenChecksumWrong, TokenMalformed
from federation.mesh.owner import OwnerKey
from federation.mesh.token_store import owner_key, saved_token, take_up
from federation.mesh.tokens import MAX_ADDRESSES, Token
from federation.state import StateDir

if TYPE_CHECKING:
    from pathlib import Path

A = "/ip4/192.0.2.1/tcp/1"
B = "/ip4/192.0.2.2/tcp/2"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def test_nothing_saved_is_none(state: StateDir) -> None:
    assert saved_token(state) is None


def test_a_given_token_is_there_after_a_restart(state: StateDir) -> None:
    token = Token.new("lab", [A])
    membership = take_up(token, state)
    assert membership.token == token
    assert not membership.left_behind
    assert saved_token(state) == token


def test_another_networks_token_wins_and_the_old_one_is_kept(state: StateDir) -> None:
    old, new = Token.new("old"), Token.new("new")
    take_up(old, state)
    membership = take_up(new, state)
    assert (membership.token, membership.left_behind) == (new, True)
    assert saved_token(state) == new
    assert (state.path / "token.previous").read_text() == f"{old.encode()}\n"


def test_the_same_network_keeps_the_addresses_of_both(state: StateDir) -> None:
    token = Token.new("lab", [A])
    take_up(token, state)
    membership = take_up(Token(token.secret, "", (B, A)), state)
    assert membership.token.addresses == (B, A)
    assert membership.token.name == "lab"
    assert not membership.left_behind
    take_up(Token(token.secret, "renamed"), state)
    assert saved_token(state) == Token(token.secret, "renamed", (B, A))
    assert not (state.path / "token.previous").exists()


def test_the_addresses_of_both_stay_within_a_tokens_bounds(state: StateDir) -> None:
    addresses = [f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, 2 * MAX_ADDRESSES + 1)]
    token = Token.new("lab", addresses[:MAX_ADDRESSES])
    take_up(token, state)
    given = token.with_addresses(addresses[MAX_ADDRESSES:])
    assert take_up(given, state).token == given


@pytest.mark.parametrize("damaged", ["not a token", "", Token.new().encode()[:-1]], ids=["nonsense", "empty", "cut"])
def test_a_damaged_saved_token_stops_the_start_and_is_named(state: StateDir, damaged: str) -> None:
    (state.path / "token").write_text(damaged)
    with pytest.raises((TokenMalformed, TokenChecksumWrong), match=f"saved in {state.path}/token"):
        saved_token(state)
    assert (state.path / "token").read_text() == damaged


def test_a_given_token_replaces_a_damaged_one_which_is_kept(state: StateDir) -> None:
    damaged = Token.new().encode()[:-1]
    (state.path / "token").write_text(damaged)
    token = Token.new()
    assert take_up(token, state).left_behind
    assert saved_token(state) == token
    assert (state.path / "token.previous").read_text() == f"{damaged}\n"


def test_a_rotated_token_given_takes_the_place_of_the_saved_one(state: StateDir) -> None:
    old = Token.new("lab", [A])
    take_up(old, state)
    state.save_peers({"p": [B]})
    new = old.rotated().with_addresses([B])
    membership = take_up(new, state)
    assert (membership.token, membership.left_behind, membership.outdated) == (new, False, False)
    assert saved_token(state) == new
    assert state.load_peers() == {"p": [B]}  # the same members
    assert (state.path / "token.previous").read_text() == f"{old.encode()}\n"


def test_a_token_from_before_a_rotation_does_not_undo_it(state: StateDir) -> None:
    """A service file gives the first token at every start."""
    old = Token.new("lab")
    new = old.rotated()
    take_up(new, state)
    membership = take_up(old, state)
    assert (membership.token, membership.left_behind, membership.outdated) == (new, False, True)
    assert saved_token(state) == new


def test_a_rotated_token_keeps_what_it_is_with_the_addresses_of_both(state: StateDir) -> None:
    token = Token.new("lab", [A]).rotated()
    take_up(token, state)
    assert take_up(token.with_addresses([B]), state).token == token.with_addresses([B, A])


def test_with_another_owner_it_is_another_network_whatever_the_secret(state: StateDir) -> None:
    mine, other = OwnerKey.new(), OwnerKey.new()
    token = Token.new("lab", [A], owner=mine.public)
    take_up(token, state)
    for given in (Token(token.secret, "lab", owner=other.public), Token(token.secret, "lab")):
        membership = take_up(given, state)
        assert (membership.token, membership.left_behind) == (given, True)
        take_up(token, state)
    assert owner_key(token, state) is None


def test_the_owners_key_is_the_one_of_this_network(state: StateDir) -> None:
    key = OwnerKey.new()
    token = Token.new("lab", owner=key.public)
    path = state.save_owner_key(token.network_id, key.encode())
    assert owner_key(token, state) == owner_key(token.rotated(), state) == key
    assert owner_key(Token.new("another", owner=key.public), state) is None
    path.write_text(OwnerKey.new().encode())
    with pytest.raises(OwnerKeyWrong, match="another network's"):
        owner_key(token, state)
    path.write_text("fedkey1_x")
    with pytest.raises(OwnerKeyWrong, match=f"{path} is damaged"):
        owner_key(token, state)
