"""The table of client keys: signatures, bounds, and that all tables which heard of the same rows agree."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import NotDone, NotFound, ProtocolViolation
from federation.mesh import client_keys
from federation.mesh.client_keys import (
    DAY_MS,
    MAX_SIGNED_BYTES,
    KeyTable,
    Row,
    Statement,
    id_of,
    is_text,
    new_text,
)  # fmt: skip
from federation.net import identity
from federation.units import without_tokens

NETWORK = b"n" * 40
NOW = 1_800_000_000_000
ADA, BEA, EVE = b"a" * 32, b"b" * 32, b"e" * 32


def table() -> KeyTable:
    return KeyTable(NETWORK)


def peer_of(seed: bytes) -> str:
    return str(identity.peer_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()))


def add(to: KeyTable, name: str, *, seed: bytes = ADA, text: str = "", now: int = NOW, **more: Any) -> tuple[str, Row]:
    text = text or new_text()
    return text, to.add(seed, text, Statement(id_of(text), peer_of(seed), now, name, **more), now)


def signed(body: Any, *, seed: bytes = EVE, network: bytes = NETWORK) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    data = body if isinstance(body, bytes) else msgpack.packb(body)
    return key.public_key().public_bytes_raw() + key.sign(b"federation/1 client key\0" + network + data) + data


def test_a_key_is_found_by_its_text_alone() -> None:
    here = table()
    text, row = add(here, "phone", models=("m", "n"), expires_ms=NOW + 1, requests=60, seconds=60)
    assert here.find(text) == row.statement == Statement(
        id_of(text), peer_of(ADA), NOW, "phone", models=("m", "n"), expires_ms=NOW + 1, requests=60, seconds=60
    )  # fmt: skip
    assert here.find(new_text()) is None
    assert here.find(text[:-1]) is here.find(text + "x") is here.find("") is None
    assert text.encode() not in b"".join(here.dump())
    assert row.statement.is_live(NOW)
    assert not row.statement.is_live(NOW + 1), "expired"


def test_a_key_looks_like_one_and_is_kept_out_of_logs() -> None:
    text = new_text()
    assert is_text(text)
    assert text != new_text()
    assert without_tokens(f"it said {text}.") == "it said [redacted]."


def test_a_name_is_taken_while_its_key_is_valid() -> None:
    here = table()
    add(here, "phone", expires_ms=NOW + 5)
    with pytest.raises(NotDone, match="there is a key 'phone'"):
        add(here, "phone", seed=BEA)
    add(here, "phone", seed=BEA, now=NOW + 5)
    here.revoke(ADA, "phone", NOW + 5)
    add(here, "phone", now=NOW + 6)


def test_anybody_revokes_and_a_revocation_wins_whatever_comes_when() -> None:
    ada, bea = table(), table()
    text, row = add(ada, "phone")
    assert bea.merge(row, NOW)
    (end,) = bea.revoke(BEA, "phone", NOW + 1)
    assert bea.find(text) == Statement(id_of(text), peer_of(BEA), NOW + 1, "phone", is_revoked=True)
    assert not bea.merge(row, NOW + 2)
    assert ada.merge(end, NOW + 2)
    assert not ada.merge(end, NOW + 2)
    assert ada.summary == bea.summary
    early = table()
    assert early.merge(end, NOW)
    assert not early.merge(row, NOW), "the revocation was here first"
    assert early.find(text) == end.statement
    with pytest.raises(NotFound, match="federation key list"):
        ada.revoke(ADA, "phone", NOW)


def test_a_revocation_ends_all_keys_of_that_name() -> None:
    ada, bea = table(), table()
    texts = [add(ada, "phone")[0], add(bea, "phone", seed=BEA)[0]]
    for row in map(bea.read, ada.dump()):
        assert row is not None
        assert bea.merge(row, NOW)
    assert len(bea.revoke(ADA, "phone", NOW)) == 2
    assert [bea.find(text).is_revoked for text in texts] == [True, True]  # type: ignore[union-attr]


@given(st.randoms(use_true_random=False))
def test_tables_that_heard_of_the_same_rows_agree(rng: random.Random) -> None:
    source = table()
    rows = [add(source, f"k{n}", seed=rng.choice([ADA, BEA]), text=f"fedk_{n:032}")[1] for n in range(4)]
    rows += source.revoke(EVE, "k1", NOW) + source.revoke(BEA, "k2", NOW)
    forged = source.read(signed([0, id_of(f"fedk_{3:032}"), NOW, "other", [], 0, 0, 0]))
    assert forged is not None
    rows.append(forged)
    tables = [table(), table()]
    for here in tables:
        for row in rng.sample(rows * 2, len(rows) * 2):
            here.merge(row, NOW)
    assert tables[0].summary == tables[1].summary
    assert sorted(tables[0].dump()) == sorted(tables[1].dump())
    assert [here.find(f"fedk_{1:032}").is_revoked for here in tables] == [True, True]  # type: ignore[union-attr]


def test_what_two_tables_lack_of_each_other() -> None:
    ada, bea = table(), table()
    _, first = add(ada, "first")
    _, second = add(bea, "second", seed=BEA)
    theirs = dict(bea.digest())
    assert ada.missing(theirs) == [first.signed]
    assert ada.wanted(theirs) == [second.statement.id]
    assert bea.rows_of([second.statement.id, b"?" * 32]) == [second.signed]
    assert ada.summary != bea.summary
    assert ada.knows(first.signed)
    assert not ada.knows(second.signed)
    assert not ada.knows(b"x" * 200)


def test_it_comes_back_from_disk() -> None:
    here, again = table(), table()
    text, _ = add(here, "phone")
    add(here, "old")
    here.revoke(ADA, "old", NOW)
    again.load(here.dump())
    assert again.summary == here.summary
    assert again.find(text) == here.find(text)
    assert len(again) == 2


GOOD = [0, b"i" * 32, NOW, "phone", ["m"], 0, 5, 60]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", [], ["0"], {}, [0], GOOD[:7], [1, b"i" * 32, NOW], [0, "i" * 32, *GOOD[2:]], [0, b"short", *GOOD[2:]],
        [*GOOD[:2], -1, *GOOD[3:]], [*GOOD[:2], 2**60, *GOOD[3:]], [*GOOD[:3], "", *GOOD[4:]],
        [*GOOD[:3], "x" * 65, *GOOD[4:]], [*GOOD[:3], "a\nb", *GOOD[4:]], [*GOOD[:3], " a", *GOOD[4:]],
        [*GOOD[:4], ["m"] * 17, *GOOD[5:]], [*GOOD[:4], [1], *GOOD[5:]], [*GOOD[:4], ["m" * 201], *GOOD[5:]],
        [*GOOD[:5], -1, *GOOD[6:]], [*GOOD[:6], 5, 0], [*GOOD[:6], 0, 60], [*GOOD[:6], -5, 60], [*GOOD[:6], 5, 2**40],
        b"\xdd\xff\xff\xff\xff", b"\x91" * 1000,
    ],
    ids=lambda body: repr(body)[:40],
)  # fmt: skip
def test_what_no_honest_node_signs_is_refused(body: Any) -> None:
    with pytest.raises(ProtocolViolation):
        table().read(signed(body))


def test_what_is_not_signed_or_signed_for_another_network_is_refused() -> None:
    here = table()
    row = signed(GOOD)
    assert here.read(row) is not None
    for wrong in (
        row[:-1], row + b"x", b"", row[:96], EVE + row[32:], signed(GOOD, network=b"o" * 40),
        row + b"\0" * MAX_SIGNED_BYTES,
    ):  # fmt: skip
        with pytest.raises(ProtocolViolation):
            here.read(wrong)


def test_what_a_newer_version_says_more_is_passed_over() -> None:
    assert table().read(signed([2, "something else"])) is None
    row = table().read(signed([*GOOD, {"more": 1}]))
    assert row is not None
    assert row.statement.name == "phone"


def test_a_flood_costs_nobody_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_keys, "MAX_LIVE", 10)
    monkeypatch.setattr(client_keys, "MAX_ROWS", 20)
    here = table()
    texts = [add(here, f"k{n}")[0] for n in range(3)]
    taken = 0
    for n in range(50):
        row = here.read(signed([0, bytes([n]) * 32, NOW, f"evil{n}", [], 0, 0, 0]))
        assert row is not None
        taken += here.merge(row, NOW)
    assert taken == 5, "half of the places"
    for n in range(50):
        row = here.read(signed([1, bytes([100 + n]) * 32, NOW, f"evil{n}"]))
        assert row is not None
        here.merge(row, NOW)
    assert len(here) == 3 + 10, "half of the rows"
    assert all(here.find(text) for text in texts)
    add(here, "fits")
    add(here, "too")
    with pytest.raises(NotDone, match="full"):
        add(here, "no more")
    for name in ("k0", "k1", "k2", "fits", "too"):
        here.revoke(BEA, name, NOW)  # there is always room for that
    assert all(here.find(text).is_revoked for text in texts)  # type: ignore[union-attr]


def test_long_expired_keys_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_keys, "MAX_ROWS", 4)
    here = table()
    for n, seed in enumerate((ADA, ADA, BEA, BEA)):
        add(here, f"k{n}", seed=seed, expires_ms=NOW + 1)
    with pytest.raises(NotDone):
        add(here, "new", now=NOW + DAY_MS)
    text, _ = add(here, "new", now=NOW + DAY_MS + 1)
    assert len(here) == 1
    assert here.find(text)


def test_a_key_that_could_not_be_saved_is_taken_back() -> None:
    here = table()
    text, row = add(here, "phone")
    here.drop(row)
    assert here.find(text) is None
    assert here.summary == table().summary
