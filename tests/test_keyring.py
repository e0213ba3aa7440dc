from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from federation.keyring import MAX_FORMER, MAX_GRACE, Keyring
from federation.tokens import Token

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
FIRST = Token(b"f" * 32, "lab")
SECOND = FIRST.rotated()
THIRD = SECOND.rotated()
INSTANT = timedelta(microseconds=1)


def keys(*tokens: Token) -> list[bytes]:
    return [token.admission_key() for token in tokens]


def test_without_a_rotation_one_key_admits_for_ever() -> None:
    ring = Keyring(FIRST)
    assert ring.valid_keys(NOW) == keys(FIRST)
    assert ring.retired_keys(NOW) == []
    assert ring.grace_end(NOW) is ring.next_end(NOW) is None


def test_the_former_key_admits_for_the_grace_and_is_retired_from_then_on() -> None:
    ring = Keyring(FIRST).take(SECOND, grace=HOUR, members=["a"], now=NOW)
    for now in (NOW, NOW + HOUR - INSTANT):
        assert (ring.valid_keys(now), ring.retired_keys(now)) == (keys(SECOND, FIRST), [])
        assert ring.grace_end(now) == ring.next_end(now) == NOW + HOUR
    assert (ring.valid_keys(NOW + HOUR), ring.retired_keys(NOW + HOUR)) == (keys(SECOND), keys(FIRST))
    assert ring.grace_end(NOW + HOUR) is ring.next_end(NOW + HOUR) is None
    assert ring.members == {"a"}


@pytest.mark.parametrize("grace", [timedelta(0), -HOUR])
def test_without_a_grace_it_is_retired_at_once(grace: timedelta) -> None:
    ring = Keyring(FIRST).take(SECOND, grace=grace, members=[], now=NOW)
    assert (ring.valid_keys(NOW), ring.retired_keys(NOW)) == (keys(SECOND), keys(FIRST))


def test_a_rotation_ends_the_graces_of_those_before_it_no_later_than_its_own() -> None:
    ring = Keyring(FIRST).take(SECOND, grace=HOUR, members=[], now=NOW)
    soon = ring.take(THIRD, grace=HOUR / 2, members=["b"], now=NOW)
    assert soon.valid_keys(NOW) == keys(THIRD, SECOND, FIRST)
    assert soon.valid_keys(NOW + HOUR / 2) == keys(THIRD)
    assert soon.members == {"b"}
    late = ring.take(THIRD, grace=2 * HOUR, members=[], now=NOW)
    assert late.valid_keys(NOW + HOUR) == keys(THIRD, SECOND)  # nor is any prolonged
    assert (late.next_end(NOW), late.grace_end(NOW)) == (NOW + HOUR, NOW + 2 * HOUR)


def test_there_are_bounds() -> None:
    ring, token = Keyring(FIRST), FIRST
    for _ in range(MAX_FORMER + 3):
        token = token.rotated()
        ring = ring.take(token, grace=timedelta(days=1000), members=[], now=NOW)
    assert len(ring.former) == MAX_FORMER
    assert ring.grace_end(NOW) == NOW + MAX_GRACE


def test_it_is_the_same_after_a_restart() -> None:
    ring = (
        Keyring(FIRST).take(SECOND, grace=HOUR, members=["b", "a"], now=NOW).take(THIRD, grace=HOUR, members=["a"], now=NOW)
    )
    assert Keyring.from_saved(THIRD, json.loads(json.dumps(ring.as_saved()))) == ring


def test_what_was_saved_beside_another_token_is_not_taken_for_this_one() -> None:
    """A crash between the two files, or a token that a person gave."""
    saved = Keyring(FIRST).take(SECOND, grace=HOUR, members=["a"], now=NOW).as_saved()
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
        {"members": 1},
    ],
)
def test_what_is_damaged_admits_nobody_more(damage: dict[str, Any]) -> None:
    saved = Keyring(FIRST).take(SECOND, grace=HOUR, members=["a"], now=NOW).as_saved()
    assert Keyring.from_saved(SECOND, {**saved, **damage}) == Keyring(SECOND)
    assert Keyring.from_saved(SECOND, {}) == Keyring(SECOND)


def test_neither_repr_nor_file_holds_a_secret() -> None:
    ring = Keyring(FIRST).take(SECOND, grace=HOUR, members=["a"], now=NOW)
    (key,) = keys(FIRST)
    assert key.hex() not in repr(ring)
    assert repr(key) not in repr(ring)
    saved = json.dumps(ring.as_saved())
    for secret in (FIRST.secret, SECOND.secret, *keys(SECOND)):
        assert secret.hex() not in saved
