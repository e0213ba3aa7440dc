from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from federation.mesh.keyring import MAX_FORMER, Keyring
from federation.mesh.owner import MAX_GRACE, OwnerKey, SignedOrder, order_of
from federation.mesh.tokens import Token

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
KEY = OwnerKey(b"o" * 32)
FIRST = Token(b"f" * 32, "lab", owner=KEY.public)
SECOND = FIRST.rotated()
THIRD = SECOND.rotated()
INSTANT = timedelta(microseconds=1)


def keys(*tokens: Token) -> list[bytes]:
    return [token.admission_key() for token in tokens]


def ordered(token: Token, grace: timedelta, *members: str, at: datetime = NOW) -> SignedOrder:
    issued_ms = int(at.timestamp() * 1000)
    order = order_of(
        token.names, token.rotations, token.secret, issued_ms=issued_ms, grace=grace, members=members or ("a",)
    )  # fmt: skip
    return SignedOrder(order, KEY.sign(order.encode()))


def taken(ring: Keyring, token: Token, grace: timedelta, *members: str, at: datetime = NOW) -> Keyring:
    return ring.take(token, ordered(token, grace, *members, at=at), now=NOW)


def test_without_a_rotation_one_key_admits_for_ever() -> None:
    ring = Keyring(FIRST)
    assert ring.valid_keys(NOW) == keys(FIRST)
    assert ring.retired_keys(NOW) == []
    assert ring.grace_end(NOW) is ring.next_end(NOW) is None


def test_the_former_key_admits_for_the_grace_and_is_retired_from_then_on() -> None:
    ring = taken(Keyring(FIRST), SECOND, HOUR)
    for now in (NOW, NOW + HOUR - INSTANT):
        assert (ring.valid_keys(now), ring.retired_keys(now)) == (keys(SECOND, FIRST), [])
        assert ring.grace_end(now) == ring.next_end(now) == NOW + HOUR
    assert (ring.valid_keys(NOW + HOUR), ring.retired_keys(NOW + HOUR)) == (keys(SECOND), keys(FIRST))
    assert ring.grace_end(NOW + HOUR) is ring.next_end(NOW + HOUR) is None
    assert ring.members == {"a"}


@pytest.mark.parametrize(
    ("signed", "left"), [(NOW - HOUR / 4, HOUR * 3 / 4), (NOW - HOUR * 2, timedelta(0)), (NOW + HOUR * 9, HOUR)]
)
def test_the_grace_runs_from_when_the_order_was_signed(signed: datetime, left: timedelta) -> None:
    """Whoever tells it late cannot prolong it; nor can a clock that is behind the signer's."""
    ring = taken(Keyring(FIRST), SECOND, HOUR, at=signed)
    assert ring.former[0].until == NOW + left


@pytest.mark.parametrize("grace", [timedelta(0), -HOUR])
def test_without_a_grace_it_is_retired_at_once(grace: timedelta) -> None:
    ring = taken(Keyring(FIRST), SECOND, grace)
    assert (ring.valid_keys(NOW), ring.retired_keys(NOW)) == (keys(SECOND), keys(FIRST))


def test_a_rotation_ends_the_graces_of_those_before_it_no_later_than_its_own() -> None:
    ring = taken(Keyring(FIRST), SECOND, HOUR)
    soon = taken(ring, THIRD, HOUR / 2, "b")
    assert soon.valid_keys(NOW) == keys(THIRD, SECOND, FIRST)
    assert soon.valid_keys(NOW + HOUR / 2) == keys(THIRD)
    assert soon.members == {"b"}
    late = taken(ring, THIRD, 2 * HOUR)
    assert late.valid_keys(NOW + HOUR) == keys(THIRD, SECOND)  # nor is any prolonged
    assert (late.next_end(NOW), late.grace_end(NOW)) == (NOW + HOUR, NOW + 2 * HOUR)


def test_there_are_bounds() -> None:
    ring, token = Keyring(FIRST), FIRST
    for _ in range(MAX_FORMER + 3):
        token = token.rotated()
        ring = taken(ring, token, timedelta(days=1000))
    assert len(ring.former) == MAX_FORMER
    assert ring.grace_end(NOW) == NOW + MAX_GRACE


def test_it_is_the_same_after_a_restart() -> None:
    ring = taken(taken(Keyring(FIRST), SECOND, HOUR, "b", "a"), THIRD, HOUR)
    assert Keyring.from_saved(THIRD, json.loads(json.dumps(ring.as_saved()))) == ring


def test_what_was_saved_beside_another_token_is_not_taken_for_this_one() -> None:
    """A crash between the two files, or a token that a person gave."""
    saved = taken(Keyring(FIRST), SECOND, HOUR).as_saved()
    assert Keyring.from_saved(FIRST, saved) == Keyring(FIRST)
    assert Keyring.from_saved(THIRD, saved) == Keyring(THIRD)


@pytest.mark.parametrize(
    "damage",
    [
        {"former": 1},
        {"former": [1]},
        {"former": [{"key": "xx", "until": NOW.isoformat()}]},
        {"former": [{"key": "00", "until": "soon"}]},
        {"former": [{"key": "00", "until": "2026-01-01T00:00:00"}]},
        {"former": [{"key": 7, "until": NOW.isoformat()}]},
    ],
)
def test_what_is_damaged_admits_nobody_more(damage: dict[str, Any]) -> None:
    saved = taken(Keyring(FIRST), SECOND, HOUR).as_saved()
    assert Keyring.from_saved(SECOND, {**saved, **damage}) == Keyring(SECOND)
    assert Keyring.from_saved(SECOND, {}) == Keyring(SECOND)


@pytest.mark.parametrize(
    "damage",
    [
        None,
        1,
        {},
        {"order": "xx", "signature": ""},
        {"order": "00", "signature": "00" * 64},
        {"order": ordered(SECOND, HOUR).order.encode().hex(), "signature": "00" * 64},
        {
            "order": ordered(THIRD, HOUR).order.encode().hex(),
            "signature": ordered(THIRD, HOUR).signature.hex(),
        },
    ],
)
def test_an_order_that_is_not_the_owners_or_of_another_token_is_not_handed_on(damage: Any) -> None:
    ring = taken(Keyring(FIRST), SECOND, HOUR)
    read = Keyring.from_saved(SECOND, {**ring.as_saved(), "order": damage})
    assert (read.order, read.members, read.former) == (None, frozenset(), ring.former)


def test_what_a_version_before_owners_saved_admits_as_before() -> None:
    token = Token(b"f" * 32, "lab").rotated()
    saved = Keyring(token, taken(Keyring(FIRST), SECOND, HOUR).former).as_saved()
    del saved["order"]
    ring = Keyring.from_saved(token, {**saved, "members": ["a", "b"]})
    assert ring.valid_keys(NOW) == [token.admission_key(), FIRST.admission_key()]
    assert ring.members == frozenset()


def test_neither_repr_nor_file_holds_a_secret() -> None:
    ring = taken(Keyring(FIRST), SECOND, HOUR)
    (key,) = keys(FIRST)
    assert key.hex() not in repr(ring)
    assert repr(key) not in repr(ring)
    saved = json.dumps(ring.as_saved())
    for secret in (FIRST.secret, SECOND.secret, *keys(SECOND)):
        assert secret.hex() not in saved


def test_whom_an_order_left_out_is_not_told_the_next_one_either() -> None:
    """Unless it was given the token in between; and all of it is kept."""
    first, second, _ = keys(FIRST, SECOND, THIRD)
    ring = taken(Keyring(FIRST), SECOND, HOUR, "a", "b")
    assert [ring.may_be_told(peer, first) for peer in ("a", "out")] == [True, False]
    ring = ring.take(THIRD, ordered(THIRD, HOUR, "a", "given", "late", "out"), now=NOW, holders=["given"])
    for kept in (ring, Keyring.from_saved(THIRD, json.loads(json.dumps(ring.as_saved())))):
        assert kept.insiders == {"a", "given"}
        told = {
            (peer, key)
            for peer in ("a", "b", "given", "late", "out")
            for key in (first, second)
            if kept.may_be_told(peer, key)
        }
        assert told == {("a", first), ("a", second), ("given", first), ("given", second), ("late", second), ("out", second)}
