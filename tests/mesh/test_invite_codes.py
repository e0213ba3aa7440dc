"""An invite's code: one spelling, nothing of the secret in sight, and no bytes that make its reader raise anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import TokenChecksumWrong, TokenError, TokenMalformed, TokenTooNew
from federation.mesh.invite_codes import MAX_ADDRESSES, PREFIX, InviteCode, _sealed, is_code, shown
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.units import without_tokens
from tests.support.secret_parts import found_in

ADDRESSES = tuple(map(PeerAddress.parse, ("192.0.2.1:4484", "[2001:db8::1]:65535", "gpu.example.org:1")))
CODE = InviteCode(bytes(range(16)), 1_800_000_000, ADDRESSES)


def test_what_is_written_is_read() -> None:
    text = CODE.encode()
    assert InviteCode.decode(text) == CODE
    assert InviteCode.decode(f'  "{text[:20]}\n{text[20:]}" ') == CODE, "wrapped and quoted on its way"
    assert is_code(f" {text}\n")
    assert not is_code(Token.new().encode())


def test_it_fits_a_narrow_terminal_as_a_qr_code() -> None:
    """Version 4 of a QR code, 33 modules, takes 78 bytes."""
    assert len(InviteCode.new(1_800_000_000, ADDRESSES[:2]).encode()) <= 78


def test_two_are_never_alike_and_only_the_first_addresses_fit() -> None:
    one, other = (InviteCode.new(5, ADDRESSES * 4) for _ in range(2))
    assert one.secret != other.secret
    assert one.id != other.id
    assert len(InviteCode.decode(one.encode()).addresses) == MAX_ADDRESSES


def test_id_and_key_show_nothing_of_the_secret() -> None:
    secrets = {"the secret": CODE.secret, "the key": CODE.key}
    assert found_in(f"{CODE!r} {CODE.id.hex()} {shown(CODE.id)}", secrets) == []
    assert CODE.key not in (CODE.secret, CODE.id)


def test_a_log_shows_none() -> None:
    assert without_tokens(f"join --token {CODE.encode()}!") == "join --token [redacted]!"


def test_an_older_version_says_that_a_newer_one_made_it() -> None:
    with pytest.raises(TokenTooNew):
        Token.decode(CODE.encode())


@pytest.mark.parametrize(
    "text", ["", "fed100_", "hello", Token.new().encode(), PREFIX + "A" * 5000],
    ids=["nothing", "a prefix", "a word", "a token", "a long one"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(TokenError):
        InviteCode.decode(text)


@given(st.integers(0, len(CODE.encode()) - 1), st.characters(codec="ascii"))
def test_a_changed_character_is_noticed(at: int, other: str) -> None:
    text = CODE.encode()
    changed = text[:at] + other + text[at + 1 :]
    try:
        assert InviteCode.decode(changed) == CODE
        assert "".join(changed.split()) == text
    except (TokenChecksumWrong, TokenMalformed) as error:
        assert text[10:] not in str(error)


@given(st.binary(max_size=200))
def test_whatever_is_sealed_is_read_or_refused(payload: bytes) -> None:
    """The checksum is no secret: anybody can make a code of any bytes."""
    try:
        code = InviteCode.decode(_sealed(payload))
    except TokenMalformed:
        return
    assert len(code.secret) == 16
    assert len(code.addresses) <= MAX_ADDRESSES
