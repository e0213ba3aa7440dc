"""The owner's key as text, and orders as bytes."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import OwnerKeyWrong, ProtocolViolation
from federation.mesh.owner import (
    MAX_GRACE,
    MAX_ISSUED_MS,
    MAX_MEMBERS,
    MAX_NUMBER,
    MAX_ORDER_BYTES,
    Order,
    OwnerKey,
    SignedOrder,
    hash_of,
    number_of,
    order_of,
)
from federation.units import REDACTED, without_tokens

KEY = OwnerKey(bytes(range(32)))
TEXT = "fedkey1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8cD4qY"
ORDER = Order(b"n" * 40, 7, b"h" * 32, 1_700_000_000_000, 3_600_000, frozenset({"b", "a"}))
DATA = (
    b"n" * 40 + b"\0\0\0\x07" + b"h" * 32 + (1_700_000_000_000).to_bytes(8, "big") + (3_600_000).to_bytes(8, "big") + b"a\nb"
)


def test_the_formats_are_pinned() -> None:
    assert KEY.encode() == TEXT
    checksum = hashlib.sha256(b"fedkey1_" + bytes(range(32))).digest()[:4]
    assert base64.urlsafe_b64decode(TEXT[8:]) == bytes(range(32)) + checksum
    assert OwnerKey.decode(f" {TEXT[:20]}\n{TEXT[20:]}\n") == KEY
    assert ORDER.encode() == DATA
    assert Order.decode(DATA) == ORDER


def test_keys_differ_and_sign_for_themselves_alone() -> None:
    one, two = OwnerKey.new(), OwnerKey.new()
    assert one.public != two.public
    signature = one.sign(DATA)
    assert SignedOrder.check(one.public, DATA, signature) == SignedOrder(ORDER, signature)
    for owner, data, signed in (
        (two.public, DATA, signature),
        (one.public, DATA + b"\nc", signature),
        (one.public, DATA, signature[:-1]),
        (one.public, DATA, b""),
        (b"", DATA, signature),
        (b"\xff" * 32, DATA, signature),
        (one.public, DATA + bytes(MAX_ORDER_BYTES), signature),
    ):
        with pytest.raises(ProtocolViolation):
            SignedOrder.check(owner, data, signed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        TEXT[:-1],
        TEXT[:-1] + "Z",
        TEXT + "A",
        TEXT[8:],
        "fed1_" + TEXT[8:],
        "fedkey1_",
        "fedkey1_\u00e9" * 9,
        "fedkey1_A",
    ],
)
def test_what_is_no_key_is_said_and_not_repeated(text: str) -> None:
    with pytest.raises(OwnerKeyWrong) as caught:
        OwnerKey.decode(text)
    assert TEXT[8:20] not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_key_stays_inside() -> None:
    assert repr(KEY.seed) not in repr(KEY)
    assert without_tokens(f"see {TEXT}!") == f"see {REDACTED}!"


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda end: DATA[:92] + end))
def test_any_bytes_are_an_order_in_its_one_spelling_or_none(data: bytes) -> None:
    try:
        order = Order.decode(data)
    except ProtocolViolation:
        return
    assert order.encode() == data


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        DATA[:91],
        DATA[:-3],  # nobody
        DATA + b"\n",
        DATA[:-3] + b"b\na",
        DATA[:-3] + b"a\na",
        DATA[:-3] + b"a b",
        DATA[:-3] + b"\xff",
        DATA[:-3] + b"a" * 129,
        replace(ORDER, number=0).encode(),
        replace(ORDER, issued_ms=MAX_ISSUED_MS + 1).encode(),
        replace(ORDER, issued_ms=2**64 - 1).encode(),
        replace(ORDER, grace_ms=2**64 - 1).encode(),
        replace(ORDER, members=frozenset(map(str, range(MAX_MEMBERS + 1)))).encode(),
        DATA + bytes(MAX_ORDER_BYTES),
    ],
    ids=range(15),
)
def test_an_order_has_bounds(bad: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Order.decode(bad)


def test_the_bounds_are_inclusive() -> None:
    day = timedelta(days=1)
    order = order_of(b"n" * 40, MAX_NUMBER, b"s" * 32, issued_ms=MAX_ISSUED_MS, grace=365 * day, members=["x" * 128])
    assert Order.decode(order.encode()) == order
    assert timedelta(milliseconds=order.grace_ms) == MAX_GRACE
    assert order_of(b"n" * 40, 1, b"s" * 32, issued_ms=0, grace=-day, members=["x"]).grace_ms == 0
    full = replace(ORDER, members=frozenset(f"{n:052}" for n in range(MAX_MEMBERS)))
    assert Order.decode(full.encode()) == full


def test_the_number_is_read_before_the_signature() -> None:
    assert number_of(DATA) == ORDER.number
    assert number_of(DATA[:91]) == number_of(b"") == 0


def test_an_order_tells_the_secret_by_its_hash() -> None:
    order = order_of(b"n" * 40, 1, b"s" * 32, issued_ms=0, grace=timedelta(0), members=["x"])
    assert order.secret_hash == hash_of(b"s" * 32) != hash_of(b"t" * 32)
    assert b"ssss" not in order.encode()


def test_import_is_light() -> None:
    """`federation token new` has to answer at once."""
    heavy = {"pydantic", "msgpack", "trio", "libp2p", "structlog"}
    code = f"import sys, federation.mesh.owner; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
