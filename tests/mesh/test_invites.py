"""Who may come by an invite, at which time, and what is kept of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from federation.errors import NotDone, NotFound, UsageError
from federation.mesh.invites import MAX_ENDED, MAX_OPEN, REMEMBERED_MS, Invite, Invites
from tests.support.secret_parts import found_in

A, B = "12D3KooW" + "a" * 44, "12D3KooW" + "b" * 44
KEY = bytes(range(32))


def invite(n: int = 1, **fields: Any) -> Invite:
    return Invite(**{"id": bytes([n]) * 16, "key": KEY, "made_ms": 0, "expires_ms": 1000, **fields})


def kept(*invites: Invite) -> Invites:
    found = Invites()
    for one in invites:
        found.add(one, 0)
    return found


def test_one_use_is_one_machines() -> None:
    it = invite()
    book = kept(it)
    assert it.problem(A, 0) is None
    assert book.take(it, A, "a", 5)
    assert it.problem(B, 6) == "used"
    assert it.problem(A, 6) is None, "it has not confirmed, so it may come again"
    assert not book.take(it, A, "a", 7)
    assert (it.state(7), book.unconfirmed(A), book.unconfirmed(B)) == ("open", [it], [])
    it.used[A].confirmed = True
    assert (it.problem(A, 8), it.problem(B, 8), it.state(8), it.ended_ms(8)) == ("used here", "used", "used", 5)


def test_who_never_confirms_may_come_again_for_ten_minutes() -> None:
    it = invite(expires_ms=30 * 86_400_000)
    kept(it).take(it, A, "a", 5)
    last = 5 + 600_000 - 1
    assert (it.problem(A, last), it.state(last)) == (None, "open")
    assert (it.problem(A, last + 1), it.problem(B, last + 1), it.state(last + 1)) == ("used here", "used", "used")
    assert it.ended_ms(last + 1) == 5


def test_expiry_is_exact_and_holds_for_those_who_come_again() -> None:
    it = invite(uses=2)
    kept(it).take(it, A, "a", 5)
    assert [it.problem(B, now) for now in (999, 1000)] == [None, "expired"]
    assert it.problem(A, 1000) == "expired"
    assert (it.state(999), it.state(1000), it.ended_ms(1000)) == ("open", "expired", 1000)


def test_revoked_and_refused() -> None:
    it = invite(uses=2, approve=True)
    assert it.needs_yes(A)
    it.approved.append(A)
    assert not it.needs_yes(A)
    it.refused.append(B)
    assert (it.problem(A, 0), it.problem(B, 0)) == (None, "refused")
    it.revoked_ms = 7
    assert (it.problem(A, 0), it.state(8), it.ended_ms(8)) == ("revoked", "revoked", 7)


def test_what_a_person_types_finds_it() -> None:
    book = kept(invite(1), invite(2, expires_ms=5), invite(3))
    assert [one.id[0] for one in book.find("ALL", 0)] == [1, 2, 3]
    assert [one.id[0] for one in book.find("all", 6)] == [1, 3]
    assert book.find(" 0101 ", 6)[0].id[0] == 1
    for text in ("", "01", "beef", "x" * 999):
        with pytest.raises(NotFound):
            book.find(text, 6)
    with pytest.raises(NotDone, match="expired"):
        book.find("02020202", 6)
    twin = invite(1)
    twin.id = b"\x01\x01" + b"\x07" * 14
    book.add(twin, 0)
    with pytest.raises(UsageError, match="2 invites"):
        book.find("0101", 6)


def test_so_many_at_most_are_open_and_remembered() -> None:
    book = Invites()
    for n in range(MAX_OPEN):
        book.add(invite(n), 0)
    with pytest.raises(NotDone, match="64"):
        book.add(invite(200), 0)
    for n in range(MAX_ENDED + 60):
        one = invite(expires_ms=2000 + n)
        one.id = n.to_bytes(16, "big")
        book.add(one, 10_000)
    assert len(list(book)) == MAX_ENDED + 1, "the newest, and those that ended last"
    book.add(invite(201, expires_ms=2 * REMEMBERED_MS), REMEMBERED_MS + 20_000)
    assert [one.id[0] for one in book] == [201]


def test_what_is_kept_is_what_was() -> None:
    it = invite(uses=3, approve=True)
    book = kept(it, invite(2))
    book.take(it, A, "ada", 5)
    it.used[A].confirmed = True
    book.take(it, B, "bea", 6)
    it.approved += [A, B]
    it.refused.append("12D3KooW" + "c" * 44)
    it.revoked_ms = 9
    again = Invites.from_saved(json.loads(json.dumps(book.as_saved())))
    assert list(again) == list(book)
    assert found_in(repr(list(again)), {"the key": KEY}) == []


@pytest.mark.parametrize(
    "rows",
    [
        5, [5], ["x"], [{}], [[]], {"a": 1}, None,
        [{**kept(invite()).as_saved()[0], "id": "00"}],
        [{**kept(invite()).as_saved()[0], "key": "zz"}],
        [{**kept(invite()).as_saved()[0], "used": {"nobody": ["n", 1, True]}}],
        [{**kept(invite()).as_saved()[0], "used": {A: ["n"]}}],
        [{**kept(invite()).as_saved()[0], "expires": "soon"}],
    ],
)  # fmt: skip
def test_a_damaged_file_is_noticed(rows: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Invites.from_saved(rows)
