"""The record layer, sans-IO."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import ProtocolViolation
from federation.net.link.seal import MAX_CIPHERTEXT, MAX_PLAINTEXT, TAG, Sealer, Unsealer

KEY = b"k" * 32
PLAINTEXTS = [b"a", b"b" * 100, b"c" * MAX_PLAINTEXT, b"d", b"e" * 70]


def sealed(*plaintexts: bytes) -> bytes:
    sealer = Sealer(KEY)
    return b"".join(sealer.seal(plaintext) for plaintext in plaintexts)


@given(st.lists(st.integers(1, MAX_PLAINTEXT + 400), max_size=12))
def test_any_split_of_the_stream_gives_the_same_plaintexts(cuts: list[int]) -> None:
    stream, unsealer = sealed(*PLAINTEXTS), Unsealer(KEY)
    got, at = [], 0
    for cut in [*sorted(cuts), len(stream)]:
        got += unsealer.feed(stream[at:cut])
        at = max(at, cut)
    assert got == PLAINTEXTS
    assert unsealer.rest == b""


def test_byte_by_byte_too() -> None:
    words = [b"one", b"2", b"three"]
    unsealer = Unsealer(KEY)
    assert [unsealer.feed(bytes([byte])) for byte in sealed(*words)].count([]) == len(sealed(*words)) - len(words)
    unsealer = Unsealer(KEY)
    assert [word for byte in sealed(*words) for word in unsealer.feed(bytes([byte]))] == words


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.integers(0, 6000))
def test_open_records_takes_whole_records_and_says_how_much_it_took(plaintexts: list[bytes], cut: int) -> None:
    stream = sealed(*plaintexts)
    unsealer = Unsealer(KEY)
    got, used = unsealer.open_records(memoryview(stream)[:cut])
    more, rest = unsealer.open_records(memoryview(stream)[used:])
    assert got + more == plaintexts
    assert used <= cut
    assert used + rest == len(stream)
    assert used == sum(2 + len(p) + TAG for p in got)


@given(st.data())
def test_a_changed_byte_is_found_and_nothing_behind_it_is_delivered(data: st.DataObject) -> None:
    plaintexts = [b"one", b"two" * 20, b"three"]
    stream = bytearray(sealed(*plaintexts))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    unsealer = Unsealer(KEY)
    got = []
    try:
        for byte in bytes(stream):  # one at a time: what came before the forgery is not held back
            got += unsealer.feed(bytes([byte]))
    except ProtocolViolation:
        pass
    ends = [2 + TAG + 3, 2 * (2 + TAG) + 3 + 60]
    assert got == plaintexts[: sum(at >= end for end in ends)]


def test_records_swapped_repeated_or_left_out_are_found() -> None:
    sealer = Sealer(KEY)
    one, two, three = (sealer.seal(word) for word in (b"one", b"two", b"three"))
    for stream in (two + one, one + one, one + three, two):
        with pytest.raises(ProtocolViolation):
            Unsealer(KEY).feed(stream)
    unsealer = Unsealer(KEY)
    unsealer.feed(one)
    with pytest.raises(ProtocolViolation):
        unsealer.feed(one)


def test_each_direction_has_its_own_key_and_counter() -> None:
    with pytest.raises(ProtocolViolation):
        Unsealer(b"l" * 32).feed(sealed(b"x"))
    assert Unsealer(KEY, 7).feed(Sealer(KEY, 7).seal(b"x")) == [b"x"]
    with pytest.raises(ProtocolViolation):
        Unsealer(KEY, 8).feed(Sealer(KEY, 7).seal(b"x"))


@pytest.mark.parametrize("size", [1, 100, MAX_PLAINTEXT])
def test_aes_gcm_as_noise_has_it(size: int) -> None:
    """Its counter is big-endian in the nonce; ChaCha20-Poly1305's is little-endian."""
    plaintext = bytes(size)
    record = Sealer(KEY, 0x0102030405060708, AESGCM).seal(plaintext)
    assert AESGCM(KEY).decrypt(b"\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08", record[2:], None) == plaintext
    assert Unsealer(KEY, 0x0102030405060708, AESGCM).feed(record) == [plaintext]
    with pytest.raises(ProtocolViolation):
        Unsealer(KEY, 0x0102030405060708).feed(record)


def test_records_are_sealed_one_behind_the_other() -> None:
    sealer, out = Sealer(KEY), memoryview(bytearray(200))
    size = sealer.seal_into(b"one", out)
    size += sealer.seal_into(b"two", out[size:])
    assert Unsealer(KEY).open_records(out[:size]) == ([b"one", b"two"], size)
    assert not any(out[size:])


def test_the_counter_is_the_noise_nonce() -> None:
    """32 bits of zero, then 64 bits little endian, as the Noise specification has it for ChaChaPoly."""
    record = Sealer(KEY, 0x0102030405060708).seal(b"x")
    nonce = bytes(4) + bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert record == b"\x00\x11" + ChaCha20Poly1305(KEY).encrypt(nonce, b"x", None)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_violation_or_a_wait(data: bytes) -> None:
    unsealer = Unsealer(KEY)
    try:
        assert unsealer.feed(data) == []
    except ProtocolViolation:
        return
    assert unsealer.rest == data  # less than it announces


@pytest.mark.parametrize("length", range(TAG))
def test_a_record_without_room_for_its_tag_is_a_violation_at_once(length: int) -> None:
    with pytest.raises(ProtocolViolation, match="shorter"):
        Unsealer(KEY).feed(length.to_bytes(2, "big"))


def test_a_record_with_nothing_in_it_is_a_violation_and_costs_no_key_at_all() -> None:
    record = bytearray(Sealer(KEY).seal(b""))
    record[-1] ^= 1  # what would not open is not even tried
    with pytest.raises(ProtocolViolation, match="nothing in it"):
        Unsealer(KEY).feed(bytes(record))


def test_the_longest_record_goes_through_and_one_byte_more_is_our_error() -> None:
    record = Sealer(KEY).seal(bytes(MAX_PLAINTEXT))
    assert len(record) == 2 + MAX_CIPHERTEXT
    assert Unsealer(KEY).feed(record) == [bytes(MAX_PLAINTEXT)]
    with pytest.raises(Exception, match="65535"):
        Sealer(KEY).seal(bytes(MAX_PLAINTEXT + 1))


def test_what_waits_for_the_rest_of_a_record_is_bounded() -> None:
    unsealer = Unsealer(KEY)
    record = Sealer(KEY).seal(bytes(MAX_PLAINTEXT))
    unsealer.feed(record[:-1])
    assert len(unsealer.rest) == MAX_CIPHERTEXT + 1
    assert unsealer.feed(record[-1:] + record[:1]) == [bytes(MAX_PLAINTEXT)]
    assert unsealer.rest == record[:1]
